"""The flow-matching schedule: which noise levels a run of so many steps visits."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framert.runtime.errors import ConfigError
from framert.runtime.manifest import ScheduleSpec

MAX_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Schedule:
    """Noise levels of one request.

    sigmas: (steps + 1,) float64 from 1 down to 0; sample = (1 - sigma) * data + sigma * noise.
    scale: the model sees the noise level ``scale * sigma`` (0..1000).
    """

    sigmas: npt.NDArray[np.float64]
    scale: float

    @classmethod
    def build(cls, spec: ScheduleSpec, steps: int, target_tokens: int) -> "Schedule":
        """Shift a linear schedule by the number of tokens to generate, where condition frames do not count, or by the
        spec's static shift.

        Args:
            spec: the bundle's constants.
            steps: intervals, 1 to 1000.
            target_tokens: tokens of all generated frames.
        Raises: ConfigError if ``steps`` is out of range.
        Source: OneDiffusion's pipeline, FlowMatchEulerDiscreteScheduler with dynamic shifting; Stable Diffusion 3's,
            the same without.
        """
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not 1 <= steps <= MAX_STEPS:
            raise ConfigError(f"steps is {steps!r}; give a whole number from 1 to {MAX_STEPS}")
        if spec.static_shift:
            return cls(_static(spec, steps), float(spec.num_train_timesteps))
        per_token = (spec.max_shift - spec.base_shift) / (spec.max_image_seq_len - spec.base_image_seq_len)
        shift = math.exp(spec.base_shift + per_token * (target_tokens - spec.base_image_seq_len))
        shifted = _shifted(np.linspace(1.0, 1.0 / steps, steps), shift)
        return cls(np.append(shifted, 0.0), float(spec.num_train_timesteps))

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def condition_level(self) -> float:
        """Noise level that condition frames are labelled with at every step: the schedule's last, not 0."""
        return float(self.scale * self.sigmas[-2])


def _static(spec: ScheduleSpec, steps: int) -> npt.NDArray[np.float64]:
    """Return the published schedule of Stable Diffusion 3.

    It goes down to the least training level, shifted, and is shifted as a whole once more: so it was published.
    """
    lowest = _shifted(np.array([1.0 / spec.num_train_timesteps]), spec.static_shift)[0]
    return np.append(_shifted(np.linspace(1.0, lowest, steps), spec.static_shift), 0.0)


def _shifted(linear: npt.NDArray[np.float64], shift: float) -> npt.NDArray[np.float64]:
    # shift / (shift + 1 / s - 1), written so that s = 1 stays exactly 1: solvers ask whether a level is 1
    return shift * linear / (shift * linear + (1.0 - linear))
