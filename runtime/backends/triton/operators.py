"""ONNX operators as torch functions, and nothing of any one model.

Integers are shapes and indices: they stay on the host, where reading them costs no synchronisation. A function gets its
node's attributes and its inputs (None where one is left out). Sums of squares, norms and softmax are taken in fp32;
products run in the dtype of their weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from framert.runtime.backends.triton.graph_file import DTYPES
from framert.runtime.errors import BackendError

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor | Sequence[Tensor]]


def ints(tensor: Tensor) -> list[int]:
    """Return the values of an integer tensor as a flat list."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    sides = list(x.shape)[attributes.get("start", 0) : attributes.get("end", None)]
    return torch.tensor(sides, dtype=torch.int64)


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sides = ints(shape)
    if not attributes.get("allowzero", 0):
        sides = [side or x.shape[axis] for axis, side in enumerate(sides)]
    if -1 in sides and 0 in sides:  # torch refuses to guess the free side of an empty tensor
        known = math.prod(side for side in sides if side > 0)
        sides = [(x.numel() // known if known else 0) if side == -1 else side for side in sides]
    return x.reshape(sides)


def _squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


def _unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.dim() + axes.numel()
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _gather(attributes: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.dim()
    index = index.to(x.device, torch.int64)
    index = torch.where(index < 0, index + x.shape[axis], index)
    return x.index_select(axis, index.reshape(-1)).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _gather_nd(attributes: Attributes, x: Tensor, index: Tensor) -> Tensor:
    if attributes.get("batch_dims", 0):
        raise BackendError(f"backend 'triton' has no GatherND with {attributes['batch_dims']} batch axes")
    return x[tuple(index.unbind(-1))]


def _scatter_nd(attributes: Attributes, x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    if attributes.get("reduction", "none") != "none":
        raise BackendError(f"backend 'triton' has no ScatterND with reduction {attributes['reduction']!r}")
    return x.index_put(tuple(index.unbind(-1)), values.to(x.dtype))


def _arg_max(attributes: Attributes, x: Tensor) -> Tensor:
    if attributes.get("select_last_index", 0):
        raise BackendError("backend 'triton' has no ArgMax that takes the last of equals")
    return x.argmax(attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))  # the first of equals


def _pad(
    attributes: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    if attributes.get("mode", "constant") != "constant":
        raise BackendError(f"backend 'triton' has no Pad with mode {attributes['mode']!r}")
    places = list(range(x.dim())) if axes is None else ints(axes)
    given = ints(pads)
    sides = [0] * (2 * x.dim())
    for place, before, after in zip(places, given[: len(places)], given[len(places) :], strict=True):
        behind = x.dim() - 1 - place % x.dim()  # torch counts axes from the last one
        sides[2 * behind : 2 * behind + 2] = before, after
    return functional.pad(x, sides, value=0.0 if value is None else value.item())


def _slice(
    attributes: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = ints(starts), ints(ends)
    places = list(range(len(first))) if axes is None else ints(axes)
    strides = [1] * len(first) if steps is None else ints(steps)
    for begin, end, axis, step in zip(first, last, places, strides, strict=True):
        if step < 1:
            raise BackendError(f"backend 'triton' has no Slice with a step of {step}")
        selection = [slice(None)] * x.dim()
        selection[axis] = slice(begin, end, step)
        x = x[tuple(selection)]
    return x


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis = attributes.get("axis", 0)
    part = -(-x.shape[axis] // attributes["num_outputs"]) if sizes is None else ints(sizes)
    parts: tuple[Tensor, ...] = torch.functional.split(x, part, axis)
    return parts


def _expand(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    asked = ints(shape)
    rank = max(len(asked), x.dim())
    pairs = zip([1] * (rank - len(asked)) + asked, [1] * (rank - x.dim()) + list(x.shape), strict=True)
    return x.expand([own if side == 1 else side for side, own in pairs])


def _range(attributes: Attributes, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _where(attributes: Attributes, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x.to(condition.device), y.to(condition.device))


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    target = DTYPES[attributes["to"]]
    keeps = target.is_floating_point and x.is_floating_point()  # the executor decides between float types
    return x if keeps else x.to(target)


def _divide(attributes: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() or y.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _power(attributes: Attributes, x: Tensor, exponent: Tensor) -> Tensor:
    return x.float().pow(exponent.item()) if x.is_floating_point() else x.pow(exponent)


def _reduce(name: str) -> Operator:
    def reduce(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        if axes is None and attributes.get("noop_with_empty_axes", 0):
            return x
        places = list(range(x.dim())) if axes is None else ints(axes)
        result: Tensor = getattr(torch, name)(x.float(), places, keepdim=bool(attributes.get("keepdims", 1)))
        return result

    return reduce


def _softmax(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.softmax(x, attributes.get("axis", -1), dtype=torch.float32)


def _matmul(attributes: Attributes, x: Tensor, y: Tensor) -> Tensor:
    """Multiply in the lower of the two precisions: an fp32 statistic beside a weight in bf16 is rounded to bf16."""
    dtype = min(x.dtype, y.dtype, key=lambda item: item.itemsize)
    return x.to(dtype) @ y.to(dtype)


def _convolve(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or x.dim() != 4:
        raise BackendError(f"backend 'triton' has no Conv on {x.dim()} axes with {dict(attributes)}")
    pads = attributes.get("pads", [0, 0, 0, 0])
    top, left, bottom, right = pads
    x = x.to(weight.dtype)
    if (top, left) != (bottom, right):
        x, top, left = functional.pad(x, (left, right, top, bottom)), 0, 0
    return functional.conv2d(
        x.contiguous(memory_format=torch.channels_last),
        weight,
        None if bias is None else bias.to(weight.dtype),
        attributes.get("strides", [1, 1]),
        (top, left),
        attributes.get("dilations", [1, 1]),
        attributes.get("group", 1),
    )


def _instance_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    wide = functional.instance_norm(
        x.float(), weight=scale.float(), bias=bias.float(), eps=attributes.get("epsilon", 1e-5)
    )
    return wide.to(x.dtype)


def _group_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Statistics in fp32 over groups of channels; a channels-last x is read as it lies and stays so."""
    groups = attributes["num_groups"]
    last = x.movedim(1, -1)
    grouped = last.reshape(x.shape[0], -1, groups, x.shape[1] // groups)
    variance, mean = torch.var_mean(grouped.float(), (1, 3), correction=0, keepdim=True)
    factor = torch.rsqrt(variance + attributes.get("epsilon", 1e-5)) * scale.float().view(groups, -1)
    offset = bias.float().view(groups, -1) - mean * factor
    return (grouped.float() * factor + offset).to(x.dtype).reshape(last.shape).movedim(-1, 1)


def _layer_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    width = x.shape[attributes.get("axis", -1) :]
    shift = None if bias is None else bias.float()
    return functional.layer_norm(x.float(), width, scale.float(), shift, attributes.get("epsilon", 1e-5)).to(x.dtype)


def _rms_norm(attributes: Attributes, x: Tensor, scale: Tensor) -> Tensor:
    width = x.shape[attributes.get("axis", -1) :]
    return functional.rms_norm(x.float(), width, scale.float(), attributes.get("epsilon", 1e-5)).to(x.dtype)


def _resize(
    attributes: Attributes,
    x: Tensor,
    region: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    nearest = attributes.get("mode", "nearest") == "nearest" and attributes.get("nearest_mode") == "floor"
    if not nearest or attributes.get("coordinate_transformation_mode") != "asymmetric" or x.dim() != 4:
        raise BackendError(f"backend 'triton' has only Resize to the nearest pixel before, not {dict(attributes)}")
    if sizes is not None and sizes.numel():
        side = ints(sizes)[2:]
    else:
        assert scales is not None
        side = [math.floor(length * factor) for length, factor in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    return functional.interpolate(x, size=side, mode="nearest")


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Return the operator of any number of inputs that applies ``function`` from left to right."""

    def folded(attributes: Attributes, first: Tensor, *rest: Tensor) -> Tensor:
        for other in rest:
            first = function(first, other)
        return first

    return folded


def _plain(function: Callable[..., Tensor]) -> Operator:
    return lambda attributes, *inputs: function(*inputs)


OPERATORS: Mapping[str, Operator] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "ArgMax": _arg_max,
    "Cast": _cast,
    "Concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "Constant": lambda attributes: attributes["value"],
    "Conv": _convolve,
    "Cos": _plain(torch.cos),
    "Div": _divide,
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": _expand,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gelu": lambda attributes, x: functional.gelu(x, approximate=attributes.get("approximate", "none")),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "GroupNormalization": _group_norm,
    "Identity": lambda attributes, x: x,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "MatMul": _matmul,
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "Pad": _pad,
    "Pow": _power,
    "RMSNormalization": _rms_norm,
    "Range": _range,
    "Reciprocal": _plain(torch.reciprocal),
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Sin": _plain(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": lambda attributes, x: x.permute(attributes.get("perm", list(range(x.dim()))[::-1])),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}

# Inputs that are shapes, axes and bounds: read on the host, never moved to the device.
HOST_INPUTS: Mapping[str, frozenset[int]] = {
    "Expand": frozenset({1}),
    "Pad": frozenset({1, 2, 3}),
    "Pow": frozenset({1}),
    "Range": frozenset({0, 1, 2}),
    "ReduceMean": frozenset({1}),
    "ReduceSum": frozenset({1}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Unsqueeze": frozenset({1}),
}
