"""What an evaluation measured: settings and a value for every task, metric and scene; and its JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intervals import estimate, metrics_of

RUN = "_run"  # beside the tasks in the JSON; no task begins with an underscore
SETTINGS = ("first", "scenes", "steps", "guidance", "side")  # that must agree for two to be compared
DIGITS = 6  # of what is stored


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
        return content

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Read the JSON of an earlier evaluation. Raises: ValueError or OSError that names the file."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tasks = {
                task: {name: figures["values"] for name, figures in metrics.items() if "values" in _of_metric(figures)}
                for task, metrics in content.items()
                if task != RUN
            }
            return cls({name: content[RUN][name] for name in (*SETTINGS, "impl", "model")}, tasks)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} holds no values of single scenes ({error!r}); give a file that --json wrote without --summary"
            ) from error


def _of_metric(figures: Any) -> dict[str, Any]:
    return figures if isinstance(figures, dict) else {}  # the number of scenes is a plain number


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
