"""An evaluation in the manifest of the bundle it is of, beside what ``framert verify`` measured."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from comparison import Comparison
from measured import Measured

from framert.runtime.bench.rows import cpu_name
from framert.runtime.bundle import Bundle, write_manifest

KEY = "evaluation"


def record(path: Path, measured: Measured, comparisons: list[Comparison]) -> None:
    """Write an evaluation under ``verified`` in a bundle's manifest, by backend and precision; others there stay.

    It holds the settings, every task's metrics with their intervals and, of a comparison, the paired losses with
    theirs, the largest one, and those that lie beyond the limit.

    Raises: BundleError if the bundle cannot be opened or written.
    """
    opened = Bundle.open(path)
    content: dict[str, Any] = {
        "run": {name: value for name, value in measured.run.items() if name != "impl"},
        "tasks": measured.as_json(summary=True),
        "device": cpu_name(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for comparison in comparisons:
        content |= {"against": comparison.reference, "losses": comparison.as_json()}
        if comparison.floor:
            floor = replace(comparison, losses=comparison.floor, floor={})
            content["floor"] = {"impl": comparison.floor_impl, "losses": floor.as_json()}
        if (worst := comparison.worst()) is not None:
            task, metric, loss = worst
            content["largest"] = {
                "task": task, "metric": metric,
                "loss": loss.loss.value, "low": loss.loss.low, "high": loss.loss.high,
            }  # fmt: skip
        content["beyond"] = [f"{metric} of {task}" for task, metric, _ in comparison.beyond()]
    verified = dict(opened.manifest.verified)
    verified[KEY] = {**verified.get(KEY, {}), measured.impl: content}
    write_manifest(opened.path, replace(opened.manifest, verified=verified))
