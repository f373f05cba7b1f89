"""ONNX Runtime's providers: options as it takes them, refusals, and the device denoiser, here on host memory.

No GPU is needed: what a provider is given is checked, not what it computes.
"""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import framert
from framert.runtime.backends import create, providers
from framert.runtime.backends.onnxruntime import OnnxRuntimeBackend
from framert.runtime.backends.onnxruntime_device import OnnxRuntimeDeviceDenoiser
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError, ConfigError
from framert.runtime.manifest import TensorSpec
from framert.runtime.profiles import Capacity, plan_profiles

REQUESTS = [
    framert.Request(task="text_to_image", prompt="a cube", steps=3, size=(32, 16), seed=1),
    framert.Request(task="text_to_image", prompt="a sphere", steps=4, size=(32, 32), seed=2, solver="heun"),
]


@pytest.fixture
def bundle(golden_bundle):
    return Bundle.open(golden_bundle, check_files=False)


@pytest.fixture
def padded(bundle):
    """As a bundle with padded attention says of itself."""
    graph = bundle.manifest.graphs["denoiser"]
    axes = {"window": "longest", "text_window": "text_longest"}
    inputs = {**graph.inputs, **{name: TensorSpec(dtype="int32", shape=(axis,)) for name, axis in axes.items()}}
    graphs = {**bundle.manifest.graphs, "denoiser": replace(graph, inputs=inputs)}
    return replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FRAMERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Session:
    """A session that says what it runs on."""

    def __init__(self, *names):
        self.get_providers = lambda: list(names)


def fake_runtime(*names):
    return SimpleNamespace(get_available_providers=lambda: [*names, "CPUExecutionProvider"], __version__="1.31.1")


def test_results_with_state_on_a_device_are_the_same_bits(golden_bundle, bundle):
    """Two requests that join and leave, so that arenas grow and packs are bound again."""
    pipe = framert.load(golden_bundle, threads=1)
    expected = [pipe.engine().submit(request).result() for request in REQUESTS]
    backend = OnnxRuntimeBackend(bundle, threads=1)
    backend.denoiser = lambda: OnnxRuntimeDeviceDenoiser(backend, bundle, "cpu")
    engine = framert.Pipeline(bundle, backend).engine()
    first = engine.submit(REQUESTS[0])
    engine.step()
    second = engine.submit(REQUESTS[1])
    for ticket, wanted in zip((first, second), expected, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, wanted.latents)
        np.testing.assert_array_equal(ticket.result().pixels, wanted.pixels)


def test_a_failed_step_on_a_device_changes_nothing(bundle):
    backend = OnnxRuntimeBackend(bundle, threads=1)
    denoiser = OnnxRuntimeDeviceDenoiser(backend, bundle, "cpu")
    backend.denoiser = lambda: denoiser
    engine = framert.Pipeline(bundle, backend).engine()
    engine.submit(REQUESTS[0])
    engine.step()
    before = denoiser.state()
    with pytest.raises(BackendError):
        denoiser.step(np.zeros(3, np.int32), np.zeros((5, 6), np.float32))
    for array, kept in zip(denoiser.state(), before, strict=True):
        np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_installed_is_refused_with_the_command(golden_bundle, provider):
    import onnxruntime

    if providers.NAMES[provider] in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has {provider}")
    with pytest.raises(BackendError) as caught:
        framert.load(golden_bundle, provider=provider)
    message = str(caught.value)
    assert f"provider '{provider}' is not in the installed onnxruntime" in message
    assert "which has cpu" in message
    assert "framert[gpu]" in message or "docs/jetson.md" in message


@pytest.mark.parametrize(
    ("machine", "says"),
    [("linux-x86_64", "pip install 'framert[gpu]'"), ("linux-aarch64", "docs/jetson.md")],
    ids=["x86", "jetson"],
)
def test_the_remedy_is_the_machine_s(bundle, monkeypatch, machine, says):
    monkeypatch.setattr(providers.sysconfig, "get_platform", lambda: machine)
    with pytest.raises(BackendError, match=re.escape(says)):
        providers.check_provider(fake_runtime(), "cuda", bundle)


def test_unknown_and_misplaced_providers(golden_bundle, bundle):
    with pytest.raises(ConfigError, match="provider is 'gpu'; choose one of cpu, cuda, tensorrt"):
        framert.load(golden_bundle, provider="gpu")
    with pytest.raises(ConfigError, match="only backend 'onnxruntime' takes"):
        create("openvino", bundle, threads=None, provider="cuda")
    with pytest.raises(ConfigError, match="beside backend 'auto'"):
        framert.load(golden_bundle, backend="auto", provider="cuda")


def test_a_session_that_runs_elsewhere_is_refused():
    providers.check_session(Session("CUDAExecutionProvider", "CPUExecutionProvider"), "cuda", "denoiser")
    with pytest.raises(BackendError, match="could not start provider 'tensorrt' for denoiser and took CUDA"):
        providers.check_session(Session("CUDAExecutionProvider", "CPUExecutionProvider"), "tensorrt", "denoiser")
    with pytest.raises(BackendError, match="and took CPUExecutionProvider; is there a GPU"):
        providers.check_session(Session("CPUExecutionProvider"), "cuda", "denoiser")


