"""The plugin without TensorRT and without a GPU: what it says of its tensors, and what it would launch."""

import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from framert.kernels.budget import assert_within_budget
from framert.kernels.frame_attention import kernel, reference
from framert.kernels.plugin import frame_attention as plugin_module
from framert.kernels.plugin.frame_attention import INPUTS, creator, kernel_values
from framert.kernels.plugin.launch import Launch, pack
from framert.runtime.errors import BackendError

FOLDER = str(Path(__file__).parent)
sys.path.insert(0, FOLDER)
from attention_launches import SHAPE, launches, shapes  # noqa: E402

sys.path.remove(FOLDER)

DataType = Enum("DataType", "HALF BF16 FLOAT INT32")
Format = Enum("Format", "LINEAR CHW32")


class Base:
    pass


def fake_trt() -> Any:
    """What the plugin needs of TensorRT's module."""
    field = lambda name, data, kind: SimpleNamespace(name=name, data=data, type=kind)  # noqa: E731
    bases = {
        name: type(name, (Base,), {})
        for name in ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One")
    }
    return SimpleNamespace(
        **bases,
        TensorFormat=Format,
        int32=DataType.INT32,
        float32=DataType.FLOAT,
        PluginField=field,
        PluginFieldCollection=list,
        PluginFieldType=SimpleNamespace(FLOAT32="f", INT8="b"),
    )


def fields(**more: Any) -> list[Any]:
    values = {"softcap": SHAPE.softcap, "scale": SHAPE.head_dim**-0.5}
    given = [SimpleNamespace(name=name, data=np.array([value], np.float32)) for name, value in values.items()]
    return given + [SimpleNamespace(name=name, data=data) for name, data in more.items()]


def descriptions(dtype: Any = DataType.HALF, *, text: bool = True) -> list[Any]:
    sizes = shapes(text=text)
    kinds = [DataType.INT32 if name.endswith("range") else dtype for name in INPUTS[: len(sizes)]]
    if text:
        kinds[-1] = DataType.FLOAT
    return [
        SimpleNamespace(desc=SimpleNamespace(type=kind, format=Format.LINEAR, dims=size))
        for kind, size in zip([*kinds, dtype], [*sizes, sizes[0]], strict=True)
    ]


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp16", DataType.HALF), ("bf16", DataType.BF16), ("fp32", DataType.FLOAT)]
)
@pytest.mark.parametrize("text", [True, False], ids=["with text", "without text"])
def test_types_and_formats(dtype: str, kind: Any, text: bool) -> None:
    plugin = creator(fake_trt(), launches(dtype, text=text)).create_plugin("node", fields(), None)
    good = descriptions(kind, text=text)
    count = len(good) - 1
    assert all(plugin.supports_format_combination(place, good, count) for place in range(count + 1))
    for place in range(count + 1):
        bad = descriptions(kind, text=text)
        bad[place].desc.format = Format.CHW32
        assert not plugin.supports_format_combination(place, bad, count)
        bad = descriptions(kind, text=text)
        bad[place].desc.type = next(other for other in DataType if other != good[place].desc.type)
        assert not plugin.supports_format_combination(place, bad, count)
    assert plugin.get_output_data_types([kind] * count) == [kind]
    assert plugin.get_output_shapes(["query", "key"], [], None) == ["query"]
    assert plugin.get_workspace_size([], []) == 0


def test_a_node_without_its_attributes_is_refused() -> None:
    with pytest.raises(BackendError, match="the node n of FrameAttention lacks scale"):
        creator(fake_trt(), launches()).create_plugin("n", fields()[:1], None)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"HEADS": 8}, "is for 8 heads on 2 of 24"),
        ({"SOFTCAP": 0.0}, "softcap 0 and scale .*; the node has 4 on 2 of 24, 30 and"),
        ({"SCALE": 1.0}, "scale 1;"),
    ],
)
def test_kernels_of_another_attention_are_refused(constants: dict[str, Any], message: str) -> None:
    wrong = [replace(one, constants=dict(one.constants) | constants) for one in launches()]
    plugin = creator(fake_trt(), wrong).create_plugin("node", fields(), None)
    with pytest.raises(BackendError, match=message):
        plugin.configure_plugin(descriptions()[:9], descriptions()[9:])


def test_right_kernels_are_taken() -> None:
    plugin = creator(fake_trt(), launches()).create_plugin("node", fields(), None)
    plugin.configure_plugin(descriptions()[:9], descriptions()[9:])


def test_an_engine_brings_its_kernels() -> None:
    built = creator(fake_trt(), launches()).create_plugin("node", fields(), None)
    written = {field.name: field for field in built.get_fields_to_serialize()}
    assert written["kernels"].data.tobytes() == pack(launches())
    run = creator(fake_trt()).create_plugin("node", list(written.values()), None)
    assert run.launches == launches()
    assert run.scalars == pytest.approx(built.scalars)
    assert run.clone().launches == run.attach_to_context(None).launches == launches()


