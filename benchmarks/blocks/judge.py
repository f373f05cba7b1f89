"""A judge of pictures of Blocks: which things, by colour and shape, does a picture show?

    python benchmarks/blocks/judge.py [--cache FOLDER]

trains the judge (half a minute, numpy alone), stores it and prints how often it is right on held-out renderings. It
looks at the largest patch of each colour and tells its shape with a small network trained on rendered crops. It has
seen every colour and shape together, those held out of the models' training too.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from regions import Mask, largest
from scoring import PRESENT, SHADES, colour_classes
from world import COLOURS, SHAPES, Float, Thing, render, sample_scene

CACHE = Path("~/.cache/framert/blocks").expanduser()
SIDE = 20  # pixels, of a crop as the network sees it
MARGIN = 0.12  # of a patch's box, kept around it
HIDDEN = 160
FIRST_SEED = 3_000_000  # of the scenes that the judge learns from; models never see them
SCENES, HELD_OUT = 2500, 400
ACCURACY = 0.97  # below which a judge is not to be used
SURE = 0.6  # probability from which on a shape counts as shown


@dataclass(frozen=True, slots=True)
class Judge:
    """Weights of the network: crops (n, SIDE * SIDE * 2) -> HIDDEN -> shapes."""

    enter: Float
    enter_bias: Float
    leave: Float
    leave_bias: Float

    def shapes(self, crops: Float) -> Float:
        """Return probabilities (n, shapes in the order of SHAPES) of crops (n, SIDE * SIDE * 2)."""
        hidden = np.maximum(crops @ self.enter + self.enter_bias, 0)
        return _softmax(hidden @ self.leave + self.leave_bias)

    def things(self, picture: Float) -> dict[str, str]:
        """Return {colour: shape} of what a picture (h, w, 3) in 0..1 shows; "" is a patch of no shape for sure."""
        patches = patches_of(picture)
        if not patches:
            return {}
        sure = self.shapes(np.stack(list(patches.values())))
        names = [SHAPES[row.argmax()] if row.max() >= SURE else "" for row in sure]
        return dict(zip(patches, names, strict=True))

    def present(self, picture: Float, things: Iterable[Thing]) -> list[bool]:
        """Return for each of ``things`` whether the picture shows one of its colour and shape."""
        found = self.things(picture)
        return [found.get(thing.colour) == thing.shape for thing in things]


def patches_of(picture: Float) -> dict[str, Float]:
    """Return the crop (SIDE * SIDE * 2) of the largest patch of each colour that is large enough to count as shown."""
    classes = colour_classes(picture)
    found = {}
    for index, colour in enumerate(COLOURS):
        patch = largest(classes == index)
        if patch.mean() >= PRESENT:
            found[colour] = _crop(picture, patch, colour)
    return found


def _crop(picture: Float, patch: Mask, colour: str) -> Float:
    """Return the patch and its brightness in units of its colour's, over the patch's square box, as one row."""
    rows, columns = np.nonzero(patch)
    span = (1 + 2 * MARGIN) * (max(np.ptp(rows), np.ptp(columns)) + 1)
    middle = [(each.min() + each.max() + 1) / 2 for each in (rows, columns)]
    grid = [np.clip(centre + span * ((np.arange(SIDE) + 0.5) / SIDE - 0.5) - 0.5, 0, length - 1)
            for centre, length in zip(middle, patch.shape, strict=True)]  # fmt: skip
    base = np.array(COLOURS[colour], np.float32)
    bright = np.clip((picture @ base) / (base @ base), 0, SHADES[1]) * patch
    return np.stack([_sampled(layer, *grid) for layer in (patch.astype(np.float32), bright)]).ravel()


def _sampled(layer: Float, rows: Float, columns: Float) -> Float:
    """Return a layer (h, w) at rows x columns between pixel centres, by the four around each."""
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, layer.shape[0] - 1), np.minimum(left + 1, layer.shape[1] - 1)
    down, across = (rows - top)[:, None], (columns - left)[None]
    upper = layer[np.ix_(top, left)] * (1 - across) + layer[np.ix_(top, right)] * across
    lower = layer[np.ix_(bottom, left)] * (1 - across) + layer[np.ix_(bottom, right)] * across
    return (upper * (1 - down) + lower * down).astype(np.float32)


def _softmax(logits: Float) -> Float:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def examples(first: int, scenes: int, side: int, random: np.random.Generator | None) -> tuple[Float, NDArray[np.int64]]:
    """Return crops and the numbers of their shapes, of the scenes from seed ``first`` on.

    random: where given, pictures get noise and lose sharpness, as a decoder's do. Things that hardly show are left out.
    """
    crops, shapes = [], []
    for seed in range(first, first + scenes):
        scene = sample_scene(seed)
        rendering = render(scene, size=(side, side))
        found = patches_of(rendering.picture if random is None else _worn(rendering.picture, random))
        for index, thing in enumerate(scene.things):
            if thing.colour in found and (rendering.thing == index).mean() >= PRESENT:
                crops.append(found[thing.colour])
                shapes.append(SHAPES.index(thing.shape))
    return np.stack(crops), np.array(shapes)


def _worn(picture: Float, random: np.random.Generator) -> Float:
    """Return a picture with some blur, noise, and stains about as large as what one latent pixel decodes to."""
    for _ in range(2):
        padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
        smooth = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
        picture = picture + random.uniform(0, 0.7) * (smooth - picture)
    noise = random.normal(0, random.uniform(0, 0.04), picture.shape)
    stains = random.normal(0, random.uniform(0, 0.06), (-(-picture.shape[0] // 5), -(-picture.shape[1] // 5), 3))
    stains = stains.repeat(5, 0).repeat(5, 1)[: picture.shape[0], : picture.shape[1]]
    return np.clip(picture + noise + stains, 0, 1).astype(np.float32)


def train(side: int = 64, epochs: int = 30, seed: int = 0) -> Judge:
    """Return a judge of pictures ``side`` pixels wide: cross entropy, Adam, a rate that falls on a line."""
    random = np.random.default_rng(seed)
    crops, shapes = examples(FIRST_SEED, SCENES, side, random)
    wide = crops.shape[1]
    weights = [
        random.normal(0, wide**-0.5, (wide, HIDDEN)), np.zeros(HIDDEN),
        random.normal(0, HIDDEN**-0.5, (HIDDEN, len(SHAPES))), np.zeros(len(SHAPES)),
    ]  # fmt: skip
    weights = [each.astype(np.float32) for each in weights]
    means, squares = ([np.zeros_like(each) for each in weights] for _ in range(2))
    batches = epochs * (len(crops) // 64)
    for step in range(batches):
        chosen = random.integers(len(crops), size=64)
        for place, gradient in enumerate(_gradients(weights, crops[chosen], shapes[chosen])):
            means[place] += 0.1 * (gradient - means[place])
            squares[place] += 0.01 * (gradient**2 - squares[place])
            rate = 2e-3 * (1 - step / batches)
            mean, square = means[place] / (1 - 0.9 ** (step + 1)), squares[place] / (1 - 0.99 ** (step + 1))
            weights[place] -= rate * (mean / (np.sqrt(square) + 1e-8) + 0.01 * weights[place])
    return Judge(*weights)


def _gradients(weights: list[Float], crops: Float, shapes: NDArray[np.int64]) -> list[Float]:
    enter, enter_bias, leave, leave_bias = weights
    hidden = np.maximum(crops @ enter + enter_bias, 0)
    error = _softmax(hidden @ leave + leave_bias)
    error[np.arange(len(shapes)), shapes] -= 1
    error /= len(shapes)
    back = (error @ leave.T) * (hidden > 0)
    return [crops.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]


def accuracy(judge: Judge, side: int = 64) -> float:
    """Return how often the judge finds a thing of a held-out rendering with its colour and shape."""
    right = []
    for seed in range(HELD_OUT):
        scene = sample_scene(seed)
        rendering = render(scene, size=(side, side))
        visible = [(rendering.thing == index).mean() >= PRESENT for index in range(len(scene.things))]
        present = judge.present(rendering.picture, scene.things)
        right += [found for found, seen in zip(present, visible, strict=True) if seen]
    return float(np.mean(right))


def _digest() -> str:
    """Return a digest of the code that a judge is made by: one of other code is not used."""
    sources = (Path(__file__).with_name(f"{name}.py") for name in ("judge", "regions", "scoring", "world"))
    return hashlib.sha256(b"".join(each.read_bytes() for each in sources)).hexdigest()[:12]


@cache
def open_judge(folder: Path = CACHE, side: int = 64) -> Judge:
    """Return the judge stored in ``folder``, trained and stored there first if it is not.

    Raises: ValueError if one that was just trained is right less often than ACCURACY.
    """
    path = folder / f"judge-{_digest()}-{side}px.npz"
    if not path.exists():
        judge = train(side)
        reached = accuracy(judge, side)
        if reached < ACCURACY:
            raise ValueError(f"the judge is right on {reached:.3f} of held-out renderings; it must be on {ACCURACY}")
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, **{name: getattr(judge, name) for name in Judge.__slots__})
        part.replace(path)
    stored = np.load(path)
    return Judge(**{name: stored[name] for name in Judge.__slots__})


def main() -> int:
    """Train or open the judge and print its accuracy; 1 if it is too low."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--side", type=int, default=64)
    given = parser.parse_args()
    try:
        judge = open_judge(given.cache, given.side)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"right on {accuracy(judge, given.side):.4f} of the things in {HELD_OUT} held-out renderings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
