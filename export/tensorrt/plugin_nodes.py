"""FrameAttention's nodes in a graph, made ready for a plugin."""

from collections.abc import Sequence

import onnx
from onnx import helper

from framert.export.tensorrt.body import DOMAIN, OPERATOR
from framert.kernels.plugin.frame_attention import inputs_of
from framert.kernels.plugin.launch import Launch
from framert.kernels.plugin.recipe import NAMESPACE, VERSION, pack_recipes
from framert.kernels.plugin.recipe import OPERATOR as LAUNCHER
from framert.runtime.errors import BackendError

PROVIDER_DOMAIN = "trt.plugins"  # where ONNX Runtime's TensorRT provider looks for plugins; TensorRT does not mind
TOLERANCE = 1e-6  # attributes are fp32


def strip_functions(model: onnx.ModelProto) -> int:
    """Remove FrameAttention's local function, so that only the plugin can run it, and return how many nodes there are.

    TensorRT before 10.15 prefers functions to plugins.
    """
    kept = [function for function in model.functions if (function.domain, function.name) != (DOMAIN, OPERATOR)]
    del model.functions[:]
    model.functions.extend(kept)
    return len(_nodes(model))


def check_nodes(model: onnx.ModelProto, launches: Sequence[Launch]) -> None:
    """Raises: BackendError if kernels were compiled for another softcap, scale or number of inputs than a node's.

    Heads and types are checked by the plugin, which sees the tensors.
    """
    for node in _nodes(model):
        given = {one.name: one.f for one in node.attribute if one.name in ("softcap", "scale")}
        for launch in launches:
            if len(inputs_of(launch)) != len(node.input):
                raise BackendError(
                    f"the kernel {launch.entry} takes {len(inputs_of(launch))} inputs; node {node.name} has "
                    f"{len(node.input)}: one of them attends to a text beside its sequence, the other does not"
                )
            for name, value in given.items():
                compiled = launch.constants[name.upper()]
                if abs(compiled - value) > TOLERANCE * max(1.0, abs(value)):
                    raise BackendError(
                        f"the kernel {launch.entry} is for a {name} of {compiled:g}; node {node.name} has {value:g}"
                    )


def launcher_nodes(model: onnx.ModelProto, launches: Sequence[Launch]) -> int:
    """Turn FrameAttention's nodes into the C++ launcher's, which bring their kernels; return how many there are.

    The parser hands bytes on whole as a tensor, not as a string.
    """
    content = pack_recipes(launches)
    nodes = _nodes(model)
    for node in nodes:
        node.op_type, node.domain = LAUNCHER, PROVIDER_DOMAIN
        del node.attribute[:]
        kernels = helper.make_tensor("kernels", onnx.TensorProto.INT8, [len(content)], content, raw=True)
        values = {"plugin_namespace": NAMESPACE, "plugin_version": VERSION, "kernels": kernels}
        node.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())
    if nodes:
        model.opset_import.append(helper.make_opsetid(PROVIDER_DOMAIN, 1))
    return len(nodes)


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]
