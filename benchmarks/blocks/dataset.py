"""The training set of Blocks: scenes rendered once into a memory-mapped file of 8-bit pictures, kept outside git."""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from frames import MAX_THINGS, VIEWS, scene_frames
from numpy.typing import NDArray

FRAME_NAMES = (
    "picture", *(f"view{index}" for index in range(1, VIEWS)), "depth", "canny", "hed", "pose", "semantic", "boxes",
    "blur", "hole", "edited", *(f"reference{index}" for index in range(MAX_THINGS)),
)  # fmt: skip
CHUNK = 50  # scenes a worker renders at a time


def render_scene(seed: int, side: int) -> NDArray[np.uint8]:
    """Return (len(FRAME_NAMES), side, side, 3) pictures of a scene; references it has no thing for are black."""
    pictures = scene_frames(seed, side).pictures
    stack = np.zeros((len(FRAME_NAMES), side, side, 3), np.uint8)
    for index, name in enumerate(FRAME_NAMES):
        if name in pictures:
            stack[index] = np.round(pictures[name] * 255)
    return stack


def _render_chunk(path: Path, start: int, seeds: Sequence[int], side: int, kind: "Kind") -> int:
    data = np.load(path, mmap_mode="r+")
    for index, seed in enumerate(seeds, start):
        data[index] = kind.render(seed, side)
    data.flush()
    return len(seeds)


@dataclass(frozen=True, slots=True)
class Kind:
    """What is kept of each scene: the names of its frames, and what renders them. tag: its name in the cache."""

    names: tuple[str, ...]
    render: Callable[[int, int], NDArray[np.uint8]]
    tag: str = ""


FRAMES = Kind(FRAME_NAMES, render_scene)


def open_pictures(cache: Path, seeds: Sequence[int], side: int, workers: int, kind: Kind = FRAMES) -> NDArray[np.uint8]:
    """Return (scenes, frames, side, side, 3) pictures of ``seeds``, rendered into ``cache`` if they are not there.

    A render that was interrupted leaves a ``.part`` file and starts over.
    """
    scenes, named = len(seeds), hashlib.sha256(repr(list(seeds)).encode()).hexdigest()[:8] + kind.tag
    path = cache / f"pictures-{side}px-{scenes}-{named}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        shape = (scenes, len(kind.names), side, side, 3)
        with open(part, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            file.truncate(file.tell() + int(np.prod(shape)))
        done = 0
        with ProcessPoolExecutor(workers) as pool:
            starts = range(0, scenes, CHUNK)
            jobs = [pool.submit(_render_chunk, part, at, seeds[at : at + CHUNK], side, kind) for at in starts]
            for job in jobs:
                done += job.result()
                print(f"rendered {done} of {scenes} scenes", file=sys.stderr, end="\r")
        os.replace(part, path)
        print(file=sys.stderr)
    return np.load(path, mmap_mode="r")
