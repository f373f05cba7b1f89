"""One kernel, one target: Triton to PTX, the hidden parameters off, ptxas to a cubin, and what ptxas reports of it."""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framert.kernels.aot import ptx as ptx_text
from framert.kernels.aot.targets import Target
from framert.kernels.specialization import Specialization
from framert.runtime.errors import BackendError

INSTALL = "pip install 'framert[triton]'"
# Triton brings two assemblers; these capabilities select them. A cubin of CUDA 13's is refused by drivers of CUDA 12.
CUDA_12, CUDA_13 = 80, 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One kernel for one target.

    Args:
        entry: the function's name in ``ptx`` and ``cubin``; both take ``arguments`` and nothing else.
        arguments: (name, Triton's type) in order: pointers ("*bf16") and "i32" scalars.
        grid: one C expression per axis over names of arguments and constants.
        warps: of 32 threads in a block.
        shared_memory: dynamic shared memory in bytes.
        registers: per thread. spills: bytes per thread stored to and loaded from memory for want of registers.
        architecture: what ``ptx`` is for; a trailing "a" runs on this very compute capability alone.
        triton, ptxas: the versions of what made it.
        kernel_hash: sha256 of what the kernel is made from: source, constants, types, launch, target, Triton's version.
    """

    op: str
    model: str
    name: str
    target: str
    entry: str
    arguments: tuple[tuple[str, str], ...]
    divisible: tuple[str, ...]
    constants: Mapping[str, Any]
    grid: tuple[str, str, str]
    warps: int
    stages: int
    shared_memory: int
    registers: int
    spills: int
    architecture: str
    ptx_version: int
    kernel_hash: str
    triton: str
    ptxas: str
    ptx: str
    cubin: bytes


def check_environment() -> str:
    """Return Triton's version.

    Raises: BackendError where kernels cannot be compiled here: the interpreter is on, or triton or ptxas are missing.
    """
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y"):
        raise BackendError(
            "TRITON_INTERPRET is set, so Triton interprets kernels and compiles none; unset TRITON_INTERPRET"
        )
    try:
        import torch  # noqa: F401  # which the kernels' modules import
        import triton
    except ModuleNotFoundError as error:
        package = (error.name or "a package").split(".")[0]
        raise BackendError(f"compiling kernels needs {package}, which is not installed; {INSTALL}") from error
    for capability in (CUDA_12, CUDA_13):
        _ptxas(capability)
    return str(triton.__version__)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Compile without Triton's cache and without line information, which would hold this machine's paths."""
    from triton import knobs

    with (
        tempfile.TemporaryDirectory(prefix="framert-kernels-") as folder,
        knobs.compilation.scope(),
        knobs.cache.scope(),
    ):
        knobs.cache.dir = folder
        knobs.compilation.disable_line_info = True
        yield


def compile_kernel(specialization: Specialization, target: Target, *, op: str = "", model: str = "") -> Compiled:
    """Compile one kernel; call it within ``compiling``.

    Raises: BackendError if Triton or ptxas refuse it, or it needs scratch memory, which no launcher here provides.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    what = f"{specialization.name} for {target.name}"
    names = list(specialization.signature)
    source = ASTSource(
        fn=specialization.kernel,
        signature=dict(specialization.signature),
        constexprs={(names.index(name),): value for name, value in specialization.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in sorted(specialization.divisible)},
    )
    options = {
        "num_warps": specialization.warps,
        "num_stages": specialization.stages,
        "ptx_version": target.ptx_version,
        "enable_fp_fusion": True,  # Triton's default up to 3.9, said aloud because 3.10 changes it
    }
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where Triton prints the PTX that ptxas refuses
            kernel = triton.compile(source, target=GPUTarget("cuda", target.capability, 32), options=options)
    except Exception as error:  # Triton raises its own types, LLVM's and RuntimeError
        raise BackendError(f"{what} does not compile: {_reason(str(error))}") from error
    metadata = kernel.metadata
    if metadata.global_scratch_size or getattr(metadata, "profile_scratch_size", 0):
        raise BackendError(f"{what} needs scratch memory ({metadata.global_scratch_size} bytes); there is none")
    arguments = tuple((name, kind) for name, kind in specialization.signature.items() if kind != "constexpr")
    try:
        text = ptx_text.without_hidden(kernel.asm["ptx"], len(arguments))
    except ValueError as error:
        raise BackendError(f"{what}: {error}; this Triton calls kernels in a way that framert does not know") from error
    entry = ptx_text.entry(text)
    ptxas = _ptxas(CUDA_12 if target.ptx_version < 90 else CUDA_13)
    cubin, registers, spills = assemble(text, entry.architecture, ptxas, what)
    return Compiled(
        op=op,
        model=model,
        name=specialization.name,
        target=target.name,
        entry=entry.name,
        arguments=arguments,
        divisible=tuple(name for name, _ in arguments if name in specialization.divisible),
        constants=dict(specialization.constants),
        grid=specialization.grid,
        warps=metadata.num_warps,
        stages=specialization.stages,
        shared_memory=metadata.shared,
        registers=registers,
        spills=spills,
        architecture=entry.architecture,
        ptx_version=target.ptx_version,
        kernel_hash=kernel_hash(specialization, target),
        triton=str(triton.__version__),
        ptxas=_version(ptxas),
        ptx=text,
        cubin=cubin,
    )


def kernel_hash(specialization: Specialization, target: Target) -> str:
    """Return the sha256 of everything a kernel is made from; two kernels with one hash are the same kernel."""
    import triton

    parts = {
        "source": specialization.kernel.cache_key,  # with the functions and constants it uses
        "signature": dict(specialization.signature),
        "constants": dict(specialization.constants),
        "divisible": sorted(specialization.divisible),
        "launch": [specialization.warps, specialization.stages, *specialization.grid],
        "target": [target.capability, target.ptx_version],
        "triton": str(triton.__version__),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def assemble(ptx: str, architecture: str, ptxas: str, what: str) -> tuple[bytes, int, int]:
    """Return (cubin, registers per thread, spilled bytes per thread) of a PTX module, by the assembler at ``ptxas``.

    Raises: BackendError with ptxas's first complaint.
    """
    with tempfile.TemporaryDirectory(prefix="framert-ptxas-") as folder:
        text, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        text.write_text(ptx)
        # regAllocOptLevel as Triton itself calls it, around a defect of ptxas 13
        command = [
            ptxas,
            "-v",
            "--regAllocOptLevel=2",
            f"--gpu-name={architecture}",
            str(text),
            "-o",
            str(cubin),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        report = done.stdout + done.stderr
        if done.returncode:
            raise BackendError(f"ptxas refuses {what}: {_reason(report)}")
        registers = re.findall(r"Used (\d+) registers", report)
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
        if len(registers) != 1 or len(spills) != 1:
            raise BackendError(f"ptxas says nothing of the registers of {what}; is TRITON_PTXAS_PATH really ptxas?")
        return cubin.read_bytes(), int(registers[0]), sum(map(int, spills[0]))


def _ptxas(capability: int) -> str:
    """Return the assembler Triton uses for ``capability``. Raises: BackendError where there is none."""
    from triton.backends.nvidia.compiler import get_ptxas

    try:
        path = str(get_ptxas(capability).path)
    except (RuntimeError, OSError, AttributeError) as error:
        raise BackendError(f"compiling kernels needs ptxas, which this triton lacks ({error}); {INSTALL}") from error
    if not os.access(path, os.X_OK):
        raise BackendError(f"compiling kernels needs ptxas, and {path} cannot be run; {INSTALL}")
    return path


@functools.cache
def _version(ptxas: str) -> str:
    """Return an assembler's version, such as "12.9.86"."""
    said = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bV(\d+(?:\.\d+)+)", said)
    return found[1] if found else "unknown"


def _reason(report: str) -> str:
    """Return the first line that names an error, else the last one: where LLVM and Python put theirs."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"(?<!PTXAS )\berror\s*:", line)]
    return (named or lines[-1:] or ["no reason given"])[0]
