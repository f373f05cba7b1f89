"""What evaluate.py's metrics have to reach for every task to count as working, and the scores as a table."""

from dataclasses import dataclass

Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Floor:
    """What a metric of a task has to reach: at least, or at most, ``limit``."""

    task: str
    metric: str
    limit: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

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
)


def format_table(table: dict[str, Scores], *, floors_only: bool = False) -> str:
    """Return the scores as Markdown, each floor beside its metric; ``scenes`` of a task says how many it is over."""
    floors = {(floor.task, floor.metric): floor for floor in FLOORS}
    lines = ["| task | metric | value | floor | | scenes |", "|---|---|---|---|---|---|"]
    for task, scores in table.items():
        scenes = f"{scores['scenes']:.0f}" if "scenes" in scores else ""
        for metric, value in scores.items():
            floor = floors.get((task, metric))
            if metric == "scenes" or (floors_only and floor is None):
                continue
            verdict = "" if floor is None else "met" if floor.met(value) else "**not met**"
            lines.append(f"| {task} | {metric} | {value:.3f} | {floor or ''} | {verdict} | {scenes} |")
    return "\n".join(lines)
