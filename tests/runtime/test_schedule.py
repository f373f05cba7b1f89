"""The schedule against the recorded calls."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from framert.runtime.errors import ConfigError
from framert.runtime.manifest import ScheduleSpec
from framert.runtime.schedule import Schedule

GOLDEN = Path(__file__).parents[1] / "golden"
SPEC = ScheduleSpec(
    num_train_timesteps=1000, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
)


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("pipeline_*.json")))
def test_matches_recorded_sigmas(name):
    call = json.loads((GOLDEN / f"{name}.json").read_text())
    targets = sum(call.get("denoise_mask", [1]))
    tokens = targets * (call["height"] // 16) * (call["width"] // 16)
    schedule = Schedule.build(SPEC, call["num_inference_steps"], tokens)
    np.testing.assert_allclose(schedule.sigmas, call["sigmas"], rtol=1e-6)
    np.testing.assert_allclose(schedule.condition_level, call["timesteps"][-1], rtol=1e-6)


@pytest.mark.parametrize("shift", [3.0, 1.0, 6.5])
@pytest.mark.parametrize("steps", [1, 2, 28, 1000])
def test_a_static_shift_is_that_of_stable_diffusion_3(shift, steps):
    """The published scheduler, whose own float32 is the tolerance; the number of tokens plays no part."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    for tokens in (16, 4096):
        schedule = Schedule.build(replace(SPEC, static_shift=shift), steps, tokens)
        np.testing.assert_allclose(schedule.sigmas, scheduler.sigmas.numpy(), rtol=2e-6)
        np.testing.assert_allclose(schedule.scale * schedule.sigmas[:-1], scheduler.timesteps.numpy(), rtol=2e-6)


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, static_shift=3.0)], ids=["by tokens", "static"])
@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_goes_down_from_one_to_zero(steps, spec):
    schedule = Schedule.build(spec, steps, 1024)
    assert schedule.steps == steps
    assert schedule.sigmas[0] == 1.0
    assert schedule.sigmas[-1] == 0.0
    assert (np.diff(schedule.sigmas) < 0).all()


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True, None, "ten"])
def test_refuses_other_step_counts(steps):
    with pytest.raises(ConfigError, match="from 1 to 1000"):
        Schedule.build(SPEC, steps, 256)
