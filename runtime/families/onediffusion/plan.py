"""From a task of OneDiffusion's table to one composition."""

from framert.runtime.cameras import Cameras
from framert.runtime.colors import COLORS, check_legend
from framert.runtime.composition import Composition
from framert.runtime.errors import TaskError
from framert.runtime.families.arguments import check_arguments, check_captions, filled, is_absent, read_hole
from framert.runtime.families.onediffusion import prompts
from framert.runtime.families.onediffusion.frames import check_cameras, frame_kinds
from framert.runtime.families.onediffusion.task_table import TASKS, FrameTask
from framert.runtime.images import read_image
from framert.runtime.request import Request


def plan(row: FrameTask, request: Request) -> Composition:
    """Compose a task of the table.

    Raises: TaskError for arguments it does not take or lacks, and wrong counts; ImageError.
    """
    check_arguments(row, TASKS, request)
    cameras, hole = request.cameras, request.hole
    pictures = tuple(read_image(image) for image in request.images)
    _check_views(row, cameras, len(pictures))
    if hole is not None and not is_absent(hole):
        pictures = tuple(filled(picture, read_hole(picture, hole)) for picture in pictures)
    legend = check_legend(request.colors) if request.colors else {}
    words = prompts.Words(
        token=row.token,
        prompt=request.prompt,
        colors=legend,
        captions=check_captions(request.captions, len(pictures)),
        item=_check_item(request.item),
    )
    mask = row.frames(len(pictures), 0 if cameras is None else len(cameras))
    return Composition(
        prompt=row.write(words),
        mask=mask,
        kinds=frame_kinds(len(mask), row.multiview),
        images=pictures,
        cameras=cameras,
        multiview=row.multiview,
        output=row.output,
        colors={thing: COLORS[color] for thing, color in legend.items()},
        steps=row.steps,
        guidance=row.guidance,
        size_rule=row.size_rule,
    )


def _check_views(row: FrameTask, cameras: Cameras | None, images: int) -> None:
    check_cameras(cameras)
    if cameras is None:
        return
    if row.output == "cameras" and len(cameras) != images:
        raise TaskError(
            f"{len(cameras)} cameras were given for {images} images; {row.name} needs none, or one per image"
        )
    if row.output != "cameras" and len(cameras) <= images:
        raise TaskError(
            f"{len(cameras)} cameras were given for {images} images; give those of the images first, "
            "then one for each view to make"
        )


def _check_item(item: str | None) -> str:
    if item is None:
        return ""
    if not isinstance(item, str) or not item.strip() or set(item) & set("<>[]"):
        raise TaskError(f"item is {item!r}; give words without < > [ ]")
    return item
