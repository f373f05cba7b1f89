"""An evaluation as benchmark rows: scores with their spread over scenes, and paired losses with their intervals."""

from dataclasses import replace

from comparison import Comparison
from measured import Measured

from framert.runtime.bench.rows import Environment, Row

BENCH = "quality"


def quality_rows(measured: Measured, comparisons: list[Comparison], environment: Environment) -> list[Row]:
    """Return the rows of an evaluation.

    A score's row holds quantiles over scenes. A loss is three rows, ``METRIC_loss_ratio`` and its interval's ends
    ``METRIC_loss_low_ratio`` and ``METRIC_loss_high_ratio``: the loss divided by the reference's score, over n scenes.
    """
    run = measured.run
    made = []

    def row(impl: str, task: str, metric: str, unit: str, samples: list[float]) -> Row:
        case = f"{task}; {run['scenes']} scenes of {run['side']} pixels from {run['first']}, {run['steps']} steps"
        case += f"; {run['model']}"
        return environment.row(bench=BENCH, impl=impl, case=case, metric=metric, unit=unit, samples=samples)

    for task, columns in measured.tasks.items():
        made += [row(measured.impl, task, metric, _unit(metric), values) for metric, values in columns.items()]
    for comparison in comparisons:
        impl = f"{comparison.impl}/{comparison.reference}"
        for task, metric, loss in comparison:
            if loss.continuous:
                ends = {"loss": loss.loss.value, "loss_low": loss.loss.low, "loss_high": loss.loss.high}
                single = [row(impl, task, f"{metric}_{end}_ratio", "x", [value]) for end, value in ends.items()]
                made += [replace(each, n=run["scenes"]) for each in single]
    return made


def _unit(metric: str) -> str:
    if metric.endswith(("psnr", "_db")):
        return "dB"
    return "degrees" if metric.endswith("degrees") else "1"
