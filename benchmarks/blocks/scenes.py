"""Run tasks on scenes, many at once, in one process or several; with a reference bundle, the same requests on both."""

import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from cases import CHECK_TASK, Case, Scores
from frames import SceneFrames, scene_frames
from judge import open_judge
from kept import Array, Kept
from suites import SUITES
from world import Float

import framert
from framert.runtime.bench.quality import decibels

LEVELS = (0.95, 0.7, 0.4, 0.1)  # of noise, 1 is all noise
WORDS = 12  # tokens of the drawn text that velocities are compared with
AT_ONCE = 32  # requests handed to the engine together
Values = dict[str, dict[str, list[float]]]  # task -> metric -> one per scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is asked. first: seed of the first scene; scenes: how many; side: of the pictures, in pixels.

    family: of the bundle that is asked.
    """

    tasks: tuple[str, ...]
    first: int
    scenes: int
    steps: int
    guidance: float | None
    side: int
    family: str = "onediffusion"

    def described(self) -> dict[str, Any]:
        """Return the settings that must agree for two runs to be compared."""
        return {name: value for name, value in asdict(self).items() if name not in ("tasks", "family")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Whom it is asked. reference: a bundle that gets every request too, on ONNX Runtime; kept: or what it computed."""

    bundle: Path
    backend: str
    precision: str | None
    threads: int | None
    reference: Path | None = None
    kept: Kept | None = None

    def open(self) -> list[framert.Pipeline]:
        """Open what is evaluated, then the reference if there is one. Raises: FramertError."""
        options = {} if self.precision is None else {"precision": self.precision}
        pipes = [framert.load(self.bundle, backend=self.backend, threads=self.threads, **options)]
        if self.reference is not None:
            pipes.append(framert.load(self.reference, threads=self.threads))
        return pipes


