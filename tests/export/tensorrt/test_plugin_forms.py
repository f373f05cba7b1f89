"""The forms of the attention plugin: what each needs, what is refused, what its nodes and its manifest hold."""

import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

pytest.importorskip("triton", reason="needs triton: pip install 'framert[triton]'")

from framert.export.tensorrt import api as api_module
from framert.export.tensorrt import plugin as plugin_module
from framert.export.tensorrt.api import Api
from framert.export.tensorrt.plugin import Plugin, check_form
from framert.kernels.aot.ops import BLOCKS
from framert.kernels.frame_attention.kernel import specializations
from framert.kernels.plugin.launch import Launch
from framert.kernels.plugin.recipe import recipe
from framert.runtime.errors import BackendError, ConfigError

DEPTH = 8  # layers of models/blocks
FOLDER = Path(__file__).parents[2] / "kernels" / "plugin"
sys.path.insert(0, str(FOLDER))
import plugin_contract  # noqa: E402

sys.path.remove(str(FOLDER))


def launch(target: str = "sm_89", **changes: Any) -> Launch:
    """The kernel of models/blocks, not compiled."""
    one = specializations(BLOCKS, "fp16", int(target.removeprefix("sm_")))[0]
    arguments = tuple((name, kind) for name, kind in one.signature.items() if kind != "constexpr")
    return Launch(
        target=target,
        entry="kernel",
        arguments=arguments,
        divisible=tuple(name for name, _ in arguments if name in one.divisible),
        constants=dict(one.constants) | changes,
        grid=one.grid,
        threads=32 * one.warps,
        shared_memory=1024,
        kernel_hash="0123456789abcdef" + target,
        image=target.encode(),
    )


class Registry:
    """A plugin registry. loads: whether load_library takes what it is given."""

    def __init__(self, loads: bool = True) -> None:
        self.creators: list[Any] = []
        self.loads, self.libraries = loads, []

    def register_creator(self, creator: Any, namespace: str) -> bool:
        if self.creators:
            return False
        self.creators.append(creator)
        return True

    def deregister_creator(self, creator: Any) -> None:
        self.creators.remove(creator)

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        assert (name, version, namespace) == ("FrameAttention", "1", "framert")
        return self.creators[0] if self.creators else None

    def load_library(self, path: str) -> Any:
        if not self.loads:
            return None
        self.libraries.append(path)
        return path

    def deregister_library(self, handle: Any) -> None:
        self.libraries.remove(handle)


def fake(flavour: str, version: str, registry: Registry | None = None) -> Api:
    severity = SimpleNamespace(**dict.fromkeys(("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"), 0))
    logger = type("Logger", (), {"Severity": severity})
    module = SimpleNamespace(__version__=version, ILogger=logger, get_plugin_registry=lambda: registry)
    return Api(flavour, module)


