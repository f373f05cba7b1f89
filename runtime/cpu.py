"""What the CPU can do, read from the system."""

import os
import platform
import sys
from pathlib import Path

# What the backends make use of; on Linux under these names in /proc/cpuinfo, on x86 and Arm.
FEATURES = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
    "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def cpu_features() -> set[str]:
    """Return those of ``FEATURES`` this CPU has; off Linux those that numpy knows of."""
    file = Path("/proc/cpuinfo")
    if sys.platform == "linux" and file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, values = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return set(values.split()) & set(FEATURES)
        return set()
    from numpy._core._multiarray_umath import __cpu_features__  # type: ignore[import-not-found]

    return {name.lower() for name, present in __cpu_features__.items() if present} & set(FEATURES)


def cpu_name() -> str:
    """Return the CPU's model, as the system calls it."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def cpu_cores() -> int:
    """Return the logical cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Return the physical cores this process may use: the threads that ONNX Runtime and OpenVINO take by default.

    Logical cores that share one count once. Off Linux, and where the system does not say, the logical cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return cpu_cores()
    siblings = set()
    for core in os.sched_getaffinity(0):
        file = topology / f"cpu{core}" / "topology" / "thread_siblings_list"
        try:
            siblings.add(file.read_text(encoding="ascii").strip())
        except OSError:
            return cpu_cores()
    return len(siblings)
