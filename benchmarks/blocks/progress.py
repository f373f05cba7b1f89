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

import framert

SHOWN = (
    ("text_to_image", "objects"), ("semantic_to_image", "objects"), ("depth_to_image", "reestimated_abs_rel"),
    ("semantic_to_image", "mask_iou"), ("image_to_depth", "abs_rel"), ("image_to_semantic", "iou"),
    ("edit", "success"), ("subject", "objects"), ("inpaint", "gain_db"), ("deblur", "gain_db"),
    ("image_to_multiview", "psnr"), ("camera_pose", "rotation_degrees"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Score:
    """A metric after ``step`` steps of training and the ends of its 95 % interval."""

    step: int
    task: str
    metric: str
    value: float
    low: float
    high: float


def measure(checkpoint: Path, run: Run, jobs: int) -> list[Score]:
    """Return the scores of SHOWN of a checkpoint, run in fp32 on ONNX Runtime."""
    from framert.export.pipeline import export

    step = int(losses.read(checkpoint / "losses.csv")[-1]["step"])
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(checkpoint, Path(folder) / "bundle")
        values, *_ = run_scenes(Sides(bundle=bundle, backend="onnxruntime", precision=None, threads=1), run, jobs)
    made = []
    for task, metric in SHOWN:
        found = estimate(values[task], metric)
        made.append(Score(step, task, metric, found.value, found.low, found.high))
    return made


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
    tasks = tuple(dict.fromkeys(task for task, _ in SHOWN))
    run = Run(tasks=tasks, first=0, scenes=given.scenes, steps=given.steps, guidance=None, side=64)
    try:
        made = measure(given.checkpoint, run, given.jobs)
        add_scores(given.checkpoint / "scores.csv", made)
    except (framert.FramertError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for each in made:
        print(" ".join(str(value) for value in asdict(each).values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