@pytest.fixture
def aot_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Return a function that replaces what importing ``tensorrt.plugin`` gives: a module, or an error."""

    def install(result: Any) -> None:
        def import_module(name: str) -> Any:
            assert name == "tensorrt.plugin"
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(api_module, "import_module", import_module)

    return install


@pytest.mark.parametrize(
    ("flavour", "version", "form", "library", "error", "message"),
    [
        ("tensorrt-rtx", "1.7.1", "aot", None, BackendError, "'aot' is of TensorRT, and TensorRT-RTX has no such"),
        ("tensorrt", "10.7.0", "aot", None, BackendError, "needs TensorRT 10.9 or newer, and this is 10.7.0; choose"),
        ("tensorrt", "10.9.0", "aot", None, BackendError, "'aot' needs tensorrt.plugin (no module); pip install"),
        ("tensorrt", "10.9.0", "library", None, ConfigError, "'library' takes libframert_plugin.so, which kernels/"),
        ("tensorrt", "10.9.0", "aot", "p.so", ConfigError, "'aot' and plugin library 'p.so' do not go together"),
        ("tensorrt", "10.9.0", "padded", "p.so", ConfigError, "'padded' and plugin library 'p.so' do not go together"),
        ("tensorrt", "10.9.0", "library", "p.so", ConfigError, "there is no plugin library p.so; build it from"),
    ],
)
def test_what_cannot_be_had_is_told(
    flavour: str, version: str, form: str, library: str | None, error: Any, message: str,
    aot_module: Callable[[Any], None],
) -> None:  # fmt: skip
    aot_module(ImportError("no module"))
    with pytest.raises(error, match=re.escape(message)):
        check_form(fake(flavour, version), form, library and Path(library))


def test_what_can_be_had_passes(aot_module: Callable[[Any], None], tmp_path: Path) -> None:
    aot_module(plugin_contract.module())
    check_form(fake("tensorrt", "10.9.0"), "aot", None)
    check_form(fake("tensorrt", "11.4.0"), "aot", None)
    check_form(fake("tensorrt-rtx", "1.7.1"), "plugin", None)
    (tmp_path / "p.so").touch()
    check_form(fake("tensorrt", "10.3.0"), "library", tmp_path / "p.so")


def test_the_quickly_deployable_plugin_is_defined_once_and_registered_while_it_builds(
    aot_module: Callable[[Any], None],
) -> None:
    registry = Registry()
    contract = plugin_contract.module()
    register = contract.register

    def registering(identity: str, lazy_register: bool) -> Any:
        assert not lazy_register
        registry.creators.append("creator")  # what TensorRT does
        return register(identity, lazy_register)

    contract.register = registering
    aot_module(contract)
    api = fake("tensorrt", "10.9.0", registry)
    for target in ("sm_89", "sm_90"):
        with Plugin(form="aot", launches=(launch(target),)).registered(api):
            assert registry.creators == ["creator"]
            assert plugin_module._embedding(api)[0].launch == launch(target)
        assert registry.creators == []
    registry.creators.append("another")
    with (
        pytest.raises(BackendError, match="another plugin FrameAttention is registered"),
        Plugin(form="aot", launches=(launch(),)).registered(api),
    ):
        pass
    with (
        pytest.raises(BackendError, match="another plugin FrameAttention is registered"),
        Plugin(form="aot", launches=(launch(),)).registered(fake("tensorrt", "10.9.0", registry)),
    ):
        pass


def test_a_library_is_loaded_while_it_builds() -> None:
    registry = Registry()
    with Plugin(form="library", launches=(launch(),), library=Path("p.so")).registered(
        fake("tensorrt", "10.3.0", registry)
    ):
        assert registry.libraries == ["p.so"]
    assert registry.libraries == []
    with (
        pytest.raises(BackendError, match=r"cannot load the plugin library p.so: .* against this TensorRT"),
        Plugin(form="library", launches=(launch(),), library=Path("p.so")).registered(
            fake("tensorrt", "10.3.0", Registry(loads=False))
        ),
    ):
        pass


@pytest.mark.parametrize(
    ("form", "needed"), [("plugin", "FrameAttention"), ("aot", None), ("library", "KernelLauncher")]
)
def test_the_manifest_says_what_must_be_registered_where_the_engine_runs(form: str, needed: str | None) -> None:
    described = Plugin(form=form, launches=(launch("sm_86"), launch("sm_120"))).described
    assert described.pop("plugins", None) == needed
    assert described == {"attention": form, "kernels": "sm_86:0123456789abcdef,sm_120:0123456789abcdef"}


def test_the_launchers_nodes_bring_their_kernels(blocks_bundle: Path) -> None:
    model = onnx.load(blocks_bundle / "denoiser.onnx")
    inputs = [list(node.input) for node in model.graph.node if node.op_type == "FrameAttention"]
    launches = (launch("sm_86"), launch("sm_120"))
    assert Plugin(form="library", launches=launches).adapt(model)
    nodes = [node for node in model.graph.node if node.op_type == "KernelLauncher"]
    assert len(nodes) == DEPTH
    assert [list(node.input) for node in nodes] == inputs
    assert {node.domain for node in nodes} == {"trt.plugins"}
    assert ("trt.plugins", 1) in {(one.domain, one.version) for one in model.opset_import}
    assert not any(function.name == "FrameAttention" for function in model.functions)
    values = {one.name: onnx.helper.get_attribute_value(one) for one in nodes[0].attribute}
    assert (values["plugin_namespace"], values["plugin_version"]) == (b"framert", b"1")
    content = onnx.numpy_helper.to_array(values["kernels"]).tobytes()
    for one in launches:
        text = recipe(one).encode()
        packed = struct.pack("<Q", len(text)) + text + struct.pack("<Q", len(one.image)) + one.image
        assert content.startswith(packed)
        content = content[len(packed) :]
    assert content == b""


@pytest.mark.parametrize("form", ["plugin", "aot", "library"])
@pytest.mark.parametrize(("name", "value"), [("SOFTCAP", 50.0), ("SCALE", 1.0)])
def test_kernels_of_another_attention_are_refused(form: str, name: str, value: float, blocks_bundle: Path) -> None:
    model = onnx.load(blocks_bundle / "denoiser.onnx")
    with pytest.raises(BackendError, match=rf"is for a {name.lower()} of {value:g}; node \S+ has "):
        Plugin(form=form, launches=(launch(**{name: value}),)).adapt(model)


def test_graphs_without_attention_stay(blocks_bundle: Path) -> None:
    model = onnx.load(blocks_bundle / "conditioner.onnx")
    before = model.SerializeToString()
    assert not Plugin(form="library", launches=(launch(),)).adapt(model)
    assert model.SerializeToString() == before


LIBRARY = """
import json, sys
from framert.export.tensorrt import builder
plan = builder.profiles.plan_profiles
builder.profiles.plan_profiles = lambda *given, **more: {
    name: table for name, table in plan(*given, **more).items() if name == "denoiser"
}
built = builder.build(
    sys.argv[1], sys.argv[2], targets=["sm_86", "sm_120"], backend="tensorrt-rtx", precision="fp16", progress=False,
    capacity=builder.Capacity(tokens=(256,), sequences=2),
    options=builder.Options(attention="library", plugin_library=builder.Path(sys.argv[3])),
)
print(json.dumps([one.plugins for one in built]))
"""


LOAD = """
import sys
from pathlib import Path
from framert.export.tensorrt.api import load
from framert.export.tensorrt.plugin import Plugin
with Plugin(form="library", launches=(), library=Path(sys.argv[1])).registered(load("tensorrt-rtx")):
    print("loaded")
"""


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.usefixtures("rtx")
def test_a_file_that_is_no_library_is_refused_by_tensorrt(tmp_path: Path) -> None:
    (tmp_path / "p.so").write_bytes(b"no library")
    done = run(LOAD, tmp_path / "p.so")
    assert (done.returncode, done.stdout) == (1, "")
    assert "BackendError: TensorRT cannot load the plugin library" in done.stderr


@pytest.mark.usefixtures("rtx")
@pytest.mark.skipif(
    "FRAMERT_PLUGIN_LIBRARY" not in os.environ,
    reason="needs the C++ launcher, compiled against TensorRT-RTX's headers: FRAMERT_PLUGIN_LIBRARY",
)
def test_the_compiled_launcher_builds(blocks_bundle: Path, tmp_path: Path) -> None:
    done = run(LIBRARY, blocks_bundle, tmp_path / "b", os.environ["FRAMERT_PLUGIN_LIBRARY"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"[{DEPTH}]"
