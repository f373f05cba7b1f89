"""What an evaluation measured: settings and a value for every task, metric and scene; and its JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from frames import Story, tell
from heldout import novelty
from intervals import estimate, metrics_of

RUN, LOSSES = "_run", "_losses"  # beside the tasks in the JSON; no task begins with an underscore
SETTINGS = ("first", "scenes", "steps", "guidance", "side")  # that must agree for two to be compared
DIGITS = 6  # of what is stored
# Metrics of obeying words, of tasks that name things: also by what was held out of training.
WORDED = {"objects", "things", "item", "success", "hits", "iou"}
GROUPS = {"": "known", "things": "new_things", "pairs": "new_pairs"}


@dataclass(frozen=True, slots=True)
class Measured:
    """run: first seed, scenes, steps, guidance and side, and whose scores these are: impl and model.

    tasks: {task: {metric: one value per scene}}.
    """

    run: dict[str, Any]
    tasks: dict[str, dict[str, list[float]]]

    @property
    def impl(self) -> str:
        """Backend and precision."""
        return str(self.run["impl"])

    def as_json(self, *, summary: bool = False) -> dict[str, Any]:
        """Return {task: {metric: {value, low, high, values}, "scenes": n}} and the settings.

        Tasks that words drive have rows "task/known", "task/new_things" and "task/new_pairs" too: the scenes with
        nothing that was held out of training, and those with something.

        Args:
            summary: leave out the scenes' values and the settings: figures to commit, not to compare in pairs.
        """
        content: dict[str, Any] = {} if summary else {RUN: self.run}
        for task, columns in self.tasks.items():
            content[task] = {}
            for metric in metrics_of(columns):
                figures = {name: _short(value) for name, value in asdict(estimate(columns, metric)).items()}
                values = {"values": [_short(value) for value in columns[metric]]} if metric in columns else {}
                content[task][metric] = figures if summary else figures | values
            content[task]["scenes"] = len(next(iter(columns.values())))
            if not WORDED.isdisjoint(columns):
                content |= {f"{task}/{name}": row for name, row in self._by_novelty(task, columns)}
        return content

    def _by_novelty(self, task: str, columns: dict[str, list[float]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Return (group, its metrics) for the groups that have scenes."""
        count = len(next(iter(columns.values())))
        kinds = [_novelty(task, tell(self.run["first"] + index)) for index in range(count)]
        for kind, name in GROUPS.items():
            part = {metric: [value for value, each in zip(values, kinds, strict=True) if each == kind]
                    for metric, values in columns.items() if metric in WORDED}  # fmt: skip
            if kind in kinds:
                figures = {metric: asdict(estimate(part, metric)) for metric in part}
                shortened = {metric: {name: _short(value) for name, value in each.items()}
                             for metric, each in figures.items()}  # fmt: skip
                yield name, shortened | {"scenes": kinds.count(kind)}

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Read the JSON of an earlier evaluation. Raises: ValueError or OSError that names the file."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tasks = {
                task: {name: figures["values"] for name, figures in metrics.items() if "values" in _of_metric(figures)}
                for task, metrics in content.items()
                if not task.startswith("_") and "/" not in task
            }
            return cls({name: content[RUN][name] for name in (*SETTINGS, "impl", "model")}, tasks)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} holds no values of single scenes ({error!r}); give a file that --json wrote without --summary"
            ) from error


def _novelty(task: str, story: Story) -> str:
    """Return what of a scene, and for an edit of what it is to become, was held out of training."""
    kinds = {novelty(scene) for scene in ([story.scene, story.edit.scene] if task == "edit" else [story.scene])}
    return next((kind for kind in ("things", "pairs") if kind in kinds), "")


def _of_metric(figures: Any) -> dict[str, Any]:
    return figures if isinstance(figures, dict) else {}  # the number of scenes is a plain number


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
