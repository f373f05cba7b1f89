"""GPUs that engines are built for: their compute capabilities, and the number formats their tensor cores have."""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass

from framert.runtime.errors import BackendError, ConfigError

# Compute capability -> what TensorRT builds for it beyond fp32. int4 and fp4 are weight formats.
# NVIDIA's support matrix; int8, int4 and fp8 confirmed by building with TensorRT-RTX 1.7 for 75, 80, 86, 89 and 120.
PRECISIONS = {
    "sm_75": ("fp16", "int8"),
    "sm_80": ("fp16", "bf16", "int8", "int4"),
    "sm_86": ("fp16", "bf16", "int8", "int4"),
    "sm_87": ("fp16", "bf16", "int8", "int4"),
    "sm_89": ("fp16", "bf16", "int8", "int4", "fp8"),
    "sm_90": ("fp16", "bf16", "int8", "int4", "fp8"),
    "sm_100": ("fp16", "bf16", "int8", "int4", "fp8", "fp4"),
    "sm_110": ("fp16", "bf16", "int8", "int4", "fp8", "fp4"),
    "sm_120": ("fp16", "bf16", "int8", "int4", "fp8", "fp4"),
    "sm_121": ("fp16", "bf16", "int8", "int4", "fp8", "fp4"),
}
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of this machine. target: its compute capability, such as "sm_89"."""

    name: str
    target: str


def parse_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """Return the targets without repetitions. Raises: ConfigError for none, or one that no GPU is called."""
    if not targets:
        raise ConfigError(f"no target; give one or more of {', '.join(PRECISIONS)}")
    for target in targets:
        if target not in PRECISIONS:
            given = re.sub(r"^(\d+)\.(\d)$", r"sm_\1\2", target)
            hint = f" (did you mean {given}?)" if given in PRECISIONS else ""
            raise ConfigError(f"unknown target {target!r}{hint}; choose from {', '.join(PRECISIONS)}")
    return tuple(dict.fromkeys(targets))


def check_precision(graph: str, precision: str, targets: Sequence[str]) -> None:
    """Raises: ConfigError if a target cannot compute a graph's precision, with the list of what it can."""
    for target in targets:
        if precision != "fp32" and precision not in PRECISIONS[target]:
            raise ConfigError(
                f"{graph} is in {precision}, which {target} does not have; it has fp32, {', '.join(PRECISIONS[target])}"
            )


def this_gpu() -> Gpu | None:
    """Return the first CUDA device as the driver reports it, or None where there is no driver or no device."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    numbers = []
    for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR):
        if code := cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            raise BackendError(f"the CUDA driver refuses to describe its first device (error {code}); reinstall it")
        numbers.append(value.value)
    if cuda.cuDeviceGetName(name, len(name), device):
        name.value = b"unnamed"
    return Gpu(name.value.decode(errors="replace"), f"sm_{numbers[0]}{numbers[1]}")
