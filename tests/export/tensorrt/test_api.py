"""The API over TensorRT's versions: what is missing or too old, and what each flavour can build for."""

import re
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import helper

from framert.export.tensorrt import api as api_module
from framert.export.tensorrt.api import Api, load
from framert.export.tensorrt.targets import Gpu
from framert.runtime.errors import BackendError, ConfigError

Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")


class FakeLogger:
    Severity = Severity


def fake(version: str) -> Any:
    """What Api needs of a module before anything is built."""
    return SimpleNamespace(__version__=version, ILogger=FakeLogger)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that replaces what importing a flavour gives: a module, or an error."""

    def install(result: Any) -> None:
        def import_module(name: str) -> Any:
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(api_module, "import_module", import_module)

    load.cache_clear()
    yield install
    load.cache_clear()


@pytest.mark.parametrize(
    ("flavour", "result", "message"),
    [
        ("cuda", None, "unknown backend 'cuda' to build for; choose one of tensorrt, tensorrt-rtx"),
        ("tensorrt", ModuleNotFoundError("No module named 'tensorrt'"), "pip install 'framert[tensorrt]'; on a Jetson"),
        ("tensorrt-rtx", ModuleNotFoundError("No module"), "needs the package tensorrt_rtx (No module); pip install"),
        ("tensorrt", OSError("libnvinfer.so.10: cannot open"), "(libnvinfer.so.10: cannot open)"),
        ("tensorrt", fake("8.6.1"), "tensorrt 8.6.1 is too old; version 10.3 or newer is needed"),
        ("tensorrt", fake("10.2.0.19"), "tensorrt 10.2.0.19 is too old"),
    ],
)
def test_missing_and_old_packages(installed: Any, flavour: str, result: Any, message: str) -> None:
    installed(result)
    with pytest.raises(BackendError, match=re.escape(message)):
        load(flavour)


def test_a_flavour_is_loaded_once(installed: Any) -> None:
    installed(fake("10.3.0"))
    assert load("tensorrt").number == (10, 3)
    assert load("tensorrt") is load("tensorrt")


def test_tensorrt_builds_for_the_gpu_it_runs_on(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(fake("10.3.0"))
    api = load("tensorrt")
    monkeypatch.setattr(api_module, "this_gpu", lambda: Gpu("Orin", "sm_87"))
    api.check_targets(["sm_87"])
    with pytest.raises(BackendError, match=r"sm_89 was asked for, and this machine's is sm_87; .*, or with --backend"):
        api.check_targets(["sm_89"])
    monkeypatch.setattr(api_module, "this_gpu", lambda: None)
    with pytest.raises(BackendError, match=r"sm_87 was asked for, and this machine has none; .* that has it$"):
        api.check_targets(["sm_87"])


def test_log_lines_by_verbosity(installed: Any) -> None:
    installed(fake("10.3.0"))
    log = load("tensorrt").log
    lines: list[str] = []
    log.say = lines.append
    for log.verbosity, told in ((0, []), (1, [1, 2, 3, 4]), (2, [1, 2, 3, 4, 5])):
        lines.clear()
        log.clear()
        for severity in Severity:
            log.receive(severity, f"{severity.value}\nline")
        assert lines == [f"{Severity(number).name.lower()}: {number}\nline" for number in told]
    assert log.errors_in_words() == "1 line; 2 line"
    log.clear()
    assert log.errors_in_words() == "it gives no reason; -vv shows all it says"


def test_errors_of_what_succeeds_are_told_once(installed: Any) -> None:
    installed(fake("10.3.0"))
    log = load("tensorrt").log
    lines: list[str] = []
    log.say = lines.append
    for log.verbosity in (0, 1):
        lines.clear()
        log.receive(Severity.ERROR, "bad")
        log.receive(Severity.ERROR, "no driver (cudaError 35: ...)")
        log.tell_errors()
        assert lines == ["error: bad"]
        assert not log.errors


def rtx_network() -> tuple[Api, Any, Any]:
    api = load("tensorrt-rtx")
    builder = api.builder()
    return api, builder, api.network(builder)


@pytest.mark.usefixtures("rtx")
def test_rtx_builds_for_these_targets() -> None:
    api = load("tensorrt-rtx")
    assert {"sm_86", "sm_89", "sm_120"} <= set(api.targets)
    api.check_targets(["sm_86", "sm_120"])
    with pytest.raises(BackendError, match=r"TensorRT-RTX 1\.\S+ does not build for sm_87; it has sm_75, .*has it$"):
        api.check_targets(["sm_87"])


@pytest.mark.usefixtures("rtx")
def test_rtx_has_every_name_that_is_used() -> None:
    assert set(api_module.RTX_TARGETS) <= set(load("tensorrt-rtx").targets)
    assert not load("tensorrt-rtx").has_timing_cache


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("compatible", "message"),
    [("version", "has no 'version' compatibility"), ("ampere+", "name several --target"), ("all", "one of none, ver")],
)
def test_compatibility_that_rtx_has_not(compatible: str, message: str) -> None:
    api, builder, _ = rtx_network()
    with pytest.raises(ConfigError, match=message):
        api.config(builder, ["sm_89"], weight_streaming=False, compatible=compatible)


@pytest.mark.usefixtures("rtx")
def test_operators_that_the_parser_lacks() -> None:
    assert load("tensorrt-rtx").missing_operators(["MatMul", "RMSNormalization", "SequenceEmpty"]) == ["SequenceEmpty"]


@pytest.mark.usefixtures("rtx")
def test_fp32_stays_fp32_and_networks_are_strongly_typed() -> None:
    api, builder, network = rtx_network()
    config = api.config(builder, ["sm_89", "sm_120"], weight_streaming=True, compatible="none")
    assert not config.get_flag(api.module.BuilderFlag.TF32)
    assert config.get_flag(api.module.BuilderFlag.WEIGHT_STREAMING)
    assert not config.get_flag(api.module.BuilderFlag.REQUIRE_USER_ALLOCATION)  # the two do not go together
    assert config.num_compute_capabilities == 2
    assert config.get_compute_capability(1) == api.module.ComputeCapability.SM120
    assert network.get_flag(api.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


@pytest.mark.usefixtures("rtx")
def test_a_refused_node_is_named(tmp_path: Path) -> None:
    float16, float32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    ends = [("x", float16), ("z", float32)], [("y", float16)]
    infos = [[helper.make_tensor_value_info(name, kind, [4]) for name, kind in which] for which in ends]
    nodes = [helper.make_node("Add", ["x", "z"], ["y"], name="layers.3.residual")]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", *infos), opset_imports=[helper.make_opsetid("", 23)], ir_version=11
    )
    (tmp_path / "mixed.onnx").write_bytes(proto.SerializeToString())
    api, _, network = rtx_network()
    with pytest.raises(
        BackendError, match=r"cannot parse mixed.onnx: node layers.3.residual \(Add\): .*same input types"
    ):
        api.parse(network, tmp_path / "mixed.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    api, _, network = rtx_network()
    with pytest.raises(BackendError, match=r"cannot parse text.onnx: "):
        api.parse(network, tmp_path / "text.onnx")