def test_loading_never_falls_back(bundle, monkeypatch):
    """onnxruntime is told not to, and what it started on is looked at."""
    backend = OnnxRuntimeBackend(bundle, threads=1)
    asked = {}

    def session(path, options, **more):
        asked.update(more)
        return Session("CPUExecutionProvider")

    backend._runtime = SimpleNamespace(
        InferenceSession=session, SessionOptions=backend._runtime.SessionOptions, __version__="1.31.1"
    )
    backend._provider = "cuda"
    with pytest.raises(BackendError, match="could not start provider 'cuda'"):
        backend.session("denoiser")
    assert asked == {"providers": [("CUDAExecutionProvider", {})], "enable_fallback": 0}
    assert not backend._sessions


def test_fallback_is_an_option_of_this_onnxruntime(bundle, tmp_path):
    """With it off, a session that cannot be made is an error and not a retry that prints."""
    import onnxruntime

    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(Exception, match="broken"):
        onnxruntime.InferenceSession(tmp_path / "broken.onnx", providers=["CPUExecutionProvider"], enable_fallback=0)


@pytest.mark.parametrize("graph", ["text_encoder", "vae_encoder", "conditioner", "denoiser", "vae_decoder"])
def test_profile_shapes_are_those_of_engines(padded, cache, graph):
    (name, options), (second, none) = providers.provider_list("tensorrt", padded, graph, "1.31.1", Capacity())
    assert (name, second, none) == ("TensorrtExecutionProvider", "CUDAExecutionProvider", {})
    profiles = plan_profiles(padded.manifest, Capacity(), plugin=False)[graph]
    spec = padded.manifest.graphs[graph]
    dynamic = {key for key, tensor in spec.inputs.items() if any(isinstance(side, str) for side in tensor.shape)}
    found = []
    for word in ("min", "opt", "max"):
        text = options[f"trt_profile_{word}_shapes"]
        shapes = dict(part.split(":") for part in text.split(","))
        assert set(shapes) == dynamic
        found.append({key: [int(side) for side in sides.split("x")] for key, sides in shapes.items()})
    assert any(
        all(
            found[number][key] == [profile[side][number] if isinstance(side, str) else side for side in sides.shape]
            for number in range(3)
            for key, sides in spec.inputs.items()
            if key in dynamic
        )
        for profile in profiles
    )
    for key in dynamic:
        assert all(a <= b <= c for a, b, c in zip(*(shapes[key] for shapes in found), strict=True))


def test_a_denoiser_that_tensorrt_cuts_is_given_no_shapes(bundle, cache):
    """It would refuse them: the inputs of the parts are none of the graph's."""
    options = providers.tensorrt_options(bundle, "denoiser", "1.31.1", Capacity())
    assert not [name for name in options if name.startswith("trt_profile")]
    assert options["trt_engine_cache_enable"] is True


def test_engines_are_kept_by_bundle_version_and_sizes(bundle, cache):
    folder = providers.tensorrt_options(bundle, "vae_decoder", "1.31.1", Capacity())["trt_engine_cache_path"]
    assert folder.startswith(str(cache))
    files = {name: replace(spec, sha256="0" * 64) for name, spec in bundle.manifest.files.items()}
    other = replace(bundle, manifest=replace(bundle.manifest, files=files))
    folders = {
        folder,
        providers.tensorrt_options(other, "vae_decoder", "1.31.1", Capacity())["trt_engine_cache_path"],
        providers.tensorrt_options(bundle, "vae_decoder", "1.30.0", Capacity())["trt_engine_cache_path"],
        providers.tensorrt_options(bundle, "vae_decoder", "1.31.1", Capacity(side=512))["trt_engine_cache_path"],
        providers.tensorrt_options(bundle, "vae_encoder", "1.31.1", Capacity())["trt_engine_cache_path"],
    }
    assert len(folders) == 5
    again = providers.tensorrt_options(bundle, "vae_decoder", "1.31.1", Capacity())["trt_engine_cache_path"]
    assert again == folder


def test_a_cache_that_cannot_be_made_is_told(bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FRAMERT_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="set FRAMERT_CACHE"):
        providers.tensorrt_options(bundle, "vae_decoder", "1.31.1", Capacity())


@pytest.mark.parametrize(
    ("precision", "option"),
    [("float32", None), ("float16", "trt_fp16_enable"), ("bfloat16", "trt_bf16_enable"), ("int8", "trt_int8_enable")],
)
def test_a_precision_is_allowed_where_the_graph_has_it(bundle, cache, precision, option):
    graphs = {name: replace(graph, precision=precision) for name, graph in bundle.manifest.graphs.items()}
    other = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    options = providers.tensorrt_options(other, "vae_decoder", "1.31.1", Capacity())
    allowed = [name for name in options if name.endswith(("fp16_enable", "bf16_enable", "int8_enable"))]
    assert allowed == ([] if option is None else [option])


@pytest.mark.parametrize("precision", ["float8e4m3fn", "int4"])
def test_precisions_that_the_provider_has_not(bundle, precision):
    graphs = {**bundle.manifest.graphs}
    graphs["denoiser"] = replace(graphs["denoiser"], precision=precision)
    other = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    runtime = fake_runtime("TensorrtExecutionProvider", "CUDAExecutionProvider")
    with pytest.raises(BackendError, match=f"denoiser is in {precision}, which provider 'tensorrt' does not run"):
        providers.check_provider(runtime, "tensorrt", other)
    providers.check_provider(runtime, "cuda", other)


def test_windows_have_the_names_that_the_exporter_gives_them():
    body = pytest.importorskip("framert.export.tensorrt.body")
    from framert.runtime.windows import WINDOWS

    assert body.WINDOWS == WINDOWS
