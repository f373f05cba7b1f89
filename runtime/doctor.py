"""What each backend can do on this machine, why, and the one command that mends what is missing."""

import ctypes
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from framert.runtime.backends import BACKENDS
from framert.runtime.cpu import cpu_cores, cpu_features, cpu_name

# Package a backend needs -> the names it is distributed under.
DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "torch": ("torch",),
    "triton": ("triton",),
    "onnx": ("onnx",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx",),
}
CUDA_LIBRARY = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
COMPUTE_MAJOR, COMPUTE_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU as the driver describes it. cuda: the newest CUDA version the driver runs."""

    name: str
    compute_capability: str
    memory_gib: float
    cuda: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """What one backend can do here. why: the reason in words; fix: the command that mends it, "" if none."""

    usable: bool
    versions: dict[str, str]
    precisions: tuple[str, ...] = ()
    why: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """This machine and its backends."""

    system: str
    python: str
    cpu: str
    cores: int
    cpu_features: tuple[str, ...]
    gpus: tuple[Gpu, ...] = ()
    backends: dict[str, Ability] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> Report:
    """Look at this machine. Nothing is installed, loaded onto a GPU or sent anywhere."""
    features, gpus = cpu_features(), find_gpus()
    return Report(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        cpu=cpu_name(),
        cores=cpu_cores(),
        cpu_features=tuple(sorted(features)),
        gpus=gpus,
        backends={name: ABILITIES[name](features, gpus) for name in BACKENDS if name in ABILITIES},
    )


def table(report: Report) -> str:
    """Return the report as lines of text."""
    lines = [
        f"{report.system}, Python {report.python}",
        f"CPU  {report.cpu}, {report.cores} cores; {', '.join(report.cpu_features) or 'no features known'}",
        *(
            f"GPU  {gpu.name}, {gpu.memory_gib:.0f} GiB, compute capability {gpu.compute_capability}, driver for "
            f"CUDA {gpu.cuda}"
            for gpu in report.gpus
        ),
        *([] if report.gpus else ["GPU  none that an NVIDIA driver knows of"]),
    ]
    for name, ability in report.backends.items():
        versions = ", ".join(f"{package} {version}" for package, version in ability.versions.items() if version)
        lines.append(f"{'yes' if ability.usable else 'no ':4} {name:12} {versions}")
        if ability.precisions:
            lines.append(f"{'':17} precisions: {', '.join(ability.precisions)}")
        if ability.why:
            lines.append(f"{'':17} {ability.why}")
        if ability.fix:
            lines.append(f"{'':17} fix: {ability.fix}")
    return "\n".join(lines)


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
    )


def _versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each package, "" for one that is not there."""
    return {package: _version(package) if find_spec(package) else "" for package in packages}


def _version(package: str) -> str:
    for name in DISTRIBUTIONS[package]:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def _missing(versions: dict[str, str], extra: str) -> Ability | None:
    absent = [package for package, version in versions.items() if not version]
    if not absent:
        return None
    return Ability(
        usable=False,
        versions=versions,
        why=f"{', '.join(absent)} not installed",
        fix=f"pip install 'framert[{extra}]'",
    )


def _onnxruntime(features: set[str], gpus: tuple[Gpu, ...]) -> Ability:
    versions = _versions("onnxruntime")
    fast = {"avx512_vnni", "avx_vnni", "i8mm", "asimddp"} & features
    speed = "int8 products in hardware" if fast else "int8 saves memory, not time: this CPU has no int8 dot products"
    return _missing(versions, "cpu") or Ability(
        usable=True,
        versions=versions,
        precisions=("fp32", "int8", "int4"),
        why=f"runs a bundle in the precision it was exported in; {speed}",
    )


def _openvino(features: set[str], gpus: tuple[Gpu, ...]) -> Ability:
    versions = _versions("openvino")
    half = sorted({"avx512_bf16", "amx_bf16", "bf16"} & features)
    return _missing(versions, "openvino") or Ability(
        usable=True,
        versions=versions,
        precisions=("fp32", *(("bf16",) if half else ()), "int8"),
        why=f"bf16 by {half[0]}" if half else "no bf16: this CPU has neither AVX-512 BF16 nor AMX",
    )


def _triton(features: set[str], gpus: tuple[Gpu, ...]) -> Ability:
    versions = _versions("torch", "triton", "onnx")
    if missing := _missing(versions, "triton"):
        return missing
    if not gpus:
        return Ability(
            usable=False,
            versions=versions,
            precisions=("fp32",),
            why="no NVIDIA GPU with a driver; impl='reference' computes the same on the CPU, to check with",
        )
    major = max(int(gpu.compute_capability.split(".")[0]) for gpu in gpus)
    if major < 8:
        return Ability(usable=False, versions=versions, why=f"needs compute capability 8.0, this GPU has {major}.x")
    fp8 = max(tuple(int(part) for part in gpu.compute_capability.split(".")) for gpu in gpus) >= (8, 9)
    return Ability(
        usable=True,
        versions=versions,
        precisions=("bf16", "fp16", "fp32", "int8", *(("fp8",) if fp8 else ())),
        why="" if fp8 else "fp8 needs compute capability 8.9",
    )


def _tensorrt(package: str, extra: str) -> Callable[[set[str], tuple[Gpu, ...]], Ability]:
    def ability(features: set[str], gpus: tuple[Gpu, ...]) -> Ability:
        versions = _versions(package)
        if missing := _missing(versions, extra):
            return missing
        targets = ", ".join("sm_" + gpu.compute_capability.replace(".", "") for gpu in gpus)
        why = f"runs engines built for {targets}" if gpus else "no NVIDIA GPU with a driver: builds engines, runs none"
        return Ability(usable=bool(gpus), versions=versions, why=why)

    return ability


ABILITIES: dict[str, Callable[[set[str], tuple[Gpu, ...]], Ability]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "triton": _triton,
    "tensorrt": _tensorrt("tensorrt", "tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt_rtx", "tensorrt-rtx"),
}
