"""Plot how a checkpoint of Blocks learned: losses and task metrics against steps.

    python benchmarks/blocks/curves.py models/blocks

Reads losses.csv, which training writes, and scores.csv, which progress.py writes; makes curves.png beside them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import losses
import numpy as np
from floors import TARGETS
from progress import Score, read_scores

GROUPS = {  # curves of single tasks would hide each other
    "pictures from words": ("text_to_image", "text_to_multiview"),
    "pictures from maps": ("depth", "semantic", "boxes", "canny", "hed", "pose"),
    "maps from pictures": ("image_to_", "segment"),
    "repair and edit": ("deblur", "inpaint", "outpaint", "edit"),
    "same things elsewhere": ("identity", "subject"),
    "views": ("image_to_multiview",),
    "camera": ("camera_pose",),
}
SMOOTH = 20  # rows in a running mean


def group_of(task: str) -> str:
    """Return the name of the group that a task's loss is drawn in."""
    exact = next((name for name, members in GROUPS.items() if task in members), None)
    if exact:
        return exact
    return "maps from pictures" if task.startswith("image_to_") else "pictures from maps"


def smoothed(values: list[float]) -> list[float]:
    """Return the running mean over the last SMOOTH values, or as many as there are."""
    return [float(np.mean(values[max(0, at - SMOOTH + 1) : at + 1])) for at in range(len(values))]


def draw(folder: Path) -> Path:
    """Draw curves.png of a checkpoint folder and return its path; needs matplotlib."""
    from matplotlib.figure import Figure

    rows = losses.read(folder / "losses.csv")
    scores = read_scores(folder / "scores.csv")
    figure = Figure(figsize=(11, 8), layout="constrained")
    shown = list(dict.fromkeys((each.task, each.metric) for each in scores))
    grid = figure.add_gridspec(1 + -(-len(shown) // 4), 4)
    _draw_losses(figure.add_subplot(grid[0, :]), rows)
    for number, (task, metric) in enumerate(shown):
        _draw_scores(figure.add_subplot(grid[1 + number // 4, number % 4]), scores, task, metric)
    path = folder / "curves.png"
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def _draw_losses(axes: Any, rows: list[dict[str, float]]) -> None:
    tasks = sorted({name for row in rows for name in row if name not in losses.HEAD})
    for group in GROUPS:
        mine = [task for task in tasks if group_of(task) == group]
        points = [(row["step"], np.mean([row[task] for task in mine if task in row])) for row in rows
                  if any(task in row for task in mine)]  # fmt: skip
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, smoothed(list(values)), label=group, lw=1.2)
    axes.set(yscale="log", ylabel="velocity error", title="training loss")
    hours = rows[-1]["cpu_seconds"] / 3600 if rows else 0
    axes.set_xlabel(f"steps ({hours:.1f} core hours)")
    axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.3)


def _draw_scores(axes: Any, scores: list[Score], task: str, metric: str) -> None:
    mine = sorted((each for each in scores if (each.task, each.metric) == (task, metric)), key=lambda each: each.step)
    steps, values = [each.step for each in mine], [each.value for each in mine]
    axes.fill_between(steps, [each.low for each in mine], [each.high for each in mine], alpha=0.2)
    axes.plot(steps, values, marker=".", lw=1)
    for target in TARGETS:
        if (target.task, target.metric) == (task, metric):
            axes.axhline(target.limit, color="grey", ls=":", lw=1)
    axes.set_title(f"{task}\n{metric}", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def main() -> int:
    """Draw the plot and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    given = parser.parse_args()
    try:
        print(draw(given.checkpoint))
    except (OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ValueError, KeyError) as error:
        print(f"error: losses.csv or scores.csv in {given.checkpoint} is not what training writes: {error!r}",
              file=sys.stderr)  # fmt: skip
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
