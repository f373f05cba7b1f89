"""Whole models below fp32: exact smoothing, planted outliers, packed equals alone, and what is recorded."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import framert
from framert.export import fidelity, pipeline
from framert.export.checkpoint import Checkpoint, open_checkpoint
from framert.export.families.onediffusion_plan import plan_graphs
from framert.export.fidelity import measure, psnr, relative_error
from framert.export.models.nextdit import NextDiTConfig
from framert.export.oracle import Oracle, run_model
from framert.export.precision import NOTES, WORDS
from framert.export.quantize import calibration, half, prepare, smoothing
from framert.export.quantize.recipe import Recipe
from framert.export.verify import BUDGETS, _compare, faults, is_smoothed, table, verify
from framert.export.weights import Weight
from framert.export.written import runner
from framert.runtime import backends
from framert.runtime.bundle import Bundle, file_specs, write_manifest
from framert.runtime.errors import ConfigError

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "golden" / "checkpoint"
STEPS = 3
PACKED = ("int8", "int4", "fp16")  # what runs here; fp8 only without ONNX Runtime's own fusions


def outliers():
    spec = importlib.util.spec_from_file_location("outliers", ROOT / "benchmarks" / "blocks" / "outliers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(path: Path) -> Bundle:
    """The bundle as if its pictures were 64 pixels wide, which is enough to measure on."""
    bundle = Bundle.open(path)
    return replace(bundle, manifest=replace(bundle.manifest, native_side=64))


class Model:
    """A checkpoint with its calibration, and bundles made of the golden one with only the transformer's graphs anew."""

    def __init__(self, folder: Path, golden: Bundle, made: Path) -> None:
        self.checkpoint: Checkpoint = open_checkpoint(folder)
        self.config = NextDiTConfig.from_checkpoint(self.checkpoint.configs["transformer"])
        configs = self.checkpoint.configs
        self.plans = plan_graphs(self.config, configs["vae"], configs["text_encoder"])
        self.golden, self.made = golden, made
        self.oracle = Oracle(self.plans, self.checkpoint, golden.manifest.model)
        self.stored = prepare._stored(self.checkpoint, "transformer")
        self.seen = prepare.calibrate(golden, self.oracle, ["transformer"])["transformer"]
        self.links = smoothing.transformer_links(self.config.depth)
        self.recipe = Recipe.smoothed(self.stored, self.links, self.seen)
        self.plain = Recipe(self.stored, self.seen)

    def bundle(self, word: str, recipe: Recipe, target: str = "onnx") -> Bundle:
        folder = self.made / f"{word}-{id(recipe)}-{target}"
        if not folder.exists():
            shutil.copytree(self.golden.path, folder)
            graphs = dict(self.golden.manifest.graphs)
            for plan in self.plans:
                if plan.name in ("conditioner", "denoiser"):
                    own = word if plan.name == "denoiser" else "fp32"
                    graphs[plan.name] = pipeline._export_graph(plan, recipe, own, self.config.softcap, folder, target)
            write_manifest(folder, replace(self.golden.manifest, graphs=graphs, files=file_specs(folder)))
        return Bundle.open(folder)

    def error(self, bundle: Bundle) -> float:
        """The largest velocity error on real tasks."""
        backend = backends.create("onnxruntime", bundle, threads=1)
        found = measure(bundle, backend, self.oracle, steps=STEPS)
        assert set(found["latents_psnr"]) >= {"text_to_image", "image_to_depth", "image_to_multiview"}
        return max(level["max"] for level in found["velocity"].values())


@pytest.fixture(scope="module")
def model(golden_bundle, tmp_path_factory):
    return Model(CHECKPOINT, small(golden_bundle), tmp_path_factory.mktemp("quantized"))


@pytest.fixture(scope="module")
def planted(golden_bundle, tmp_path_factory):
    """The same model with channels 100 to 1000 times as large, and wo and w2 beyond fp16."""
    folder = tmp_path_factory.mktemp("planted")
    outliers().write(CHECKPOINT, folder / "checkpoint", overflow=2.0**16)
    return Model(folder / "checkpoint", small(golden_bundle), folder)


