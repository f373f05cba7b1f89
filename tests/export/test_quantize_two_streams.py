"""Precisions of two-stream bundles: factors that move without a trace, int8 and fp16 graphs, what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from framert.export import pipeline
from framert.export.checkpoint import Checkpoint, open_checkpoint
from framert.export.families import univg_cases
from framert.export.families.find import find_family
from framert.export.oracle import load_model, run_model
from framert.export.precision import WORDS
from framert.export.quantize.calibration import Activation
from framert.export.quantize.prepare import _stored
from framert.export.quantize.recipe import Recipe
from framert.export.verify import BUDGETS, is_smoothed, relative_error, table, verify
from framert.runtime.bundle import Bundle
from framert.runtime.errors import ConfigError
from framert.runtime.manifest import Manifest

pytest.importorskip("diffusers")
Make = Callable[..., Path]
CONFIG = {"num_layers": 2, "in_channels": 33, "qk_norm": "rms_norm", "dual_attention_layers": [0]}


@pytest.fixture(scope="module")
def checkpoint(two_stream_checkpoint):
    return open_checkpoint(two_stream_checkpoint("t5 alone", **CONFIG))


def manifest_of(checkpoint: Checkpoint) -> Manifest:
    family = find_family(checkpoint)
    return Manifest(
        family=family.name, native_side=64, model=family.model(checkpoint), schedule=family.schedule(checkpoint),
        prompt_tokens=256, guidance_branches=family.guidance_branches, target={"kind": "onnx"}, files={},
        graphs={plan.name: pipeline._signature(plan, "float32") for plan in family.plans(checkpoint)},
    )  # fmt: skip


def made_up(checkpoint: Checkpoint) -> Recipe:
    """A recipe as if channels of very different size had been seen."""
    stored, rng = _stored(checkpoint, "transformer"), np.random.default_rng(0)

    def activation(width: int) -> Activation:
        channel = np.exp(rng.normal(0, 1.5, width)).astype(np.float32)
        return Activation(channel, rng.standard_normal((8, width), dtype=np.float32) * channel, 9.0, 9.0)

    seen = {name: activation(weight.shape[1]) for name, weight in stored.items() if len(weight.shape) == 2}
    return Recipe.smoothed(stored, find_family(checkpoint).links("transformer", checkpoint), seen)


def velocities(checkpoint: Checkpoint, recipe: Recipe) -> list[np.ndarray]:
    """Run the packs on torch with a recipe's weights, multipliers included."""
    plans = {plan.name: plan for plan in find_family(checkpoint).plans(checkpoint)}
    module = load_model(plans["denoiser"], checkpoint)
    state = {name: torch.from_numpy(recipe.weights[name].read()) for name in module.model.state_dict()}
    module.model.load_state_dict(state, assign=True)

    def condition(feeds):
        with torch.no_grad():
            made = module.model.condition(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        return {name: value.numpy() for name, value in zip(("text", "modulation"), made, strict=True)}

    cases = univg_cases.denoiser_cases(manifest_of(checkpoint), condition)
    return [run_model(module, list(case.values()))[2] for case in cases]


def test_smoothing_leaves_fp32_as_it_is(checkpoint):
    exact = velocities(checkpoint, Recipe(_stored(checkpoint, "transformer")))
    recipe = made_up(checkpoint)
    for found, expected in zip(velocities(checkpoint, recipe), exact, strict=True):
        assert 0 < relative_error(found, expected) < 5e-6
    stored = _stored(checkpoint, "transformer")
    moved = {name for name, weight in recipe.weights.items() if not np.array_equal(weight.read(), stored[name].read())}
    # Per layer: what makes the multipliers of both streams (2 tensors each); q, k and v of both with v's biases; both
    # that leave; both that enter a feed-forward. The last one's text has neither the query, nor leaves, nor enters.
    # The second attention has q, k, v with v's bias, and what leaves it.
    assert len(moved) == 2 * (4 + 8 + 2 + 2) - 3 + 5


@pytest.fixture(scope="module")
def conditioner(checkpoint, tmp_path_factory, open_session):
    """The smoothed conditioner's session."""
    return export_graph("conditioner", "fp32", checkpoint, tmp_path_factory.mktemp("conditioner"), open_session)


def export_graph(name, word, checkpoint, folder, open_session):
    (plan,) = (plan for plan in find_family(checkpoint).plans(checkpoint) if plan.name == name)
    pipeline._export_graph(plan, made_up(checkpoint), word, 0.0, folder, "onnx")
    return open_session(folder / f"{name}.onnx")


@pytest.mark.parametrize("word", ["int8", "fp16", "int4"])
def test_a_denoiser_is_within_its_budget(word, checkpoint, conditioner, tmp_path, open_session):
    denoiser = export_graph("denoiser", word, checkpoint, tmp_path, open_session)

    def condition(feeds):
        names = ["text", "modulation"]
        return dict(zip(names, conditioner.run(names, feeds), strict=True))

    cases = univg_cases.denoiser_cases(manifest_of(checkpoint), condition)
    exact = velocities(checkpoint, Recipe(_stored(checkpoint, "transformer")))
    for case, expected in zip(cases, exact, strict=True):
        error = relative_error(denoiser.run(["velocity"], case)[0], expected)
        print(f"{word}: velocity {error:.2e}")
        assert 1e-5 < error <= BUDGETS[WORDS[word]]


def test_clips_stay_in_fp32(two_stream_checkpoint, tmp_path):
    folder = two_stream_checkpoint("clip", "clip_2")
    with pytest.raises(ConfigError, match=r"text encoders are CLIPs, which stay in fp32; .* denoiser=int8"):
        pipeline.export(folder, tmp_path / "b", precision="int8", progress=False)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_an_int8_export_is_measured_and_verifies(two_stream_checkpoint: Make, tmp_path: Path) -> None:
    folder = two_stream_checkpoint("clip", "clip_2", "t5", **CONFIG)
    path = pipeline.export(folder, tmp_path / "b", precision="int8", progress=False)
    manifest = Bundle.open(path).manifest
    assert {manifest.graphs[name].precision for name in ("text_encoder", "denoiser")} == {"int8"}
    assert manifest.verified["tasks"]["passed"]
    assert set(manifest.verified["tasks"]["latents_psnr"]) >= {"text_to_image", "image_to_depth", "edit"}
    assert is_smoothed(Bundle.open(path))
    report = verify(path, folder, progress=False)
    assert report["passed"], table(report)
    assert report["graphs"]["conditioner"]["errors"]["modulation"] < 1e-5
    assert report["graphs"]["denoiser"]["errors"]["velocity"] > 1e-4
