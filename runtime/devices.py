"""What boards can do at most: peak rates of tensor cores, memory and its bandwidth. For estimates, not measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from framert.runtime.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A board, in its highest power mode.

    half: peak of dense products in fp16 or bf16 that add up in fp32, TFLOP/s. eight: in int8, and in fp8 where ``fp8``.
    bandwidth: GB/s. memory: GiB, of which the system keeps some. watts: of its power modes.
    """

    name: str
    target: str
    half: float
    eight: float
    fp8: bool
    bandwidth: float
    memory: int
    watts: str
    source: str


def _orin(sms: int, gigahertz: float) -> tuple[float, float]:
    """Return the peaks of an Ampere GPU as Orin has it: 1024 multiply-adds in fp16, 2048 in int8, per clock and SM."""
    half = sms * gigahertz * 2 * 1024 / 1000
    return round(half, 1), round(2 * half, 1)


ORIN = "NVIDIA Jetson Orin data sheets: SMs, clock, memory; rates computed from them"
THOR = "NVIDIA Jetson Thor data sheet: an eighth (fp16) and a quarter (8 bits) of its rate in sparse FP4"


def _board(name: str, sms: int, clock: float, bandwidth: float, memory: int, watts: str) -> Device:
    half, eight = _orin(sms, clock)
    return Device(
        name=name, target="sm_87", half=half, eight=eight, fp8=False, bandwidth=bandwidth, memory=memory, watts=watts,
        source=ORIN,
    )  # fmt: skip


def _thor(name: str, sparse_fp4: float, memory: int, watts: str) -> Device:
    return Device(
        name=name, target="sm_110", half=round(sparse_fp4 / 8, 1), eight=round(sparse_fp4 / 4, 1), fp8=True,
        bandwidth=273, memory=memory, watts=watts, source=THOR,
    )  # fmt: skip


DEVICES: Mapping[str, Device] = {
    "orin-agx": _board("Jetson AGX Orin 64 GB", 16, 1.3, 204.8, 64, "15 to 60 W"),
    "orin-agx-32": _board("Jetson AGX Orin 32 GB", 14, 0.93, 204.8, 32, "15 to 40 W"),
    "orin-nx": _board("Jetson Orin NX 16 GB, Super", 8, 1.173, 102.4, 16, "10 to 40 W"),
    "orin-nx-8": _board("Jetson Orin NX 8 GB, Super", 8, 1.173, 102.4, 8, "10 to 40 W"),
    "orin-nano": _board("Jetson Orin Nano 8 GB, Super", 8, 1.02, 102.4, 8, "7 to 25 W"),
    "orin-nano-4": _board("Jetson Orin Nano 4 GB, Super", 4, 1.02, 51.2, 4, "7 to 25 W"),
    "thor": _thor("Jetson T5000 (AGX Thor)", 2070, 128, "40 to 130 W"),
    "thor-t4000": _thor("Jetson T4000", 1200, 64, "40 to 70 W"),
}


def find_device(name: str) -> Device:
    """Raises: ConfigError for an unknown name."""
    if name not in DEVICES:
        raise ConfigError(f"there is no device {name!r}; choose one of {', '.join(DEVICES)}")
    return DEVICES[name]