def run_scenes(sides: Sides, run: Run, jobs: int) -> tuple[Values, Values, Kept]:
    """Return the scores of the bundle, those of a reference bundle (nothing without one), and what the last computed.

    Args:
        jobs: processes; each opens the bundle for itself and takes a share of the scenes.
    Raises: FramertError for a bundle that cannot be opened or run.
    """
    if not SUITES[run.family].judged.isdisjoint(run.tasks):
        open_judge(side=run.side)  # trained here where it is not yet, and not by every process
    each = min(AT_ONCE, -(-run.scenes // jobs))
    parts = [range(at, min(at + each, run.scenes)) for at in range(0, run.scenes, each)]
    if jobs == 1:
        pipes = sides.open()
        results = [_run_part(pipes, sides.kept, run, part) for part in parts]
    else:
        # Not fork: an open session has threads, which a forked process would lack.
        with ProcessPoolExecutor(jobs, get_context("spawn"), _open, (sides,)) as pool:
            results = list(pool.map(_run_in_worker, [run] * len(parts), parts))
    values: tuple[Values, Values] = ({}, {})
    found, kept = [scores for scores, _ in results], Kept()
    for _, own in results:
        kept.update(own)
    for side, joined in enumerate(values):
        for task in run.tasks if side < len(found[0]) else ():
            rows = [row for part in found for row in part[side][task]]
            joined[task] = {metric: [row[metric] for row in rows] for metric in rows[0]}
    if "image_to_depth" in run.tasks:
        constant = _error_of_constant(run)
        for joined in values:
            if joined:
                joined["image_to_depth"]["error_of_constant"] = constant
    return *values, kept


_worker: list[tuple[list[framert.Pipeline], Kept | None]] = []  # of this process, filled once by the pool


def _open(sides: Sides) -> None:
    _worker.append((sides.open(), sides.kept))


def _run_in_worker(run: Run, part: range) -> tuple[list[dict[str, list[Scores]]], Kept]:
    return _run_part(*_worker[0], run, part)


def _run_part(
    pipes: list[framert.Pipeline], stored: Kept | None, run: Run, part: range
) -> tuple[list[dict[str, list[Scores]]], Kept]:
    """Return, for each pipeline, {task: scores of each scene of ``part``}; and what the last one computed."""
    suite = SUITES[run.family]
    wanted = set[str]().union(*(suite.pictures_of(task) for task in run.tasks))
    frames = [suite.frames(run.first + index, run.side, wanted) for index in part]
    found: list[dict[str, list[Scores]]] = [defaultdict(list) for _ in pipes]
    own = Kept()
    for number, task in enumerate(run.tasks, 1):
        cases = [suite.case_of(task, each) for each in frames]
        results = [list(_results(pipe, task, cases, run, part)) for pipe in pipes]
        for scene, result in zip(part, results[-1], strict=True):
            own.latents[task, scene] = result.latents
        if number == 1:
            own.velocity.update(_velocities(pipes[-1], own, task, part))
        exact = own if stored is None else stored
        for side, made in enumerate(results):
            scores = [case.score(result) for case, result in zip(cases, made, strict=True)]
            checks = [case.check(result) for case, result in zip(cases, made, strict=True) if case.check is not None]
            if checks:
                estimates = _results(pipes[side], CHECK_TASK, checks, run, part)
                scores = [row | check.score(each) for row, check, each in zip(scores, checks, estimates, strict=True)]
            if stored is not None or len(pipes) > 1:
                distances = _distances(pipes[side], exact, task, made, part)
                scores = [row | each for row, each in zip(scores, distances, strict=True)]
            found[side][task] += scores
        done = f"{task} ({number}/{len(run.tasks)})"
        print(f"scenes {part.start} to {part.stop - 1} of {run.scenes}: {done}", file=sys.stderr, flush=True)
    return [dict(each) for each in found], own


def _results(pipe: framert.Pipeline, task: str, cases: list[Case], run: Run, part: range) -> Iterator[framert.Result]:
    engine = pipe.engine()
    options = {"steps": run.steps, "guidance": run.guidance}
    if run.side != pipe.manifest.native_side:
        options["size"] = (run.side, run.side)
    tickets = [
        engine.submit(framert.Request(task=task, seed=run.first + index, **case.request, **options))
        for index, case in zip(part, cases, strict=True)
    ]
    return (ticket.result() for ticket in tickets)


def _distances(
    pipe: framert.Pipeline, exact: Kept, task: str, made: list[framert.Result], scenes: range
) -> list[Scores]:
    """Return, scene by scene, how far a pipeline is from the reference on the same noise.

    latents_psnr, of a task that the reference has: dB over the range of its latents, after the whole solver.
    velocity_error, of the task whose velocities it has: relative L2 distance, root mean square over LEVELS, both at the
    reference's latents under noise.
    """
    if (task, scenes[0]) not in exact.latents:
        return [{} for _ in made]
    distances: list[Scores] = []
    for scene, ours in zip(scenes, made, strict=True):
        truth = exact.latents[task, scene]
        distances.append({"latents_psnr": decibels(ours.latents, truth, float(np.ptp(truth)))})
    if (task, scenes[0]) not in exact.velocity:
        return distances
    found = _velocities(pipe, exact, task, scenes)
    for each, scene in zip(distances, scenes, strict=True):
        truth = exact.velocity[task, scene]
        errors = np.linalg.norm(found[task, scene] - truth, axis=1) / np.linalg.norm(truth, axis=1)
        each["velocity_error"] = float(np.sqrt(np.mean(np.square(errors))))
    return distances


def _velocities(pipe: framert.Pipeline, exact: Kept, task: str, scenes: range) -> dict[tuple[str, int], Array]:
    """Return a pipeline's velocities, (levels, values), at the reference's latents of each scene under noise.

    Args:
        scenes: their numbers, which noise and text are drawn from: they do not depend on who shares a process.
    """
    drawn = [np.random.default_rng(scene) for scene in scenes]
    clean = np.stack([exact.latents[task, scene] for scene in scenes])
    noise = np.stack([random.standard_normal(clean.shape[1:], np.float32) for random in drawn])
    words = (WORDS, pipe.manifest.model.text_width)
    text = np.stack([random.standard_normal(words, np.float32) for random in drawn])
    mask = np.ones(text.shape[:2], np.int64)
    levels = []
    for level in LEVELS:
        sample, times = (1 - level) * clean + level * noise, np.full(clean.shape[1], 1000 * level, np.float32)
        levels.append(pipe.velocity(sample, times, text, mask).reshape(len(clean), -1))
    return {(task, scene): each for scene, each in zip(scenes, np.stack(levels, axis=1), strict=True)}


def _error_of_constant(run: Run) -> list[float]:
    """Return, for each scene, the error of the grey that is best for all of them: what knowing nothing reaches."""
    depths = np.stack([_depth(scene_frames(run.first + index, run.side, {"depth"})) for index in range(run.scenes)])
    return np.abs(depths - np.median(depths)).mean((1, 2)).tolist()


def _depth(frames: SceneFrames) -> Float:
    return frames.pictures["depth"][..., 0]
