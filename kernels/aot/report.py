"""What was compiled, as JSON, as a table for people, and as the committed table that tests compare with."""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from framert.kernels.aot.compiler import Compiled
from framert.kernels.aot.targets import MAX_REGISTERS, TARGETS

FORMAT = 1
DIGITS = 16  # of a kernel's hash in the committed table
COLUMNS = ("target", "model", "kernel", "warps", "registers", "spills", "shared_memory", "sha256", "triton")


def file_stem(kernel: Compiled) -> str:
    """Return the name of a kernel's files without suffix: unique in a folder of several targets and models."""
    return f"{kernel.target}-{kernel.model}-{kernel.name}"


def describe(kernel: Compiled) -> dict[str, Any]:
    """Return everything a launcher needs to know of one kernel, and what ptxas said of it."""
    return {
        "name": kernel.name,
        "op": kernel.op,
        "model": kernel.model,
        "entry": kernel.entry,
        "architecture": kernel.architecture,
        "grid": list(kernel.grid),
        "block": [32 * kernel.warps, 1, 1],
        "shared_memory": kernel.shared_memory,
        "registers": kernel.registers,
        "spills": kernel.spills,
        "scratch": 0,
        "hidden_parameters": 0,
        "arguments": [
            {"name": name, "type": kind, "divisible_by_16": name in kernel.divisible} for name, kind in kernel.arguments
        ],
        "constants": dict(kernel.constants),
        "sha256": kernel.kernel_hash,
        "ptx_version": f"{kernel.ptx_version // 10}.{kernel.ptx_version % 10}",
    }


def by_target(kernels: Iterable[Compiled]) -> list[dict[str, Any]]:
    """Return {target, ..., kernels: [...]} for each target, in the order they first appear."""
    found: dict[str, dict[str, Any]] = {}
    for kernel in kernels:
        target = TARGETS[kernel.target]
        entry = found.setdefault(
            kernel.target,
            {
                "target": target.name,
                "capability": target.capability,
                "platform": target.platform,
                "shared_memory_limit": target.shared_memory,
                "triton": kernel.triton,
                "ptxas": kernel.ptxas,
                "kernels": [],
            },
        )
        entry["kernels"].append(describe(kernel))
    return list(found.values())


def manifest(kernels: Sequence[Compiled], dtype: str) -> dict[str, Any]:
    """Return the contents of manifest.json of a folder of kernels: ``by_target``, with each kernel's files."""
    targets = by_target(kernels)
    files = {(kernel.target, kernel.model, kernel.name): kernel for kernel in kernels}
    for target in targets:
        for entry in target["kernels"]:
            kernel = files[target["target"], entry["model"], entry["name"]]
            for suffix, content in (("ptx", kernel.ptx.encode()), ("cubin", kernel.cubin)):
                entry[suffix] = {
                    "file": f"{file_stem(kernel)}.{suffix}",
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
    return {"format": FORMAT, "kind": "kernels", "dtype": dtype, "targets": targets}


def write_folder(folder: Path, kernels: Sequence[Compiled]) -> None:
    """Write a .ptx and a .cubin per kernel into an empty folder."""
    for kernel in kernels:
        (folder / f"{file_stem(kernel)}.ptx").write_text(kernel.ptx, encoding="utf-8")
        (folder / f"{file_stem(kernel)}.cubin").write_bytes(kernel.cubin)


def problems(kernels: Iterable[Compiled]) -> list[str]:
    """Return a sentence for each kernel that spills registers or does not fit its target."""
    found = []
    for kernel in kernels:
        target, what = TARGETS[kernel.target], f"{kernel.model} {kernel.name} on {kernel.target}"
        if kernel.spills:
            found.append(f"{what} spills {kernel.spills} bytes per thread")
        if kernel.shared_memory > target.shared_memory:
            found.append(f"{what} needs {kernel.shared_memory} bytes of shared memory, {target.shared_memory} allowed")
        if kernel.registers > MAX_REGISTERS:
            found.append(f"{what} needs {kernel.registers} registers, {MAX_REGISTERS} allowed")
    return found


def render(kernels: Sequence[Compiled]) -> str:
    """Return a table for a terminal."""
    lines: list[str] = []
    width = max((len(f"{kernel.model} {kernel.name}") for kernel in kernels), default=0)
    for entry in by_target(kernels):
        target = TARGETS[entry["target"]]
        limit, ptx = target.shared_memory // 1024, entry["kernels"][0]["ptx_version"]
        lines += [""] if lines else []
        lines.append(f"{target.name}: {target.platform}, PTX {ptx}, shared memory up to {limit} KiB")
        lines.append(f"  {'kernel':{width}}  threads  registers  spills  shared KiB")
        for item in entry["kernels"]:
            lines.append(
                f"  {item['model'] + ' ' + item['name']:{width}}  {item['block'][0]:7}  {item['registers']:9}  "
                f"{item['spills']:6}  {item['shared_memory'] / 1024:10.1f}"
            )
    return "\n".join(lines)


def rows(kernels: Iterable[Compiled]) -> list[dict[str, str]]:
    """Return the kernels as rows of the committed table. sha256: the first 16 digits of the kernel's hash."""
    return [
        {
            "target": kernel.target,
            "model": kernel.model,
            "kernel": kernel.name,
            "warps": str(kernel.warps),
            "registers": str(kernel.registers),
            "spills": str(kernel.spills),
            "shared_memory": str(kernel.shared_memory),
            "sha256": kernel.kernel_hash[:DIGITS],
            "triton": kernel.triton,
        }
        for kernel in kernels
    ]


def write_csv(path: Path, table: Iterable[dict[str, str]]) -> None:
    """Write the committed table, sorted."""
    ordered = sorted(table, key=lambda row: (TARGETS[row["target"]].capability, row["model"], row["kernel"]))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the committed table's rows."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
