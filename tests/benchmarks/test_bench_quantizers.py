"""The comparison with other quantizers: which products are theirs, and what its rows say."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from framert.export.checkpoint import open_checkpoint
from framert.runtime import backends
from framert.runtime.bench.rows import Environment
from framert.runtime.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 3  # of the golden checkpoint


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("bench_quantizers")


def test_the_others_get_framerts_products(script: ModuleType, golden_bundle: Path) -> None:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    core.add_extension(import_module("framert.runtime.backends.openvino_attention").extension(per_head=2**20))
    model = core.read_model(golden_bundle / "denoiser.onnx")
    products = {node.get_friendly_name() for node in model.get_ops() if node.get_type_name() == "MatMul"}
    left_out = script._other_products(model)
    assert len(products - set(left_out)) == 7 * LAYERS
    assert script.PRODUCTS.match("layers.2.attention.wq.weight_transpose")
    for other in ("layers.2.attention.wk_y", "layers.2.adaLN_modulation.1", "final_layer.linear", "x_embedder"):
        assert script.PRODUCTS.match(other) is None


@pytest.mark.slow
def test_a_side_is_measured_beside_fp32(
    script: ModuleType, golden_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle in fp32 stands for a quantizer that loses nothing."""
    pytest.importorskip("onnxruntime")
    bundle = Bundle.open(golden_bundle)
    monkeypatch.setattr("framert.export.rehearsal.MAX_SIDE", 2)  # tokens
    monkeypatch.setitem(script.SIDES, "framert", lambda model: backends.create("onnxruntime", model.int8, threads=1))
    model = script.Model(open_checkpoint(ROOT / "tests/golden/checkpoint"), bundle, bundle, planted=True)
    monkeypatch.setattr(script, "packed_psnr", lambda *_: 100.0)
    rows = script.measure("framert", model, 1, Environment.capture(None, threads=1, record=False))
    by_metric = {row.metric: row for row in rows}
    assert by_metric["velocity_error"].p50 < 1e-4
    assert by_metric["latents_psnr"].p50 > 80
    assert by_metric["packed_psnr"].case.startswith("three requests packed; 1 steps; planted outliers; checkpoint ")


def test_packed_requests_are_compared_with_themselves_alone(script: ModuleType, golden_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle = Bundle.open(golden_bundle)
    small = replace(bundle, manifest=replace(bundle.manifest, native_side=64))
    assert script.packed_psnr(small, backends.create("onnxruntime", small, threads=1)) == 100
