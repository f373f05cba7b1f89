"""What is evaluated of each family: its tasks on Blocks, the pictures they read, and their cases."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cases
import channel_cases
from cases import Case
from channel_frames import channel_frames
from frames import SceneFrames, scene_frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """quick: tasks with a continuous metric each; judged: tasks whose scores take a trained judge.

    frames: renders a scene's pictures, of seed, side and names. curve: the metrics that are followed during training.
    given: names of the pictures that show best what a task was given, where it is not the pictures of its request.
    truths: names of the pictures that a task's result is to look like.
    """

    tasks: tuple[str, ...]
    quick: tuple[str, ...]
    judged: frozenset[str]
    frames: Callable[[int, int, set[str] | None], SceneFrames]
    pictures_of: Callable[[str], set[str]]
    case_of: Callable[[str, SceneFrames], Case]
    truths: Callable[[str, SceneFrames], tuple[str, ...]]
    given: Mapping[str, str]
    curve: tuple[tuple[str, str], ...]


SUITES = {
    "onediffusion": Suite(
        tasks=cases.TASKS,
        quick=("image_to_depth", "image_to_semantic", "inpaint", "edit", "image_to_multiview"),
        judged=cases.JUDGED,
        frames=scene_frames,
        pictures_of=cases.pictures_of,
        case_of=cases.case_of,
        truths=cases.truths_of,
        given={"inpaint": "hole"},
        curve=(
            ("text_to_image", "objects"), ("semantic_to_image", "objects"), ("depth_to_image", "reestimated_abs_rel"),
            ("semantic_to_image", "mask_iou"), ("image_to_depth", "abs_rel"), ("image_to_semantic", "iou"),
            ("edit", "success"), ("subject", "objects"), ("inpaint", "gain_db"), ("deblur", "gain_db"),
            ("image_to_multiview", "psnr"), ("camera_pose", "rotation_degrees"),
        ),
    ),
    "univg": Suite(
        tasks=channel_cases.TASKS,
        quick=("image_to_depth", "segment", "inpaint", "edit"),
        judged=channel_cases.JUDGED,
        frames=channel_frames,
        pictures_of=channel_cases.pictures_of,
        case_of=channel_cases.case_of,
        truths=channel_cases.truths_of,
        given={"inpaint": "hole", "outpaint": "canvas", "layout_to_image": "layout"},
        curve=(
            ("text_to_image", "objects"), ("identity", "objects"), ("layout_to_image", "objects"),
            ("layout_to_image", "hits"), ("segment", "iou"), ("image_to_depth", "abs_rel"), ("edit", "success"),
            ("inpaint", "gain_db"),
            ("outpaint", "gain_db"),
        ),
    ),
}  # fmt: skip
