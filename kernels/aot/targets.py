"""GPUs that kernels are compiled for: what their drivers take, and what fits into one block."""

from collections.abc import Sequence
from dataclasses import dataclass

from framert.runtime.errors import ConfigError

MAX_REGISTERS = 255  # per thread, on every target
FP8_CAPABILITY = 89  # the first with fp8 conversions and products


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One compute capability.

    Args:
        name: as users write it, such as "sm_87".
        capability: 87 for 8.7.
        ptx_version: 85 for PTX 8.5: the newest that the oldest supported driver of the platform takes.
        shared_memory: bytes that one block may use (CUDA programming guide, opt-in maximum).
        platform: what sets ``ptx_version``.
    """

    name: str
    capability: int
    ptx_version: int
    shared_memory: int
    platform: str

    @property
    def quantized(self) -> tuple[str, ...]:
        """Kinds of quantized operands the target multiplies."""
        return ("int8", "int4", "fp8") if self.capability >= FP8_CAPABILITY else ("int8", "int4")


KIB = 1024
_TABLE = (
    (80, 85, 163, "A100; CUDA 12.6"),
    (86, 85, 99, "RTX 30, A10; CUDA 12.6"),
    (87, 85, 163, "Jetson Orin; JetPack 6, CUDA 12.6"),
    (89, 85, 99, "RTX 40, L4, L40; CUDA 12.6"),
    (90, 85, 227, "H100, H200; CUDA 12.6"),
    (100, 87, 227, "B200; CUDA 12.8"),
    (110, 90, 227, "Jetson Thor; JetPack 7, CUDA 13.0"),
    (120, 87, 99, "RTX 50, RTX PRO; CUDA 12.8"),
)
TARGETS = {
    f"sm_{capability}": Target(
        name=f"sm_{capability}",
        capability=capability,
        ptx_version=ptx,
        shared_memory=shared * KIB,
        platform=platform,
    )
    for capability, ptx, shared, platform in _TABLE
}


def parse_targets(names: Sequence[str]) -> tuple[Target, ...]:
    """Return the targets without repetitions. Raises: ConfigError for none or an unknown one."""
    if not names:
        raise ConfigError(f"no target; give one or more of {', '.join(TARGETS)}")
    for name in names:
        if name not in TARGETS:
            raise ConfigError(f"unknown target {name!r}; choose one of {', '.join(TARGETS)}")
    return tuple(TARGETS[name] for name in dict.fromkeys(names))
