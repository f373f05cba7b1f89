"""FrameAttention's plugin at build time: its kernels, compiled for the targets, and its entry in the registry."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal

import onnx

from framert.export.tensorrt.api import Api
from framert.export.tensorrt.body import DOMAIN, OPERATOR
from framert.kernels.plugin import frame_attention
from framert.kernels.plugin.launch import Launch
from framert.kernels.specialization import ModelShape
from framert.runtime.errors import BackendError


def compile_kernels(shape: ModelShape, dtype: str, targets: Sequence[str]) -> list[Launch]:
    """Return the attention kernel of a transformer for each target.

    Args:
        dtype: what attention reads and writes: "fp16", "bf16" or "fp32".
    Raises: ConfigError for a target without kernels; BackendError where Triton cannot compile.
    """
    from framert.kernels.aot.compiler import check_environment, compile_kernel, compiling
    from framert.kernels.aot.targets import parse_targets

    found = parse_targets(targets)
    check_environment()
    from framert.kernels.frame_attention.kernel import specializations
    from framert.kernels.frame_attention.tiles import choose

    kinds: dict[str, Literal["fp16", "bf16", "fp32"]] = {"fp16": "fp16", "bf16": "bf16", "fp32": "fp32"}
    launches = []
    with compiling():
        for target in found:
            # One size of tile for everything: no bit then depends on what a sequence is packed with.
            queries = choose(shape.head_dim, kinds[dtype], target.capability).queries
            (chosen,) = (
                one
                for one in specializations(shape, kinds[dtype], target.capability)
                if one.constants["TILE"] == queries
            )
            launches.append(Launch.of(compile_kernel(chosen, target, op="frame_attention", model=shape.name)))
    return launches


@contextlib.contextmanager
def registered(api: Api, launches: Sequence[Launch]) -> Iterator[None]:
    """Let the parser make plugins of FrameAttention nodes within the block; nothing to do without kernels.

    Raises: BackendError if another plugin of that name is registered.
    """
    if not launches:
        yield
        return
    api.prepare_plugins()
    registry = api.module.get_plugin_registry()
    creator = frame_attention.creator(api.module, launches)
    if not registry.register_creator(creator, frame_attention.NAMESPACE):
        raise BackendError(f"another plugin {OPERATOR} is registered in this process; build in a process of its own")
    try:
        yield
    finally:
        registry.deregister_creator(creator)


def strip_functions(model: onnx.ModelProto) -> int:
    """Remove FrameAttention's local function, so that only the plugin can run it, and return how many nodes there are.

    TensorRT before 10.15 prefers functions to plugins.
    """
    kept = [function for function in model.functions if (function.domain, function.name) != (DOMAIN, OPERATOR)]
    del model.functions[:]
    model.functions.extend(kept)
    return sum((node.domain, node.op_type) == (DOMAIN, OPERATOR) for node in model.graph.node)


def digest(launches: Sequence[Launch]) -> str:
    """Return one hash of all kernels, empty for none: it names the timing cache."""
    if not launches:
        return ""
    return hashlib.sha256("".join(sorted(launch.kernel_hash for launch in launches)).encode()).hexdigest()
