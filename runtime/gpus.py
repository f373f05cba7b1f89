"""The NVIDIA GPUs of this machine, as the driver and the system describe them."""

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CUDA_LIBRARY = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
COMPUTE_MAJOR, COMPUTE_MINOR = 75, 76  # CUdevice_attribute
NVIDIA, DISPLAY = "0x10de", "0x03"  # PCI vendor, and how a display adapter's class begins


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU as the driver describes it. cuda: the newest CUDA version the driver runs. driver: its own."""

    name: str
    compute_capability: str
    memory_gib: float
    cuda: str
    driver: str = ""


def find_gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that the CUDA driver reports; none where there is no driver."""
    try:
        cuda = ctypes.CDLL(CUDA_LIBRARY[sys.platform])
    except (KeyError, OSError):
        return ()
    count, version = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or cuda.cuDriverGetVersion(ctypes.byref(version)):
        return ()
    newest = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return tuple(_gpu(cuda, index, newest) for index in range(count.value))


def _gpu(cuda: Any, index: int, newest: str) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (COMPUTE_MAJOR, COMPUTE_MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=".".join(capability),
        memory_gib=memory.value / 2**30,
        cuda=newest,
        driver=driver_version(),
    )


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Return the version of NVIDIA's kernel module, "" where Linux does not tell."""
    try:
        found = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", file.read_text())
    except OSError:
        return ""
    return found.group(1) if found else ""


def is_jetson(release: Path = Path("/etc/nv_tegra_release")) -> bool:
    """Return whether this is a board with NVIDIA's JetPack."""
    return release.exists()


def has_nvidia_device(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Return whether Linux lists a display adapter of NVIDIA's, with or without a driver."""
    for device in devices.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == NVIDIA and kind.startswith(DISPLAY):
            return True
    return False
