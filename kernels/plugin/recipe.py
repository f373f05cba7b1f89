"""Launches written for the C++ launcher plugin (cpp/): text that needs neither names of arguments nor constants.

A recipe's numbers are expressions over the sizes of the inputs alone: ``d3_0`` is axis 0 of input 3.
"""

import re
import struct
from collections.abc import Sequence
from typing import Any

from framert.kernels.plugin.frame_attention import INPUTS, RANGES, inputs_of, kernel_values
from framert.kernels.plugin.launch import Launch

OPERATOR, VERSION, NAMESPACE = "KernelLauncher", "1", "framert"
FORMAT = 1
RANKS = {name: 2 if name in RANGES else 1 if name == "gate" else 3 for name in INPUTS}


def recipe(launch: Launch) -> str:
    """Return the text of a launch of FrameAttention; every line is a keyword and its value, see launch_recipe.hpp."""
    names = inputs_of(launch)
    shapes = [[_Size(f"d{place}_{axis}") for axis in range(RANKS[name])] for place, name in enumerate(names)]
    values = kernel_values(shapes, [f"input {place}" for place in range(len(names))], "output 0")
    kinds = dict(launch.arguments)
    constants = {name: value for name, value in launch.constants.items() if type(value) is int}
    known = {name: f"({values[name]})" for name, kind in launch.arguments if kind == "i32"} | constants
    query = kinds["query_ptr"][1:]
    lines = [
        f"format {FORMAT}",
        f"target {launch.target}",
        f"entry {launch.entry}",
        f"hash {launch.kernel_hash}",
        f"threads {launch.threads}",
        f"shared_memory {launch.shared_memory}",
        "workspace 0",
        "grid " + " ; ".join(_written(expression, known) for expression in launch.grid),
        *(f"input {kinds[f'{name}_ptr'][1:]} {RANKS[name]}" for name in names),
        f"output {query} d0_0 ; d0_1 ; d0_2",
    ]
    for place, name in enumerate(names):
        if RANKS[name] == 3:
            heads = constants["HEADS" if name == "query" else "KV_HEADS"]
            lines += [f"require d{place}_1 = {heads}", f"require d{place}_2 = {constants['HEAD_DIM']}"]
    if "gate" in names:
        lines += [f"require d{names.index('gate')}_0 = {constants['HEADS']}"]
    for name, kind in launch.arguments:
        value = values[name] if kind.startswith("*") else f"i32 {values[name]}"
        lines.append(f"argument {value}" + (" divisible" if name in launch.divisible else ""))
    return "\n".join(lines) + "\n"


def pack_recipes(launches: Sequence[Launch]) -> bytes:
    """Return launches as the plugin's field: for each a length, its recipe, a length and its image (8 bytes each)."""
    content = b""
    for launch in launches:
        text = recipe(launch).encode()
        content += struct.pack("<Q", len(text)) + text + struct.pack("<Q", len(launch.image)) + launch.image
    return content


class _Size(str):
    """The name of a size, that multiplies into an expression."""

    def __mul__(self, other: Any) -> "_Size":
        return _Size(f"{self} * {other}")


def _written(expression: str, known: dict[str, Any]) -> str:
    """Return an expression with every name replaced. Raises: KeyError for one that is not known."""
    return re.sub(r"[A-Za-z_]\w*", lambda name: str(known[name[0]]), expression)
