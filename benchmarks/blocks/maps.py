"""What the condition frames of Blocks show, as pictures (h, w, 3) in 0..1, and how to read them back.

Depth is grey and near is bright: ``grey = (1/z - 1/FAR) / (1/NEAR - 1/FAR)``, clipped to 0..1, z in scene units.
Masks and boxes are flat in the published named colours on black; a nearer thing covers a farther one.
"""

import numpy as np
from numpy.typing import NDArray
from world import Float, Rendering, Scene, Thing, View, project

from framert.runtime.colors import COLORS
from framert.runtime.families import arguments

NEAR, FAR = 0.9, 4.0  # scene units; what is farther, sky included, is black
BLUR_SIGMA = 0.06  # standard deviation of the deblurring task's blur, in units of the longer side
HOLE_SIDE = (0.3, 0.5)  # sides of the inpainting hole in units of the picture's sides
HOLE_GREY = arguments.HOLE_GREY / 255
MAP_COLOURS = tuple(list(COLORS)[:8])  # the eight that Blocks uses: far apart, so that they can be told again


def mask_colour(name: str) -> Float:
    """Return the (3,) colour in 0..1 of a name in the runtime's COLORS."""
    return np.array(COLORS[name], np.float32) / 255


def depth_to_grey(depth: Float) -> Float:
    """Return the brightness in 0..1 of depths in scene units (inf is 0)."""
    return np.clip((1 / depth - 1 / FAR) / (1 / NEAR - 1 / FAR), 0, 1).astype(np.float32)


def grey_to_depth(grey: Float) -> Float:
    """Return depths in scene units of brightness in 0..1; 0 gives FAR."""
    return (1 / (grey * (1 / NEAR - 1 / FAR) + 1 / FAR)).astype(np.float32)


def depth_map(rendering: Rendering) -> Float:
    """Return the depth picture of a rendering."""
    return _grey(depth_to_grey(rendering.depth))


def canny_map(rendering: Rendering) -> Float:
    """Return one-pixel white lines where the thing, the face or the depth changes between neighbours."""
    return _grey(_edges(rendering).astype(np.float32))


def hed_map(rendering: Rendering) -> Float:
    """Return soft edges: the lines of canny_map under a blur of a fiftieth of the longer side."""
    lines = _grey(_edges(rendering).astype(np.float32))
    return np.clip(1.8 * blurred(lines, 0.02), 0, 1)


def pose_map(scene: Scene, view: View, size: tuple[int, int]) -> Float:
    """Return each thing's skeleton on black: its upright in blue, its cross bars in red and green.

    A sphere is a plus, a cylinder an I, a cone an upside-down T, and a cube the three axes of its faces.
    """
    canvas = np.zeros((size[1], size[0], 3), np.float32)
    thickness = 0.012 * max(size)
    right = view.basis()[0][0]
    for thing in sorted(scene.things, key=lambda each: -_distance(each, view)):
        for start, end, channel in _bones(thing, right):
            ends, _ = project(np.stack([start, end]).astype(np.float32), view, size)
            cover = np.clip(thickness + 0.5 - _segment_distance(ends, size), 0, 1)[..., None]
            canvas = canvas * (1 - cover) + cover * np.eye(3, dtype=np.float32)[channel]
    return canvas


def semantic_map(rendering: Rendering, colours: list[str]) -> Float:
    """Return flat colours on black; ``colours`` names one of the runtime's COLORS per thing."""
    palette = np.stack([mask_colour(name) for name in colours] + [np.zeros(3, np.float32)])
    return palette[rendering.thing]


def boxes_of(rendering: Rendering, count: int) -> list[tuple[int, int, int, int] | None]:
    """Return the visible (left, top, right, bottom) of each thing in pixels, right and bottom exclusive."""
    boxes: list[tuple[int, int, int, int] | None] = []
    for index in range(count):
        rows, columns = np.nonzero(rendering.thing == index)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None
        boxes.append(tuple(int(edge) for edge in box) if box else None)  # type: ignore[arg-type]
    return boxes


