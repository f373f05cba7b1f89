"""How losses fell: a CSV beside the weights, one row for every so many steps, that goes on where training does."""

import csv
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

EVERY = 50  # steps in a row
HEAD = ("step", "seconds", "cpu_seconds")  # of training, wall clock and processor time


class Losses:
    """Means of each task's loss. Rows reach the file with ``write``, when the state that belongs to them is saved."""

    def __init__(self, path: Path, tasks: Iterable[str], step: int) -> None:
        """step: where training stands; rows of a future that was lost are left out."""
        self.path, self.tasks = path, sorted(tasks)
        self.rows = [row for row in read(path) if row["step"] <= step] if path.exists() else []
        self.sums: dict[str, list[float]] = defaultdict(list)

    def add(self, tasks: Iterable[str], values: Iterable[float]) -> None:
        """Count one step's losses, a task and a value for every sequence."""
        for task, value in zip(tasks, values, strict=True):
            self.sums[task].append(value)

    def row(self, step: int, seconds: float, cpu_seconds: float) -> dict[str, float]:
        """Close the row that ends at ``step`` and return it: HEAD and the tasks that came up."""
        means = {task: sum(values) / len(values) for task, values in self.sums.items()}
        self.rows.append({"step": step, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)} | means)
        self.sums.clear()
        return self.rows[-1]

    def write(self) -> None:
        """Write all rows; a stop leaves the old file or the new one."""
        part = self.path.with_suffix(".part")
        with part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, [*HEAD, *self.tasks], lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
        os.replace(part, self.path)


def read(path: Path) -> list[dict[str, float]]:
    """Return the rows of a file that ``Losses`` wrote; a task that did not come up in a row is not in it."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
