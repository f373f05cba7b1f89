"""PTX as text: its parameters, and the two that Triton adds to every kernel."""

import re
from dataclasses import dataclass

HIDDEN = 2  # pointers to global scratch and to profile scratch, after the kernel's own parameters


@dataclass(frozen=True, slots=True)
class Entry:
    """What a PTX module says of its kernel. architecture: of its .target, such as "sm_90a"."""

    name: str
    parameters: tuple[str, ...]
    architecture: str


def entry(ptx: str) -> Entry:
    """Raises: ValueError unless ``ptx`` holds exactly one kernel."""
    targets = re.findall(r"^\.target\s+([\w]+)", ptx, re.MULTILINE)
    kernels = re.findall(r"\.visible\s+\.entry\s+([\w$]+)\s*\(([^)]*)\)", ptx)
    if len(kernels) != 1 or len(targets) != 1:
        raise ValueError(f"PTX of {len(kernels)} kernels and {len(targets)} targets, one of each expected")
    name, parameters = kernels[0]
    return Entry(name, tuple(part.strip() for part in parameters.split(",") if part.strip()), targets[0])


def without_hidden(ptx: str, arguments: int) -> str:
    """Return ``ptx`` without the hidden parameters, so that a launcher passes the kernel's own arguments and no more.

    Args:
        arguments: how many parameters the kernel has of its own.
    Raises: ValueError if it has another number of hidden ones, or reads them.
    """
    found = entry(ptx)
    if len(found.parameters) != arguments + HIDDEN:
        raise ValueError(f"{found.name} has {len(found.parameters)} parameters, {arguments} + {HIDDEN} expected")
    hidden = [re.split(r"\s+", parameter)[-1] for parameter in found.parameters[arguments:]]
    kept = ",\n\t".join(found.parameters[:arguments])
    head, tail = re.split(r"\.visible\s+\.entry\s+[\w$]+\s*\([^)]*\)", ptx)
    if read := [name for name in hidden if re.search(rf"\b{re.escape(name)}\b", tail)]:
        raise ValueError(f"{found.name} reads its hidden parameters {', '.join(read)}")
    return f"{head}.visible .entry {found.name}(\n\t{kept}\n){tail}"
