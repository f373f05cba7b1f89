"""Two evaluations of the same scenes from the same noise, scene by scene: what the second one loses."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from intervals import LIMIT, NOT_SCORES, Loss, metrics_of, relative_loss
from measured import SETTINGS, Measured

WORDS = {
    "beyond": f"beyond {LIMIT:.0%}",
    "within": f"within {LIMIT:.0%}",
    "open": f"not shown to be within {LIMIT:.0%}",
    "": "",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """losses: {task: {metric: ...}} of ``impl`` against ``reference``; floor: the same of a precision whose loss counts
    as noise, and its name. models: those of reference and impl, where they are two; no loss is a precision's then.
    """

    reference: str
    impl: str
    losses: dict[str, dict[str, Loss]]
    floor: dict[str, dict[str, Loss]]
    floor_impl: str = ""
    models: tuple[str, str] | None = None

    @classmethod
    def of(cls, reference: Measured, other: Measured, floor: Measured | None = None) -> "Comparison":
        """Compare in pairs. Raises: ValueError if scenes or settings differ, or no task is in both."""
        models = (reference.run["model"], other.run["model"])
        return cls(
            reference.impl,
            other.impl,
            _losses(reference, other),
            {} if floor is None else _losses(reference, floor),
            "" if floor is None else floor.impl,
            None if models[0] == models[1] else models,
        )

    def __iter__(self) -> Iterator[tuple[str, str, Loss]]:
        return ((task, name, loss) for task, losses in self.losses.items() for name, loss in losses.items())

    def worst(self) -> tuple[str, str, Loss] | None:
        """Return task, metric and loss of the largest loss on a continuous metric."""
        judged = [each for each in self if each[2].continuous]
        return max(judged, key=lambda each: each[2].loss.value, default=None)

    def beyond(self) -> list[tuple[str, str, Loss]]:
        """Return the continuous metrics whose whole interval lies beyond LIMIT."""
        return [each for each in self if each[2].verdict == "beyond"]

    def as_json(self) -> dict[str, Any]:
        """Return {task: {metric: {reference, value, loss, low, high, verdict}}}."""
        content: dict[str, Any] = {}
        for task, metric, loss in self:
            figures = {"loss": loss.loss.value, **asdict(loss.loss), "reference": loss.reference, "value": loss.value}
            content.setdefault(task, {})[metric] = figures | {"verdict": loss.verdict}
        return content


def comparison_table(comparison: Comparison) -> str:
    """Return the losses as Markdown, and in one sentence whether the precision may be a default."""
    floored = bool(comparison.floor)
    lines = [
        f"{comparison.impl} against {comparison.reference}, scene by scene:",
        "",
        f"| task | metric | {comparison.reference} | {comparison.impl} | relative loss | 95 % interval |"
        f"{f' {comparison.floor_impl} |' if floored else ''} |",
        f"|---|---|---|---|---|---|{'---|' if floored else ''}---|",
    ]
    for task, metric, each in comparison:
        noise = comparison.floor.get(task, {}).get(metric)
        beside = f" {_interval(noise) if noise else ''} |" if floored else ""
        lines.append(
            f"| {task} | {metric} | {each.reference:.4g} | {each.value:.4g} | {each.loss.value:.2%} | "
            f"{_interval(each)} |{beside} {WORDS[each.verdict]} |"
        )
    return "\n".join([*lines, "", _sentence(comparison)])


def _sentence(comparison: Comparison) -> str:
    worst = comparison.worst()
    if comparison.models:
        first, second = comparison.models
        return f"These are two models, {first} and {second}: the losses are not a precision's."
    if worst is None:
        return f"{comparison.impl}: no continuous metric was measured, so nothing can be said about a default."
    task, metric, loss = worst
    largest = f"largest loss {loss.loss.value:.2%} ({_interval(loss)}), {metric} of {task}"
    if beyond := comparison.beyond():
        names = ", ".join(f"{metric} of {task}" for task, metric, _ in beyond)
        return f"{comparison.impl}: beyond {LIMIT:.0%} on {names}, so it is not the default; {largest}."
    return f"{comparison.impl}: no interval lies beyond {LIMIT:.0%}; {largest}."


def _interval(loss: Loss) -> str:
    return f"{loss.loss.low:.2%} to {loss.loss.high:.2%}"


def check_settings(reference: Measured, other: Measured) -> None:
    """Raises: ValueError if two evaluations are not of the same scenes, or not with the same settings."""
    for name in SETTINGS:
        if reference.run[name] != other.run[name]:
            raise ValueError(
                f"{reference.impl} was evaluated with {name} {reference.run[name]} and {other.impl} with "
                f"{other.run[name]}; only the same scenes, steps and guidance can be compared in pairs"
            )


def check_one_model(models: Sequence[str]) -> None:
    """Raises: ValueError if evaluations that are to be kept as a precision's losses are of several models."""
    if others := [model for model in models if model != models[0]]:
        raise ValueError(
            f"--rows and --record keep what a precision loses; {models[0]} and {others[0]} are two models: leave them "
            "out, or give --against the same model in fp32"
        )


def _losses(reference: Measured, other: Measured) -> dict[str, dict[str, Loss]]:
    check_settings(reference, other)
    tasks = [task for task in reference.tasks if task in other.tasks]
    if not tasks:
        raise ValueError(f"{reference.impl} and {other.impl} have no task in common; evaluate the same tasks")
    return {
        task: {
            metric: relative_loss(reference.tasks[task], other.tasks[task], metric)
            for metric in metrics_of(reference.tasks[task])
            if metric not in NOT_SCORES and metric in metrics_of(other.tasks[task])
        }
        for task in tasks
    }
