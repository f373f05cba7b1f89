"""The frames of one request: which are given, which are made, and what each of them is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from framert.runtime.cameras import Cameras
from framert.runtime.colors import Rgb

Kind = Literal["picture", "rays"]
SizeRule = Literal["native", "aspect", "square"]
Output = Literal["depth", "masks", "boxes", "cameras"]

CAMERAS_HINT = "cameras=framert.Cameras.orbit(...), one per view (--azimuth, --elevation, --distance)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """The frames of one request, whichever way they were asked for. A family adds what it needs besides.

    prompt: as the tokenizer reads it. mask: one entry per frame, 1 = generate. kinds: what each frame is.
    images: pictures of the mask-0 picture frames, in order. cameras: one per ray frame, or None when all rays are
    generated. output: what the result holds besides pictures. colors: {thing: colour} of its masks or boxes.
    size_rule: the default size is the bundle's native square, or the aspect table's entry for the first picture;
    "square" also forbids any other shape.
    """

    prompt: str
    mask: tuple[int, ...]
    kinds: tuple[Kind, ...]
    images: tuple[Image.Image, ...] = ()
    cameras: Cameras | None = None
    multiview: bool = False
    output: Output | None = None
    colors: Mapping[str, Rgb] = field(default_factory=dict)
    steps: int = 50
    guidance: float = 4.0
    size_rule: SizeRule = "native"

    @property
    def first(self) -> Image.Image | None:
        """The given picture whose shape the result takes where the caller gives no size."""
        return self.images[0] if self.images else None
