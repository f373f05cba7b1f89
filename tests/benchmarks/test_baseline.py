"""The baseline computes what the published code computes: it reproduces the recorded velocities."""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
CASES = ("one_frame", "two_frames_mixed_noise", "four_frames")


@pytest.fixture
def baseline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("baseline")


def checkpoint() -> tuple[dict, dict]:
    folder = GOLDEN / "checkpoint" / "transformer"
    state = safetensors.load_file(folder / "diffusion_pytorch_model.safetensors")
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), state


def recorded(case: str) -> dict[str, "torch.Tensor"]:
    with np.load(GOLDEN / f"transformer_{case}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def relative(actual: "torch.Tensor", expected: "torch.Tensor") -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", CASES)
def test_velocity_is_the_published_one(baseline: ModuleType, case: str) -> None:
    golden, model = recorded(case), baseline.build(*checkpoint())
    with torch.inference_mode():
        velocity = model(golden["samples"], golden["timesteps"], golden["text"], golden["text_mask"])
    assert relative(velocity, golden["velocity"]) < 1e-5


def test_sdpa_differs_by_the_softcap_alone(baseline: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    golden, model = recorded("one_frame"), baseline.build(*checkpoint(), attention="sdpa")
    call = (golden["samples"], golden["timesteps"], golden["text"], golden["text_mask"])
    with torch.inference_mode():
        assert relative(model(*call), golden["velocity"]) > 0.05
        monkeypatch.setattr(baseline, "SOFTCAP", 1e4)  # so wide that it changes nothing
        uncapped = baseline.build(*checkpoint())(*call)
        assert relative(model(*call), uncapped) < 1e-5


def test_guided_step_pads_text_and_leaves_conditions(baseline: ModuleType) -> None:
    golden, model = recorded("two_frames_mixed_noise"), baseline.build(*checkpoint())
    latents = golden["samples"][0]
    step = baseline.GuidedStep(model, golden["text"], golden["text_mask"], guidance=3.0)
    after, velocity = step(latents, golden["timesteps"], torch.tensor([-0.1, 0.0]))

    with torch.inference_mode():
        both = model(latents.expand(2, *latents.shape), golden["timesteps"], golden["text"], golden["text_mask"])
    assert step.text.shape[1] == baseline.TEXT_TOKENS
    assert relative(velocity, both[0] + 3 * (both[1] - both[0])) < 1e-5
    assert torch.equal(after[1], latents[1])
    assert relative(after[0], latents[0] - 0.1 * velocity[0]) < 1e-6


def test_a_checkpoint_must_match_exactly(baseline: ModuleType) -> None:
    config, state = checkpoint()
    state.pop("layers.0.attention.gate")
    with pytest.raises(RuntimeError, match=r"layers\.0\.attention\.gate"):
        baseline.build(config, state)