def boxes_map(scene: Scene, rendering: Rendering, colours: list[str], view: View | None = None) -> Float:
    """Return filled boxes on black, the farthest painted first."""
    canvas = np.zeros_like(rendering.picture)
    boxes = boxes_of(rendering, len(scene.things))
    order = sorted(range(len(boxes)), key=lambda index: -_distance(scene.things[index], view or scene.view))
    for index in order:
        if (box := boxes[index]) is not None:
            canvas[box[1] : box[3], box[0] : box[2]] = mask_colour(colours[index])
    return canvas


def hole_mask(seed: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the (h, w) rectangle that inpainting fills, wholly inside the picture."""
    random = np.random.default_rng([seed, 0x401E])
    mask = np.zeros((size[1], size[0]), bool)
    spans = []
    for length in (size[1], size[0]):
        span = round(random.uniform(*HOLE_SIDE) * length)
        start = int(random.integers(0, length - span + 1))
        spans.append(slice(start, start + span))
    mask[tuple(spans)] = True
    return mask


def with_hole(picture: Float, mask: NDArray[np.bool_]) -> Float:
    """Return the picture with the hole filled with grey 128."""
    return np.where(mask[..., None], np.float32(HOLE_GREY), picture)


def blurred(picture: Float, sigma: float = BLUR_SIGMA) -> Float:
    """Return a Gaussian blur, ``sigma`` in units of the longer side, edges repeated."""
    pixels = sigma * max(picture.shape[:2])
    reach = int(np.ceil(3 * pixels))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / pixels) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        padding = [(reach, reach) if each == axis else (0, 0) for each in range(3)]
        padded = np.pad(picture, padding, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis)
        picture = windows @ weights
    return picture


def _grey(values: Float) -> Float:
    return np.repeat(values[..., None], 3, axis=2)


def _distance(thing: Thing, view: View) -> float:
    rows, position = view.basis()
    return float(rows[2] @ (thing.centre - position))


def _edges(rendering: Rendering) -> NDArray[np.bool_]:
    """Return (h, w) True on the pixel before a change of thing or of face (normals over 40 degrees apart)."""
    thing, normal = rendering.thing, rendering.normal
    edges = np.zeros(thing.shape, bool)
    for here, after in (((slice(None), slice(-1)), (slice(None), slice(1, None))),
                        ((slice(-1), slice(None)), (slice(1, None), slice(None)))):  # fmt: skip
        change = thing[here] != thing[after]
        change |= (thing[here] >= 0) & ((normal[here] * normal[after]).sum(-1) < 0.77)
        edges[here] |= change
    return edges


def _bones(thing: Thing, right: Float) -> list[tuple[Float, Float, int]]:
    """Return (start, end, channel) of a thing's skeleton in scene coordinates."""
    wide, high = thing.extents
    centre, up = thing.centre, np.array([0, 0, high], np.float32)
    bar = wide * right
    bones = [(centre - up, centre + up, 2)]
    if thing.shape == "cube":
        for channel, yaw in ((0, thing.yaw), (1, thing.yaw + np.pi / 2)):
            axis = wide * np.array([np.cos(yaw), np.sin(yaw), 0], np.float32)
            bones.append((centre - axis, centre + axis, channel))
    heights = {"sphere": [0], "cube": [], "cylinder": [-1, 1], "cone": [-1]}[thing.shape]
    return bones + [(centre + lift * up - bar, centre + lift * up + bar, 0) for lift in heights]


def _segment_distance(ends: Float, size: tuple[int, int]) -> Float:
    """Return the distance (h, w) in pixels of each pixel centre from the segment between two points (2, 2)."""
    columns, rows = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    points = np.stack([columns, rows], -1).astype(np.float32) - ends[0]
    along = ends[1] - ends[0]
    share = np.clip(points @ along / max(float(along @ along), 1e-9), 0, 1)
    return np.linalg.norm(points - share[..., None] * along, axis=-1)
