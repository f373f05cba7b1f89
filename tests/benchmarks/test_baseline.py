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


@pytest.fixture
def hoisted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("hoisted")


def hoisted_velocity(hoisted: ModuleType, baseline: ModuleType, case: str, **options) -> "torch.Tensor":
    """Both branches of a recorded case, whose two prompts are not equally long, or its one prompt twice."""
    golden, (config, state) = recorded(case), checkpoint()
    published = baseline.build(config, state)
    text, mask = (value.expand(2, *value.shape[1:]) for value in (golden["text"], golden["text_mask"]))
    samples = golden["samples"]
    frames, _, height, width = samples.shape[1:]
    model = hoisted.HoistedNextDiT(published, config, frames=frames, rows=height // 2, columns=width // 2, **options)
    with torch.inference_mode():
        return torch.stack(
            [
                model(sample, *hoisted.condition(published, text, mask, golden["timesteps"].reshape(-1, frames)[-1]))[
                    index
                ]
                for index, sample in enumerate(samples)
            ]
        )


@pytest.mark.parametrize("case", CASES)
def test_the_hoisted_model_is_the_published_one(hoisted: ModuleType, baseline: ModuleType, case: str) -> None:
    assert relative(hoisted_velocity(hoisted, baseline, case), recorded(case)["velocity"]) < 1e-5


def test_the_hoisted_model_without_softcap_is_sdpas(hoisted: ModuleType, baseline: ModuleType) -> None:
    golden, model = recorded("one_frame"), baseline.build(*checkpoint(), attention="sdpa")
    with torch.inference_mode():
        expected = model(golden["samples"], golden["timesteps"], golden["text"], golden["text_mask"])
    assert relative(hoisted_velocity(hoisted, baseline, "one_frame", attention="sdpa"), expected) < 1e-5


def test_the_hoisted_step_is_the_published_step(hoisted: ModuleType, baseline: ModuleType) -> None:
    golden, (config, state) = recorded("two_frames_mixed_noise"), checkpoint()
    published, latents, delta = baseline.build(config, state), golden["samples"][0], torch.tensor([-0.1, 0.0])
    plain = baseline.GuidedStep(published, golden["text"], golden["text_mask"], guidance=3.0)
    expected, velocity = plain(latents, golden["timesteps"], delta)
    step = hoisted.HoistedStep(
        published, config, golden["text"], golden["text_mask"], golden["timesteps"].reshape(-1, 2)[-1],
        shape=(latents.shape[2] // 2, latents.shape[3] // 2), guidance=3.0, compiled=False,
    )  # fmt: skip
    after, ours = step(latents, delta)
    assert relative(ours, velocity) < 1e-5
    assert relative(after, expected) < 1e-5
    assert torch.equal(after[1], latents[1])
