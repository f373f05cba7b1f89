"""What a caller asks for, as one value: a task with its arguments, or raw frames."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from framert.runtime.arrays import Floats
from framert.runtime.images import ImageSource

if TYPE_CHECKING:
    from PIL.Image import Image

    from framert.runtime.cameras import Cameras


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What ``on_step`` receives after each interval of the schedule. It runs inside the engine's step, which waits.

    step: intervals done, from 1. steps: intervals in all. sigma: noise level reached, 1 down to 0.
    preview: call it, before ``on_step`` returns, for small pictures of the current clean estimate, one per generated
    picture frame.
    """

    step: int
    steps: int
    sigma: float
    preview: Callable[[], "list[Image]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One result to make. ``Pipeline.run`` documents the fields; None means the task's own value.

    With ``task`` the frames follow from the task; without it ``mask`` (1 = generate) gives them, over all frames.
    """

    task: str | None = None
    prompt: str = ""
    images: Sequence[ImageSource] = ()
    mask: Sequence[int] | None = None
    cameras: "Cameras | None" = None
    multiview: bool = False
    colors: Mapping[str, str] | None = None
    hole: ImageSource | None = None
    captions: Sequence[str] | None = None
    item: str | None = None
    boxes: Mapping[str, Sequence[float]] | None = None
    extend: Sequence[int] | None = None
    negative_prompt: str = ""
    steps: int | None = None
    guidance: float | None = None
    image_guidance: float | None = None
    size: tuple[int, int] | None = None
    seed: int = 0
    noise: Floats | None = None
    solver: str = "euler"
    reuse: int = 1
    on_step: Callable[[StepInfo], None] | None = None
