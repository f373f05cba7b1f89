"""What ``tensorrt.plugin`` demands of an ahead-of-time plugin, recorded from its bindings, versions 10.9 to 11.4.

A stand-in for machines without TensorRT: the same refusals of wrong signatures, fake expressions where shapes are not
known yet, scalars that must be SymInt32, and no arithmetic of a whole number with an expression on its right.
"""

import inspect
import operator
import types
import typing
from types import SimpleNamespace
from typing import Any


class SymInt32:
    """An integer, constant or known when the engine runs (``constant`` False). It has no reflected operators."""

    is_fake = False

    def __init__(self, value: Any, constant: bool = True) -> None:
        self.value = value.value if isinstance(value, SymInt32) else value
        self.constant = value.constant if isinstance(value, SymInt32) else constant

    def _apply(self, operation: Any, other: Any) -> "SymInt32":
        other = SymInt32(other)
        return type(self)(operation(self.value, other.value), self.constant and other.constant)

    def __add__(self, other: Any) -> "SymInt32":
        return self._apply(operator.add, other)

    def __sub__(self, other: Any) -> "SymInt32":
        return self._apply(operator.sub, other)

    def __mul__(self, other: Any) -> "SymInt32":
        return self._apply(operator.mul, other)

    def __floordiv__(self, other: Any) -> "SymInt32":
        return self._apply(operator.floordiv, other)

    @property
    def is_constant(self) -> bool:
        if self.is_fake:
            raise RuntimeError("Not accessible for fake 'ShapeExpr's. Check is_fake to determine accessibility.")
        return self.constant

    def constant_value(self) -> Any:
        if not self.is_constant:
            raise RuntimeError("Not accessible for non-constant integer expressions.")
        return self.value


class Fake(SymInt32):
    """A size outside of shape calculation: nothing may be asked of it."""

    is_fake = True

    def __init__(self, *_: Any) -> None:
        super().__init__(None)

    def _apply(self, operation: Any, other: Any) -> "Fake":
        return Fake()


class TensorDesc:
    def __init__(self, shape: Any, dtype: Any) -> None:
        self.shape_expr, self.dtype, self.ndim = list(shape), dtype, len(shape)

    def like(self) -> "TensorDesc":
        return TensorDesc(self.shape_expr, self.dtype)


class KernelLaunchParams:
    NAMES = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self) -> None:
        for name in self.NAMES:
            setattr(self, name, 0 if name == "shared_mem" else 1)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.NAMES:
            raise AttributeError(f"KernelLaunchParams object has no attribute '{name}'")
        self.__dict__[name] = SymInt32(value)


class SymIntExprs:
    def __init__(self, length: int) -> None:
        self.expressions: list[Any] = [None] * length

    def __setitem__(self, place: int, value: Any) -> None:
        self.expressions[place] = value

    def __getitem__(self, place: int) -> Any:
        return self.expressions[place]

    def __len__(self) -> int:
        return len(self.expressions)


def module() -> Any:
    """Return a fresh stand-in for the module ``tensorrt.plugin``."""
    op = SimpleNamespace()
    made = SimpleNamespace(
        op=op, TensorDesc=TensorDesc, KernelLaunchParams=KernelLaunchParams, SymInt32=SymInt32, SymIntExprs=SymIntExprs
    )

    def register(plugin_id: str, lazy_register: bool = False) -> Any:
        namespace, name = plugin_id.split("::")

        def decorate(function: Any) -> Any:
            signature = inspect.signature(function)
            space = op.__dict__.setdefault(namespace, SimpleNamespace())
            if hasattr(space, name):
                raise ValueError(f"already has a defintion for '{name}'")
            for parameter in signature.parameters.values():
                if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                    raise ValueError(f"Argument {parameter.name} is not positional-or-keyword")
                if not issubclass(parameter.annotation, TensorDesc):
                    raise ValueError(f"Argument {parameter.name} is no tensor; this stand-in knows no attributes")
            if not issubclass(signature.return_annotation, TensorDesc):
                raise ValueError("Return types can only be TensorDesc or Tuple[TensorDesc]")
            setattr(space, name, SimpleNamespace(register_func=function, names=list(signature.parameters)))
            return function

        return decorate

    def aot_impl(plugin_id: str) -> Any:
        namespace, name = plugin_id.split("::")

        def decorate(function: Any) -> Any:
            definition = getattr(getattr(op, namespace), name)
            signature = inspect.signature(function)
            # All attributes, of which there are none, come between the tensors and these two, by position.
            if list(signature.parameters) != [*definition.names, "outputs", "tactic"]:
                raise ValueError(f"Signature {signature} does not match the expected input arg schema")
            kinds = typing.get_args(signature.return_annotation)
            if typing.get_origin(signature.return_annotation) is not tuple or len(kinds) != 4:
                raise ValueError("Return annotation must be a tuple of four")
            text = (types.UnionType, typing.Union)
            if any(typing.get_origin(kind) not in text and kind not in (str, bytes) for kind in kinds[:2]):
                raise ValueError("Expected 'str' or 'bytes'")
            if not issubclass(kinds[2], KernelLaunchParams) or not issubclass(kinds[3], SymIntExprs):
                raise ValueError("Expected KernelLaunchParams and a descendent of SymExprs")
            definition.aot_impl_func = function
            return function

        return decorate

    made.register, made.aot_impl = register, aot_impl
    return made
