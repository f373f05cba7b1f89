"""How far a bundle is from the checkpoint in fp32 on real tasks: text, velocity by noise level, latents at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import framert
from framert.export.oracle import Oracle, OracleDenoiser
from framert.export.precision import NOTES
from framert.export.rehearsal import rehearse
from framert.export.weights import Array
from framert.runtime.backends.base import Backend, Denoiser
from framert.runtime.bundle import Bundle

STEPS = 20
SEED = 0


def measure(
    bundle: Bundle, backend: Backend, oracle: Oracle, *, steps: int = STEPS, seed: int = SEED
) -> dict[str, Any]:
    """Run the same tasks on both and compare.

    Args:
        bundle: the one that ``backend`` runs.
    Returns: "text": the relative L2 error of the text encoder's hidden states over the prompts, root mean square and
        largest; "velocity": that of the guided velocity of the generated frames, by noise level (tenths of sigma, 1
        down to 0), both sides starting every call from fp32's text and latents; "latents_psnr": dB over the range of
        fp32's latents, each side on its own path, by task; steps and seed; and "notes" by graph, where an error does
        not say what its precision's name suggests.
    """
    beside = _Beside(oracle, backend)
    levels = _Levels(beside)
    exact = rehearse(framert.Pipeline(bundle, beside), steps=steps, seed=seed, on_step=levels)
    if beside.finite:
        found = rehearse(framert.Pipeline(bundle, backend), steps=steps, seed=seed, given=exact.pictures).latents
    else:  # a pipeline gives out nothing that is not finite
        found = {name: np.full_like(value, np.nan) for name, value in exact.latents.items()}
    notes = {name: NOTES[graph.precision] for name, graph in bundle.manifest.graphs.items() if graph.precision in NOTES}
    return {
        "steps": steps,
        "seed": seed,
        **({"notes": notes} if notes else {}),
        "text": _summary(beside.text_errors),
        "velocity": levels.table(),
        "latents_psnr": {name: round(psnr(found[name], value), 2) for name, value in exact.latents.items()},
    }


def lines(tasks: Mapping[str, Any]) -> list[str]:
    """Return what ``measure`` found as lines of text."""
    velocity = [
        f"  sigma {level}  {errors['rms']:.2e}  at most {errors['max']:.2e}"
        for level, errors in tasks["velocity"].items()
    ]
    latents = [f"  {name:28} {value:6.1f} dB" for name, value in tasks["latents_psnr"].items()]
    text = tasks["text"]
    return [
        f"text encoder on real tasks, relative to fp32: {text['rms']:.2e}  at most {text['max']:.2e}",
        f"guided velocity on real tasks, {tasks['steps']} steps, relative to fp32",
        *velocity,
        "latents at the end",
        *latents,
        *(f"note: errors of {graph} are {note}" for graph, note in tasks.get("notes", {}).items()),
    ]


def psnr(value: Array, exact: Array) -> float:
    """Return the peak signal-to-noise ratio in dB; the peak is the range of ``exact``. -inf for what is not finite."""
    if not np.isfinite(value).all():
        return float("-inf")
    error = float(np.sqrt(np.mean(np.square(value.astype(np.float64) - exact))))
    return 20 * float(np.log10((float(exact.max()) - float(exact.min())) / max(error, 1e-30)))


@dataclass(frozen=True, slots=True)
class _Both:
    """What both sides' conditioners returned under one name, on the way to their arenas."""

    exact: Array
    measured: Any


class _Beside:
    """A backend that gives the oracle's results and lets another one compute every step from the same latents."""

    name = "beside"

    def __init__(self, oracle: Oracle, measured: Backend) -> None:
        self.oracle, self.measured = oracle, measured
        self.error = 0.0  # of the last step's velocity
        self.text_errors: list[float] = []  # of each prompt's hidden states
        self.finite = True  # all that was measured so far

    def run(self, graph: str, feeds: Mapping[str, Array]) -> Mapping[str, Any]:
        exact = self.oracle.run(graph, feeds)
        if graph == "text_encoder":
            measured = self.measured.run(graph, feeds)
            self.text_errors.append(max(relative_error(measured[name], value) for name, value in exact.items()))
            self.finite &= np.isfinite(self.text_errors[-1])
        if graph != "conditioner":
            return exact
        measured = self.measured.run(graph, feeds)
        return {name: _Both(value, measured[name]) for name, value in exact.items()}

    def denoiser(self) -> Denoiser:
        return _BesideDenoiser(self)


class _BesideDenoiser:
    def __init__(self, beside: _Beside) -> None:
        self._beside = beside
        self._exact: OracleDenoiser = beside.oracle.denoiser()
        self._measured = beside.measured.denoiser()
        self._tables: Any = None

    def reserve(self, *, text: int, rows: int) -> None:
        for side in (self._exact, self._measured):
            side.reserve(text=text, rows=rows)

    def write_text(self, begin: int, *parts: _Both) -> None:
        self._exact.write_text(begin, *(part.exact for part in parts))
        self._measured.write_text(begin, *(part.measured for part in parts))

    def write_modulation(self, begin: int, modulation: _Both) -> None:
        self._exact.write_modulation(begin, modulation.exact)
        self._measured.write_modulation(begin, modulation.measured)

    def padded(self, tokens: int) -> int:
        return self._measured.padded(tokens)

    def bind(self, tables: Any, latents: Array, history: Array) -> None:
        self._tables = tables
        self._exact.bind(tables, latents, history)

    def step(self, row: Array, update: Array) -> None:
        self._measured.bind(self._tables, *self._exact.state())
        self._measured.step(row, update)
        self._exact.step(row, update)
        made = update[:, 1] != 0  # condition frames stay where they are, whatever their velocity
        self._beside.error = relative_error(self._measured.velocity()[made], self._exact.velocity()[made])
        self._beside.finite &= np.isfinite(self._beside.error)

    def state(self) -> tuple[Array, Array]:
        return self._exact.state()

    def velocity(self) -> Array:
        return self._exact.velocity()


class _Levels:
    """``on_step`` of the tasks: sorts the errors of the steps by the noise level they started from."""

    def __init__(self, beside: _Beside) -> None:
        self._beside = beside
        self._reached = 1.0
        self._errors: dict[float, list[float]] = {}

    def __call__(self, info: Any) -> None:
        sigma = 1.0 if info.step == 1 else self._reached
        self._reached = info.sigma
        self._errors.setdefault(round(sigma, 1), []).append(self._beside.error)

    def table(self) -> dict[str, dict[str, float]]:
        ordered = sorted(self._errors.items(), reverse=True)
        return {f"{level:.1f}": _summary(errors) for level, errors in ordered}


def relative_error(value: Array, exact: Array) -> float:
    """Return ``|value - exact| / |exact|`` in L2; infinite where either is not finite."""
    if not (np.isfinite(value).all() and np.isfinite(exact).all()):
        return float("inf")
    norm = float(np.linalg.norm(exact.astype(np.float64)))
    return float(np.linalg.norm(value.astype(np.float64) - exact)) / max(norm, 1e-30)


def _summary(errors: Sequence[float]) -> dict[str, float]:
    return {"rms": _short(float(np.sqrt(np.mean(np.square(errors))))), "max": _short(max(errors))}


def _short(value: float) -> float:
    return float(f"{value:.3g}")
