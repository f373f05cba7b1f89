"""How one result of a bundle is judged against the scene it was asked for."""

import numpy as np
from frames import SceneFrames
from numpy.typing import NDArray
from regions import Mask, spread
from world import COLOURS, GROUNDS, SKY, Float

SHADES = (0.45, 1.15)  # how dark and how bright the world's light makes a colour
PRESENT = 0.015  # share of the picture from which on a colour counts as shown; the smallest things cover 2.5 %


def decibels(picture: Float, truth: Float, where: Mask | None = None) -> float:
    """Return the PSNR in dB of pictures (h, w, 3) in 0..1, over the pixels ``where`` (h, w) if given."""
    error = (np.asarray(picture, np.float64) - truth) ** 2
    return float(-10 * np.log10(max(error.mean() if where is None else error[where].mean(), 1e-10)))


def colour_classes(picture: Float) -> NDArray[np.int64]:
    """Return for each pixel (h, w) the index in COLOURS of its colour in any shade; len(COLOURS) is the background."""
    palette = np.array([*COLOURS.values(), *GROUNDS.values(), *SKY], np.float32)
    scale = np.clip((picture @ palette.T) / (palette**2).sum(1), *SHADES)
    distance = ((picture[..., None, :] - scale[..., None] * palette) ** 2).sum(-1)
    return np.minimum(distance.argmin(-1), len(COLOURS))


def colour_share(picture: Float, colour: str, where: Mask | None = None) -> float:
    """Return the share of pixels, of those ``where`` if given, that show ``colour``."""
    shown = colour_classes(picture) == list(COLOURS).index(colour)
    return float(shown.mean() if where is None else shown[where].mean())


def colours_shown(picture: Float, frames: SceneFrames) -> dict[str, float]:
    """Return the share of the scene's colours that the picture shows anywhere."""
    shares = [colour_share(picture, thing.colour) >= PRESENT for thing in frames.story.scene.things]
    return {"colours": float(np.mean(shares))}


def colours_in_place(picture: Float, frames: SceneFrames) -> dict[str, float]:
    """Return the share of visible things whose own pixels mostly show their colour, and of colours shown anywhere."""
    right = []
    for index, thing in enumerate(frames.story.scene.things):
        where = frames.rendering.thing == index
        if where.any():
            right.append(colour_share(picture, thing.colour, where) >= 0.5)
    anywhere = colours_shown(picture, frames)["colours"]
    return {
        "colours": float(np.mean(right)),
        "colours_anywhere": anywhere,
        "psnr": decibels(picture, frames.pictures["picture"]),
    }


def masks_kept(picture: Float, frames: SceneFrames) -> float:
    """Return the mean IoU of the things' masks with the regions that the picture has in their places.

    A thing's region is of the colour, whatever it is, that most of the thing's pixels show, while it hangs together.
    """
    classes, overlaps = colour_classes(picture), []
    for index in range(len(frames.story.scene.things)):
        where = frames.rendering.thing == index
        if where.any():
            shown = np.bincount(classes[where], minlength=len(COLOURS) + 1)[: len(COLOURS)]
            region = spread(where, classes == shown.argmax()) if shown.any() else np.zeros_like(where)
            overlaps.append(overlap(region, where))
    return float(np.mean(overlaps))


def smooth_fill(picture: Float, hole: Mask) -> Float:
    """Return a picture (h, w, 3) whose hole (h, w) is the smoothest surface its rim allows: no model, no words.

    Every pixel of the hole is the mean of its four neighbours (Laplace's equation, by relaxation).
    """
    filled = picture.copy()
    filled[hole] = picture[~hole].mean(0)
    for _ in range(2 * max(np.ptp(each) + 1 for each in np.nonzero(hole)) ** 2):
        padded = np.pad(filled, ((1, 1), (1, 1), (0, 0)), mode="edge")
        filled[hole] = ((padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4)[hole]
    return filled


def overlap(first: Mask, second: Mask) -> float:
    """Return the intersection over union of two masks; 1 if both are empty."""
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 1.0


def box_mask(box: tuple[int, int, int, int] | None, shape: tuple[int, ...]) -> Mask:
    """Return the (h, w) mask of (left, top, right, bottom), empty for None."""
    mask = np.zeros(shape[:2], bool)
    if box is not None:
        mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def line_agreement(picture: Float, truth: Float) -> dict[str, float]:
    """Return the F1 of bright pixels within one pixel of each other, and the PSNR, of line drawings."""
    drawn, wanted = picture.max(-1) > 0.4, truth.max(-1) > 0.4
    precision = (drawn & _grown(wanted)).sum() / max(drawn.sum(), 1)
    recall = (wanted & _grown(drawn)).sum() / max(wanted.sum(), 1)
    score = 2 * precision * recall / max(precision + recall, 1e-9)
    return {"f1": float(score), "psnr": decibels(picture, truth)}


def _grown(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
