"""What each backend can do on this machine, why, and the one command that mends what is missing."""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from framert.runtime.backends import BACKENDS
from framert.runtime.cpu import cpu_cores, cpu_features, cpu_name
from framert.runtime.gpus import Gpu, find_gpus, has_nvidia_device, is_jetson

# Package a backend needs -> the names it is distributed under.
DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "torch": ("torch",),
    "triton": ("triton",),
    "onnx": ("onnx",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx",),
    "cuda.bindings": ("cuda-bindings", "cuda-python"),
}
# What engines compute in -> the first compute capability that has it; int4 and fp4 are formats of weights.
LEAST_CAPABILITY = {"fp16": (7, 5), "bf16": (8, 0), "int8": (7, 5), "int4": (8, 0), "fp8": (8, 9), "fp4": (10, 0)}


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
            f"GPU  {gpu.name}, {gpu.memory_gib:.0f} GiB, compute capability {gpu.compute_capability}, "
            f"driver {f'{gpu.driver} ' if gpu.driver else ''}for CUDA {gpu.cuda}"
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


def _versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each package, "" for one that is not there."""
    return {package: _version(package) if _installed(package) else "" for package in packages}


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # a part of a package that is not there
        return False


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


def _tensorrt(features: set[str], gpus: tuple[Gpu, ...]) -> Ability:
    versions = _versions("tensorrt", "tensorrt_rtx", "cuda.bindings")
    kinds = [package for package in ("tensorrt", "tensorrt_rtx") if versions[package]]
    extra = kinds[0].replace("_", "-") if kinds else "tensorrt"
    install = f"pip install 'framert[{extra}]'"
    targets = [gpu.compute_capability for gpu in gpus]
    names = ", ".join("sm_" + target.replace(".", "") for target in targets)
    if not kinds and is_jetson():  # PyPI's is not the one that matches the driver
        why = "tensorrt is not found: it comes with JetPack, and a virtual environment needs --system-site-packages"
        return Ability(usable=False, versions=versions, why=why, fix="sudo apt-get install -y python3-libnvinfer")
    if not kinds:
        why = "tensorrt and tensorrt_rtx are not installed, and one of them is needed"
        return Ability(usable=False, versions=versions, why=why, fix=install)
    if not gpus:
        builds = "builds engines, runs none" if "tensorrt_rtx" in kinds else "builds and runs none"
        there = has_nvidia_device()
        why = "an NVIDIA GPU is there, and no driver for it" if there else "no NVIDIA GPU with a driver"
        builds += ". The fix is Ubuntu's; other systems take NVIDIA's own installer" if there else ""
        fix = "sudo ubuntu-drivers install" if there else ""
        return Ability(usable=False, versions=versions, why=f"{why}: {builds}", fix=fix)
    if not versions["cuda.bindings"]:
        install = f"pip install 'cuda-python=={gpus[0].cuda.split('.')[0]}.*'" if is_jetson() else install
        return Ability(usable=False, versions=versions, why="cuda.bindings not installed", fix=install)
    newest = tuple(int(part) for part in gpus[0].cuda.split("."))
    usable = [package for package in kinds if (_cuda_of(package) or 0) <= newest[0]]
    if not usable:
        made = _cuda_of(kinds[0])
        return Ability(
            usable=False,
            versions=versions,
            why=f"{kinds[0]} is made for CUDA {made}, and the driver is for CUDA {gpus[0].cuda}; a newer one would do",
            fix=f"pip install {kinds[0].replace('_', '-')}-cu{newest[0]}",
        )
    newest_target = max(tuple(int(part) for part in target.split(".")) for target in targets)
    more = [name for name, least in LEAST_CAPABILITY.items() if newest_target >= least]
    return Ability(
        usable=True,
        versions=versions,
        precisions=("fp32", *more),
        why=f"runs engines that {' or '.join(usable)} of this version built for {names}, in what they were built in",
    )


def _cuda_of(package: str) -> int | None:
    """Return the CUDA version that an installed TensorRT is made for, None where its name does not tell."""
    for major in (12, 13, 14):
        try:
            metadata.version(f"{package}-cu{major}")
        except metadata.PackageNotFoundError:
            continue
        return major
    return None


ABILITIES: dict[str, Callable[[set[str], tuple[Gpu, ...]], Ability]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "triton": _triton,
    "tensorrt": _tensorrt,
}