def with_weights(model: Model, weights) -> torch.nn.Module:
    plan = next(plan for plan in model.plans if plan.name == "denoiser")
    with torch.device("meta"):
        module = plan.build()
    state = {name: torch.from_numpy(weights[name].read()) for name in module.model.state_dict()}
    module.model.load_state_dict(state, assign=True)
    return module.eval()


def velocity(module: torch.nn.Module, model: Model, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """One call of conditioner and denoiser with a transformer's weights, computed in ``dtype``."""
    from framert.export import cases

    module = module.to(torch.float64 if dtype is np.float64 else torch.float32)

    def cast(feeds):
        return {name: value.astype(dtype) if value.dtype == np.float32 else value for name, value in feeds.items()}

    def condition(feeds):
        with torch.no_grad():
            made = module.model.condition(**{name: torch.from_numpy(value) for name, value in cast(feeds).items()})
        return {name: value.numpy() for name, value in zip(("text_k", "text_v", "modulation"), made, strict=True)}

    case = cases.denoiser_cases(model.golden.manifest, condition)[1]
    found = run_model(module, list(cast(case).values()))[2]
    assert found.dtype == dtype
    return found


def test_smoothing_leaves_fp32_as_it_is(model):
    """In float64 all that is left is the rounding of the smoothed weights to fp32."""
    exact = velocity(with_weights(model, model.stored), model, np.float64)
    smoothed = velocity(with_weights(model, model.recipe.weights), model, np.float64)
    assert 0 < relative_error(smoothed, exact) < 2e-6
    moved = [name for name, weight in model.recipe.weights.items() if weight is not model.stored[name]]
    assert len(moved) == model.config.depth * 8  # both norms, q, k, v, w1, w2 and w3 of every layer


def test_smoothing_evens_out_what_channels_and_columns_have(model):
    link = model.links[0]
    s = smoothing.factors(model.seen[link.reads[0]].channel, [model.stored[name].read() for name in link.reads])
    columns = np.sqrt(
        np.mean(np.square(np.concatenate([model.stored[name].read() * s for name in link.reads])), axis=0)
    )
    channels = model.seen[link.reads[0]].channel / s
    np.testing.assert_allclose(channels / columns, np.median(channels / columns), rtol=1e-4)


def test_a_channel_that_is_never_used_keeps_its_weights():
    s = smoothing.factors(np.array([0, 2, 3], np.float32), [np.array([[1, 0, 4], [1, 0, 4]], np.float32)])
    assert s[0] == s[1] == 1
    assert smoothing.factors(np.zeros(2, np.float32), [np.ones((1, 2), np.float32)]).tolist() == [1, 1]


def test_planted_outliers_leave_fp32_as_it_is(model, planted):
    exact = velocity(with_weights(model, model.stored), model)
    # The eps of the norms behind wo and w2 is what is not scaled; it counts more in this random model than in Blocks.
    assert relative_error(velocity(with_weights(planted, planted.stored), planted), exact) < 2e-5
    largest = [max(np.abs(seen.channel)) / np.median(np.abs(seen.channel)) for seen in planted.seen.values()]
    assert max(largest) > 100
    assert max(seen.result for seen in planted.seen.values()) > 65504


@pytest.mark.parametrize("word", ["int8", "int4"])
def test_the_recipe_survives_planted_outliers_and_needs_its_smoothing(word, model, planted):
    usual = model.error(model.bundle(word, model.recipe))
    assert usual <= BUDGETS[WORDS[word]]
    assert planted.error(planted.bundle(word, planted.recipe)) < 1.3 * usual
    assert planted.error(planted.bundle(word, planted.plain)) > 2.5 * usual


def largest_value(model: Model, weights) -> float:
    """The largest input or result of any product, while a transformer with these weights runs one call.

    ONNX Runtime's CPU computes in fp32 between casts and takes out the casts that would round, so it never overflows.
    """
    module = with_weights(model, weights)
    with calibration.observe({"": module.model}) as seen:
        velocity(module, model)
    return max(max(activation.largest, activation.result) for activation in seen.values())


def test_fp16_survives_planted_overflow_and_needs_its_factors(model, planted):
    folded = planted.recipe.folded(planted.config.depth)
    assert min(folded.factors.values()) < 1
    assert largest_value(planted, planted.stored) > 65504
    assert largest_value(planted, planted.recipe.weights) > 65504
    assert largest_value(planted, folded.weights) < 65504 / 8
    assert planted.error(planted.bundle("fp16", folded)) <= BUDGETS["float16"]
    untouched = model.recipe.folded(model.config.depth)
    assert set(untouched.factors.values()) == {1.0}  # nothing to do, nothing done


def test_fp16_factors_are_exact(planted):
    weights, factors = half.fold(planted.stored, planted.seen, {}, planted.config.depth)
    for name, factor in factors.items():
        assert np.log2(factor) == np.rint(np.log2(factor))
        assert planted.seen[name].result * factor <= half.LIMIT
    w3 = "layers.0.feed_forward.w3.weight"
    inner = weights[w3].read()[0, 0] / planted.stored[w3].read()[0, 0]
    assert planted.seen["layers.0.feed_forward.w2.weight"].largest * inner <= half.LIMIT


def test_fp8_is_within_its_budget(model):
    bundle = model.bundle("fp8", model.recipe, "tensorrt")
    assert model.error(bundle) <= BUDGETS[WORDS["fp8"]]
    (plan,) = (plan for plan in model.plans if plan.name == "denoiser")
    report = _compare(plan, bundle, model.checkpoint)
    assert report["passed"]
    assert report["errors"]["velocity"] > 1e-3


def test_bf16_is_measured_as_it_is_written(model):
    """No backend for CPUs runs this graph, and still no export goes out unmeasured."""
    bundle = model.bundle("bf16", model.plain, "tensorrt")
    found = measure(bundle, runner(bundle), model.oracle, steps=1)
    assert 1e-3 < max(level["max"] for level in found["velocity"].values()) <= BUDGETS[WORDS["bf16"]]
    assert found["notes"] == {"denoiser": NOTES["bfloat16"]}
    (plan,) = (plan for plan in model.plans if plan.name == "denoiser")
    report = _compare(plan, bundle, model.checkpoint)
    assert report["passed"]
    # 8 bits: each product and sum is rounded, a few per layer
    assert 2.0**-9 < report["errors"]["velocity"] < 2.0**-4


class Spoiled:
    """A backend whose text encoder's hidden states are multiplied."""

    name = "spoiled"

    def __init__(self, bundle: Bundle, factor: float) -> None:
        self.backend, self.factor = backends.create("onnxruntime", bundle, threads=1), factor

    def run(self, graph, feeds):
        made = self.backend.run(graph, feeds)
        return {name: value * np.float32(self.factor if graph == "text_encoder" else 1) for name, value in made.items()}

    def denoiser(self):
        return self.backend.denoiser()


@pytest.mark.parametrize(
    ("factor", "says"),
    [(1.0, []), (0.5, ["text encoder by 0.5"]), (np.nan, ["text encoder by inf", "are not finite"])],
)
def test_a_broken_text_encoder_is_found_where_only_the_text_is_wrong(factor, says, model):
    found = measure(model.golden, Spoiled(model.golden, factor), model.oracle, steps=1)
    assert max(level["max"] for level in found["velocity"].values()) < 5e-5  # always beside fp32's text
    golden = model.golden.manifest.graphs
    graphs = {**golden, "text_encoder": replace(golden["text_encoder"], precision="int8")}
    int8 = replace(model.golden, manifest=replace(model.golden.manifest, graphs=graphs))
    assert found["text"]["max"] == pytest.approx(abs(factor - 1), abs=1e-5) or not np.isfinite(factor)
    reasons = faults(found, int8)
    assert len(reasons) == len(says)
    assert all(part in reason for part, reason in zip(says, reasons, strict=True))


def test_an_export_whose_text_is_beyond_its_budget_is_refused(model, monkeypatch):
    found = {
        "text": {"max": float("inf")},
        "velocity": {"1.0": {"max": 1e-6}},
        "latents_psnr": {"text_to_image": 100.0},
    }
    monkeypatch.setattr(fidelity, "measure", lambda *_: found)
    with pytest.raises(ConfigError, match="float32 moves this checkpoint's text encoder by inf, which is no rounding"):
        pipeline._tasks(model.golden, model.oracle)


def test_what_was_measured_of_fp16_says_that_it_is_of_the_weights(model):
    bundle = model.bundle("fp16", model.recipe.folded(model.config.depth))
    found = measure(bundle, backends.create("onnxruntime", bundle, threads=1), model.oracle, steps=1)
    assert found["notes"] == {"denoiser": NOTES["float16"]}
    assert "of denoiser are of float16 weights in float32 arithmetic" in fidelity.lines(found)[-1]
    (plan,) = (plan for plan in model.plans if plan.name == "denoiser")
    report = _compare(plan, bundle, model.checkpoint)
    assert report["note"] == NOTES["float16"]


@pytest.mark.parametrize(("word", "backend"), [*((word, "onnxruntime") for word in PACKED), ("int8", "openvino")])
def test_packed_equals_alone_bit_for_bit(word, backend, model):
    pytest.importorskip(backend)
    recipe = model.recipe.folded(model.config.depth) if word == "fp16" else model.recipe
    run = framert.load(model.bundle(word, recipe).path, backend=backend, threads=1)
    requests = [
        framert.Request(task="text_to_image", prompt="a red cube", steps=2, seed=1, size=(64, 64)),
        framert.Request(task="text_to_image", prompt="two blue spheres on sand", steps=3, seed=2, size=(32, 48)),
        framert.Request(task="text_to_image", prompt="a cone", steps=2, seed=3, size=(16, 16), guidance=1.0),
        framert.Request(task="text_to_image", prompt="a red cube behind a cone " * 3, steps=2, seed=4, size=(16, 16)),
    ]
    alone = []
    for request in requests:
        ticket = (engine := run.engine()).submit(request)
        alone.append(ticket.result().latents)
        assert not engine.step()
    engine = run.engine()
    tickets = [engine.submit(request) for request in requests]
    for ticket, latents in zip(tickets, alone, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, latents)


@pytest.mark.slow
def test_an_int8_export_is_measured_recorded_and_verifies(tmp_path):
    path = pipeline.export(CHECKPOINT, tmp_path / "b", precision="int8", progress=False)
    manifest = Bundle.open(path).manifest
    assert {name: graph.precision for name, graph in manifest.graphs.items()} == {
        "text_encoder": "int8", "vae_encoder": "float32", "conditioner": "float32", "denoiser": "int8",
        "vae_decoder": "float32",
    }  # fmt: skip
    assert manifest.provenance["precision"]["denoiser"] == "int8"
    assert manifest.verified["tasks"]["passed"]
    assert is_smoothed(Bundle.open(path))
    report = verify(path, CHECKPOINT, progress=False)
    assert report["passed"], table(report)
    assert report["graphs"]["conditioner"]["errors"]["modulation"] < 1e-5
    assert report["graphs"]["denoiser"]["errors"]["velocity"] > 1e-4
    assert "guided velocity on real tasks" in table(report)


def test_psnr():
    exact = np.array([0.0, 1.0, 2.0])
    assert psnr(exact + 0.02, exact) == pytest.approx(40)
    assert psnr(np.array([0.0, np.nan, 2.0]), exact) == float("-inf")


def test_weights_of_every_type_have_their_size():
    import onnx

    expected = {"FLOAT": 24, "FLOAT16": 12, "BFLOAT16": 12, "INT8": 6, "UINT8": 6, "FLOAT8E4M3FN": 6, "INT4": 3}
    for name, size in expected.items():
        weight = Weight((2, 3), lambda: np.zeros((2, 3)), onnx.TensorProto.DataType.Value(name))
        assert weight.size == size
