"""A compiled kernel with its launch, small enough to lie inside an engine: image, grid rule and argument list."""

import ast
import ctypes
import json
import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from framert.runtime.errors import BackendError

ALIGNMENT = 16  # what "divisible" promises of an argument
_OPERATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,  # C's division; nothing here is negative
    ast.Mod: lambda a, b: a - a // b * b,  # TensorRT's expressions have no remainder
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One kernel for one target, as ``kernels.aot`` compiles it.

    Args:
        target: such as "sm_89". entry: the function's name in ``image``.
        arguments: (name, Triton's type) in order: pointers ("*bf16") and "i32" scalars.
        divisible: arguments that are promised to be multiples of 16.
        constants: what was compiled in.
        grid: one C expression per axis over names of "i32" arguments and of ``constants``.
        threads: in a block. shared_memory: dynamic, in bytes.
        kernel_hash: sha256 of what the kernel was made from.
        image: a cubin, or PTX as text, which the CUDA driver compiles.
    """

    target: str
    entry: str
    arguments: tuple[tuple[str, str], ...]
    divisible: tuple[str, ...]
    constants: Mapping[str, Any]
    grid: tuple[str, str, str]
    threads: int
    shared_memory: int
    kernel_hash: str
    image: bytes

    @classmethod
    def of(cls, compiled: Any, *, ptx: bool = False) -> "Launch":
        """Return the launch of a ``kernels.aot.compiler.Compiled``, with its PTX in place of its cubin if asked for."""
        return cls(
            target=compiled.target,
            entry=compiled.entry,
            arguments=compiled.arguments,
            divisible=compiled.divisible,
            constants=dict(compiled.constants),
            grid=compiled.grid,
            threads=32 * compiled.warps,
            shared_memory=compiled.shared_memory,
            kernel_hash=compiled.kernel_hash,
            image=compiled.ptx.encode() if ptx else compiled.cubin,
        )

    def blocks(self, values: Mapping[str, Any], number: Callable[[int], Any] = int) -> tuple[Any, Any, Any]:
        """Return the grid for values of the "i32" arguments. number: see ``evaluate``."""
        known = {name: value for name, value in self.constants.items() if isinstance(value, int)} | dict(values)
        x, y, z = (evaluate(expression, known, number) for expression in self.grid)
        return x, y, z

    def parameters(self, values: Mapping[str, int]) -> list[ctypes.c_uint64 | ctypes.c_int32]:
        """Return the kernel's parameters in order, from addresses and numbers by name.

        Raises: BackendError for a value that is missing, unknown, too large, or not the multiple of 16 it must be.
        """
        names = [name for name, _ in self.arguments]
        if set(names) != set(values):
            raise BackendError(f"{self.entry} takes {', '.join(names)}; given {', '.join(values)}")
        for name in self.divisible:
            if values[name] % ALIGNMENT:
                raise BackendError(f"{self.entry}: {name} is {values[name]}, which {ALIGNMENT} does not divide")
        packed: list[ctypes.c_uint64 | ctypes.c_int32] = []
        for name, kind in self.arguments:
            if kind.startswith("*"):
                packed.append(ctypes.c_uint64(values[name]))
            elif kind == "i32" and 0 <= values[name] < 1 << 31:
                packed.append(ctypes.c_int32(values[name]))
            else:
                raise BackendError(f"{self.entry}: {name} is {values[name]}, which {kind} does not hold")
        return packed


def evaluate(expression: str, values: Mapping[str, Any], number: Callable[[int], Any] = int) -> Any:
    """Return an expression of names, whole numbers, + - * / % and brackets, with C's division.

    Args:
        values: whole numbers by name, or whatever else adds and multiplies, such as TensorRT's expressions of shapes.
        number: makes such a value of a whole number.
    Raises: BackendError for anything else.
    """

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Name) and node.id in values:
            known = values[node.id]
            return number(known) if isinstance(known, int) else known
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return number(node.value)
        raise BackendError(f"the grid {expression!r} holds {ast.unparse(node)!r}; known are {', '.join(values)}")

    return value(ast.parse(expression, mode="eval").body)


def pack(launches: Sequence[Launch]) -> bytes:
    """Return kernels as bytes: for each a length, JSON, a length, and the image; lengths are 8 bytes, little-endian."""
    content = b""
    for launch in launches:
        fields = asdict(launch)
        image = fields.pop("image")
        text = json.dumps(fields).encode()
        content += struct.pack("<Q", len(text)) + text + struct.pack("<Q", len(image)) + image
    return content


def unpack(content: bytes) -> list[Launch]:
    """Return the kernels of ``pack``. Raises: BackendError if the bytes are not whole."""
    launches, place = [], 0

    def take(size: int) -> bytes:
        nonlocal place
        part = content[place : place + size]
        if len(part) != size:
            raise BackendError("the kernels inside the engine are not whole; build the engine again")
        place += size
        return part

    while place < len(content):
        (length,) = struct.unpack("<Q", take(8))
        fields = json.loads(take(length))
        (size,) = struct.unpack("<Q", take(8))
        fields["arguments"] = tuple((name, kind) for name, kind in fields["arguments"])
        fields |= {"divisible": tuple(fields["divisible"]), "grid": tuple(fields["grid"])}
        launches.append(Launch(**fields, image=take(size)))
    return launches
