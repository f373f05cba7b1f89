"""OneDiffusion's tasks, one row each: what the engine runs follows from the row, not from code of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from framert.runtime.composition import Output
from framert.runtime.families.onediffusion import prompts
from framert.runtime.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTask(Task):
    """One row of the table.

    frames: (number of given images, number of cameras) -> mask. write: makes the prompt. multiview: frames alternate
    picture, rays.
    """

    frames: Callable[[int, int], tuple[int, ...]]
    write: Callable[[prompts.Words], str] = prompts.text
    multiview: bool = False


def _alone(images: int, cameras: int) -> tuple[int, ...]:
    return (1,)


def _from_given(images: int, cameras: int) -> tuple[int, ...]:
    return (1,) + (0,) * images


def _beside_given(images: int, cameras: int) -> tuple[int, ...]:
    return (0,) * images + (1,)


def _new_views(images: int, cameras: int) -> tuple[int, ...]:
    """Picture, rays, picture, rays: the first pictures are given, and every ray."""
    return tuple(value for view in range(cameras) for value in (int(view >= images), 0))


def _new_rays(images: int, cameras: int) -> tuple[int, ...]:
    return (0, 1) * images


def _paired(kind: str, token: str, summary: str, output: Output | None = None) -> tuple[FrameTask, FrameTask]:
    """The two directions of a picture and its map."""
    return (
        FrameTask(
            name=f"image_to_{kind}",
            summary=f"{summary} of a picture",
            token=token,
            frames=_beside_given,
            output=output,
        ),
        FrameTask(name=f"{kind}_to_image", summary=f"a picture from its {summary}", token=token, frames=_from_given),
    )


def _named(
    kind: str, token: str, summary: str, write: Callable[[prompts.Words], str], output: Output
) -> tuple[FrameTask, FrameTask]:
    """The two directions of a picture and a map in which colours stand for named things."""
    return (
        FrameTask(
            name=f"image_to_{kind}",
            summary=f"{summary} of named things in a picture",
            token=token,
            frames=_beside_given,
            write=write,
            needs=("colors",),
            output=output,
        ),
        FrameTask(
            name=f"{kind}_to_image",
            summary=f"a picture from {summary} of named things",
            token=token,
            frames=_from_given,
            write=write,
            needs=("colors",),
        ),
    )


# Steps and guidance are the published ones; where they say 3 to 3.5 (whatever keeps a given picture), 3.5. Cameras are
# estimated without guidance: the published code never ran that task to its end, and what guidance would extrapolate
# is the estimate's error.
_ROWS = (
    FrameTask(
        name="text_to_image",
        summary="a picture from words",
        token="[[text2image]]",
        frames=_alone,
        images=(0, 0),
        prompt_required=True,
        size_rule="native",
    ),
    *_paired("depth", "[[depth2image]]", "depth", "depth"),
    *_paired("canny", "[[canny2image]]", "Canny edges"),
    *_paired("hed", "[[hed2img]]", "soft (HED) edges"),
    *_paired("pose", "[[pose2image]]", "body pose"),
    *_named("semantic", "[[semanticmap2image]]", "coloured masks", prompts.masks, "masks"),
    *_named("boxes", "[[boundingbox2image]]", "coloured boxes", prompts.boxes, "boxes"),
    FrameTask(
        name="deblur",
        summary="a sharp picture from a blurred one",
        token="[[deblurring]]",
        frames=_from_given,
        guidance=3.5,
    ),
    FrameTask(
        name="inpaint",
        summary="a picture with its hole filled",
        token="[[image_inpainting]]",
        frames=_from_given,
        needs=("hole",),
        guidance=3.5,
    ),
    FrameTask(
        name="edit",
        summary="a picture changed as the prompt says",
        token="[[image_editing]]",
        frames=_from_given,
        prompt_required=True,
        guidance=3.5,
    ),
    FrameTask(
        name="identity",
        summary="a new picture of the person in one to three pictures",
        token="[[faceid]]",
        frames=_from_given,
        images=(1, 3),
        write=prompts.references,
        prompt_required=True,
        takes=("captions",),
        steps=75,
    ),
    FrameTask(
        name="subject",
        summary="a new picture of the thing in a picture",
        token="[[subject_driven]]",
        frames=_from_given,
        write=prompts.references,
        prompt_required=True,
        needs=("item",),
        takes=("captions",),
    ),
    FrameTask(
        name="image_to_multiview",
        summary="further views of what one or more pictures show, at given cameras",
        token="[[multiview]]",
        frames=_new_views,
        images=(1, None),
        needs=("cameras",),
        multiview=True,
        steps=60,
        size_rule="square",
    ),
    FrameTask(
        name="text_to_multiview",
        summary="views at given cameras of what words say",
        token="[[multiview]]",
        frames=_new_views,
        images=(0, 0),
        prompt_required=True,
        needs=("cameras",),
        multiview=True,
        steps=60,
        size_rule="square",
    ),
    FrameTask(
        name="camera_pose",
        summary="the cameras that two or more pictures were taken with",
        token="[[multiview]]",
        frames=_new_rays,
        images=(2, None),
        takes=("cameras",),
        output="cameras",
        multiview=True,
        steps=60,
        guidance=1.0,
        size_rule="square",
    ),
)
TASKS: Mapping[str, FrameTask] = {row.name: row for row in _ROWS}