class FakeDriver:
    """A GPU of compute capability 8.9 that records what it is told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def context(self) -> int:
        return 1

    def target(self) -> str:
        return "sm_89"

    def load(self, launch: Launch) -> str:
        self.calls.append(("load", launch.target))
        return "function"

    def launch(self, function: str, launch: Launch, blocks: Any, parameters: Any, stream: int) -> None:
        self.calls.append((blocks, [one.value for one in parameters], stream))


def test_what_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(plugin_module, "Driver", lambda: driver)
    plugin = creator(fake_trt(), launches()).create_plugin("node", fields(), None)
    pointers = [256 * (place + 1) for place in range(9)]
    for tokens in (50, 200):
        tensors = [SimpleNamespace(dims=size) for size in shapes(tokens)]
        plugin.enqueue(tensors, tensors[:1], pointers, [4096], 0, 5)
    (load, first, second) = driver.calls  # the kernel is loaded once
    assert load == ("load", "sm_89")
    tile = launches()[1].constants["TILE"]
    for tokens, (blocks, parameters, stream) in zip((50, 200), (first, second), strict=True):
        assert blocks == ((tokens + 3 * (tile - 1)) // tile + 3 + 1, SHAPE.heads, 1)  # as kernel.frame_attention does
        assert parameters == [*pointers, tokens, 3, 96, 48, 48, 48, 48, 96, 4096]
        assert stream == 5


def test_all_layers_and_contexts_share_one_loaded_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each context has a clone of each layer's plugin: a copy of the kernel for each would pile up on the device."""
    drivers: list[FakeDriver] = []

    def driver() -> FakeDriver:
        drivers.append(FakeDriver())
        return drivers[-1]

    monkeypatch.setattr(plugin_module, "Driver", driver)
    made = creator(fake_trt())
    kernels = creator(fake_trt(), launches()).create_plugin("node", fields(), None).get_fields_to_serialize()
    tensors = [SimpleNamespace(dims=size) for size in shapes(50)]
    for layer in ("first", "second"):
        plugin = made.create_plugin(layer, list(kernels), None)
        for _ in range(2):
            plugin.attach_to_context(None).enqueue(tensors, tensors[:1], [256] * 9, [4096], 0, 5)
    calls = [call for one in drivers for call in one.calls]
    assert len(drivers) == 4
    assert (calls.count(("load", "sm_89")), len(calls)) == (1, 5)
    monkeypatch.setattr(FakeDriver, "context", lambda _: 2)  # another device, or the first one reset
    plugin.attach_to_context(None).enqueue(tensors, tensors[:1], [256] * 9, [4096], 0, 5)
    assert drivers[-1].calls[0] == ("load", "sm_89")


def test_a_gpu_without_a_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_module, "Driver", FakeDriver)
    plugin = creator(fake_trt(), launches(targets=("sm_86", "sm_120"))).create_plugin("node", fields(), None)
    with pytest.raises(BackendError, match="holds kernels for sm_86, sm_120, and this GPU is sm_89; build it for that"):
        plugin.enqueue([], [], [], [], 0, 5)


@pytest.mark.parametrize("text", [(5, 0, 2), (1, 1, 1), None], ids=str)
def test_the_arguments_make_the_kernel_compute_attention(text: tuple[int, ...] | None, device: str) -> None:
    """The plugin's grid and arguments by name, given to the kernel itself."""
    torch.manual_seed(0)
    lengths = (17, 0, 33)
    tokens, (launch,) = sum(lengths), launches("fp32", ("sm_80",), text=text is not None)

    def ranges(sizes: tuple[int, ...]) -> torch.Tensor:
        ends = np.cumsum(sizes)
        return torch.tensor([(end - size, size) for end, size in zip(ends, sizes, strict=True)], dtype=torch.int32)

    sizes = dict(zip(INPUTS, shapes(tokens, len(lengths), sum(text or ()), text=text is not None), strict=False))
    tensors = {name: torch.randn(size, device=device) for name, size in sizes.items()}
    tensors |= {"q_range": ranges(lengths), "kv_range": ranges(lengths)}
    if text is not None:
        tensors["text_range"] = ranges(text)
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    out = torch.full_like(tensors["query"], float("nan"))
    values: dict[str, Any] = kernel_values(list(sizes.values()), list(tensors.values()), out)  # type: ignore[arg-type]
    numbers = {name: value for name, value in values.items() if not name.endswith("_ptr")}
    constants = dict(launch.constants) | {"HARDWARE_TANH": False}
    ordered = {name: values[name] for name, _ in launch.arguments}
    kernel._frame_attention_kernel[launch.blocks(numbers)](**ordered, **constants)
    scalars = {"softcap": SHAPE.softcap, "scale": SHAPE.head_dim**-0.5}
    low = reference.frame_attention(*tensors.values(), **scalars)
    exact = reference.frame_attention(
        *(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors.values()), **scalars
    )
    assert_within_budget(out, low, exact)
