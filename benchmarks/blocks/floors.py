"""What evaluate.py's metrics have to reach for every task to count as working, and the scores as a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Floor:
    """What a metric of a task has to reach: at least, or at most, ``limit``."""

    task: str
    metric: str
    limit: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def verdict(self, figures: Mapping[str, float]) -> str:
        """Return whether the value, and whether its whole interval, reaches the limit; of {value, low, high}."""
        if not self.met(figures["value"]):
            return "**not met**"
        worst = figures["high"] if self.at_most else figures["low"]
        return "met" if self.met(worst) else "met, within the interval"

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


FLOORS = (
    Floor("image_to_depth", "error_over_constant", 0.5, at_most=True),
    Floor("image_to_semantic", "iou", 0.5),
    Floor("semantic_to_image", "colours", 0.7),  # on the right thing
    Floor("semantic_to_image", "colours_anywhere", 0.7),
    Floor("text_to_image", "colours", 0.7),
    Floor("deblur", "gain_db", 1.5),
    Floor("inpaint", "gain_db", 3.0),
    Floor("edit", "success", 0.6),
    Floor("image_to_multiview", "gain_over_copy_db", 0.0),
    Floor("camera_pose", "rotation_over_identity", 0.5, at_most=True),
    Floor("segment", "iou", 0.5),
    Floor("layout_to_image", "hits", 0.6),
)

# What a person who looks at the gallery would call right; floors are far below.
TARGETS = (
    Floor("image_to_depth", "abs_rel", 0.08, at_most=True),
    Floor("image_to_semantic", "iou", 0.85),
    Floor("image_to_boxes", "iou", 0.7),
    Floor("text_to_image", "objects", 0.85),
    Floor("semantic_to_image", "mask_iou", 0.8),
    Floor("semantic_to_image", "objects", 0.8),  # boxes for things have a mask_iou of .76, the map itself 1
    Floor("depth_to_image", "reestimated_abs_rel", 0.12, at_most=True),
    Floor("depth_to_image", "mask_iou", 0.8),
    Floor("depth_to_image", "objects", 0.8),
    Floor("canny_to_image", "mask_iou", 0.8),
    Floor("canny_to_image", "objects", 0.8),
    Floor("deblur", "gain_db", 5.0),
    Floor("inpaint", "gain_db", 8.0),
    Floor("edit", "success", 0.8),
    Floor("edit", "background_psnr", 25.0),
    Floor("identity", "objects", 0.8),
    Floor("subject", "item", 0.8),
    Floor("image_to_multiview", "psnr", 20.0),
    Floor("image_to_multiview", "gain_over_copy_db", 4.0),
    Floor("camera_pose", "rotation_degrees", 8.0, at_most=True),
    Floor("camera_pose", "centre_accuracy_0.3", 0.9),
)


def format_targets(table: Mapping[str, Any]) -> str:
    """Return the targets of the tasks that a table holds as Markdown, and which are met; "" if it holds none."""
    lines = ["| task | metric | value | 95 % interval | target | |", "|---|---|---|---|---|---|"]
    if not any(isinstance(table.get(target.task, {}).get(target.metric), Mapping) for target in TARGETS):
        return ""  # no task of a target, or an evaluation from before there were intervals
    for target in TARGETS:
        if target.task not in table:
            continue
        figures = table[target.task].get(target.metric)
        if isinstance(figures, Mapping):
            measured = (f"{figures['value']:.3f}", f"{figures['low']:.3f} to {figures['high']:.3f}")
            row = (target.task, target.metric, *measured, str(target), target.verdict(figures))
        else:
            row = (target.task, target.metric, "", "", str(target), "not measured")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def format_table(table: Mapping[str, Any], *, floors_only: bool = False) -> str:
    """Return the scores as Markdown, each floor beside its metric.

    Args:
        table: {task: {metric: value, or {value, low, high} with a 95 % interval, "scenes": n}}; names that begin with
            an underscore are no tasks. floors_only: leave out metrics that have no floor.
    """
    floors = {(floor.task, floor.metric): floor for floor in FLOORS}
    lines = ["| task | metric | value | 95 % interval | floor | | scenes |", "|---|---|---|---|---|---|---|"]
    for task, scores in table.items():
        if task.startswith("_"):
            continue
        scenes = f"{scores['scenes']:.0f}" if "scenes" in scores else ""
        for metric, figures in scores.items():
            floor = floors.get((task, metric))
            if metric == "scenes" or (floors_only and floor is None):
                continue
            value = figures["value"] if isinstance(figures, Mapping) else figures
            interval = f"{figures['low']:.3f} to {figures['high']:.3f}" if isinstance(figures, Mapping) else ""
            verdict = "" if floor is None else "met" if floor.met(value) else "**not met**"
            lines.append(f"| {task} | {metric} | {value:.3f} | {interval} | {floor or ''} | {verdict} | {scenes} |")
    if all(line.split("|")[4].strip() in ("", "95 % interval", "---") for line in lines):  # figures without intervals
        lines = ["|".join(part for place, part in enumerate(line.split("|")) if place != 4) for line in lines]
    return "\n".join(lines)
