"""Score a checkpoint of Blocks as it is now and add the scores to its scores.csv, a point of each task's curve.

    python benchmarks/blocks/progress.py models/blocks [--scenes 64] [--steps 12] [--jobs 2]

May run beside a training that writes the checkpoint. Points of one curve should have the same scenes and steps.
"""

import argparse
import csv
import sys
import tempfile
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import losses
from intervals import estimate
from scenes import Run, Sides, run_scenes
from suites import SUITES

import framert
from framert.runtime.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Score:
    """A metric after ``step`` steps of training and the ends of its 95 % interval."""

    step: int
    task: str
    metric: str
    value: float
    low: float
    high: float


def measure(checkpoint: Path, scenes: int, steps: int, jobs: int) -> list[Score]:
    """Return the scores of its family's curves of a checkpoint, run in fp32 on ONNX Runtime."""
    from framert.export.pipeline import export

    step = _step(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(checkpoint, Path(folder) / "bundle")
        if _step(checkpoint) != step:
            raise ValueError(f"{checkpoint} was written by its training meanwhile; run this again")
        manifest = Bundle.open(bundle).manifest
        family = manifest.family
        tasks = tuple(dict.fromkeys(task for task, _ in SUITES[family].curve))
        run = Run(tasks=tasks, first=0, scenes=scenes, steps=steps, guidance=None, side=manifest.native_side,
                  family=family)  # fmt: skip
        values, *_ = run_scenes(Sides(bundle=bundle, backend="onnxruntime", precision=None, threads=1), run, jobs)
    made = []
    for task, metric in SUITES[family].curve:
        found = estimate(values[task], metric)
        made.append(Score(step, task, metric, found.value, found.low, found.high))
    return made


def _step(checkpoint: Path) -> int:
    """Return the step that a checkpoint's weights are of. Raises: ValueError if it has no losses yet."""
    rows = losses.read(checkpoint / "losses.csv")
    if not rows:
        raise ValueError(f"{checkpoint / 'losses.csv'} has no rows yet; train for some steps first")
    return int(rows[-1]["step"])


def read_scores(path: Path) -> list[Score]:
    """Return the scores of a file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            Score(
                int(row["step"]), row["task"], row["metric"], *(float(row[name]) for name in ("value", "low", "high"))
            )
            for row in csv.DictReader(stream)
        ]


def add_scores(path: Path, made: list[Score]) -> None:
    """Add scores to a file, in place of earlier ones of the same step, task and metric."""
    table = {(each.step, each.task, each.metric): each for each in (*read_scores(path), *made)}
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([field.name for field in fields(Score)])
        for each in table.values():
            writer.writerow([*astuple(each)[:3], *(f"{number:.5g}" for number in astuple(each)[3:])])
    part.replace(path)


def main() -> int:
    """Measure, store and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    for name in ("scenes", "steps", "jobs"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} is {getattr(given, name)}; give at least 1")
    try:
        made = measure(given.checkpoint, given.scenes, given.steps, given.jobs)
        add_scores(given.checkpoint / "scores.csv", made)
    except (framert.FramertError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for each in made:
        print(" ".join(str(value) for value in asdict(each).values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
