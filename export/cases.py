"""Seeded inputs on which ``verify`` compares a bundle's graphs with the oracle: small, ragged and at the edges."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framert.runtime.manifest import Graph, Manifest, ModelSpec

Array = NDArray[Any]
Case = dict[str, Array]
# Runs the conditioner: its inputs by name -> its outputs by name.
Condition = Callable[[Case], Mapping[str, Array]]
Graphs = Mapping[str, Graph]

TEXT_LENGTHS = (1, 2, 21, 300)
NOISE_LEVELS = np.array([1000.0, 731.25, 500.0, 36.9, 0.0], np.float32)
# Rows of the solver table: Euler, Heun's first, DPM-Solver++(2M), a condition frame.
UPDATES = np.array(
    [[1, -0.02, 0, 0, 0, 0], [1, -0.02, 0, 0, 1, 0], [1.01, -0.03, 0.4, 1, -0.6, 0], [1, 0, 0, 0, 0, 0]], np.float32
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One request of a pack. grids: (rows, columns) of each frame, in tokens; texts: text length of each branch."""

    grids: tuple[tuple[int, int], ...]
    texts: tuple[int, ...]
    weights: tuple[float, ...]


# One sequence; guidance over frames of one size; and a ragged pack with an empty text and one-token frames.
PACKS = (
    (Member(grids=((4, 6),), texts=(21,), weights=(1.0,)),),
    (Member(grids=((6, 6), (6, 6)), texts=(33, 2), weights=(4.0, -3.0)),),
    (
        Member(grids=((5, 7), (5, 7), (5, 7)), texts=(80, 0, 5), weights=(2.0, -1.5, 0.5)),
        Member(grids=((1, 1),), texts=(1,), weights=(1.0,)),
        Member(grids=((8, 3), (8, 3)), texts=(12, 2), weights=(3.5, -2.5)),
    ),
)


def text_encoder_cases(vocabulary: int) -> list[Case]:
    rng = np.random.default_rng(1)
    return [{"input_ids": rng.integers(0, vocabulary, (1, length))} for length in TEXT_LENGTHS]


def vae_encoder_cases(model: ModelSpec) -> list[Case]:
    """Noise, and a smooth picture as trained models see them."""
    rng = np.random.default_rng(2)
    noise = rng.uniform(-1, 1, (1, 3, 4 * model.vae_factor, 6 * model.vae_factor))
    rows, columns = np.mgrid[0 : 1 : 1j * 8 * model.vae_factor, 0 : 1 : 1j * 5 * model.vae_factor]
    smooth = np.stack((2 * rows - 1, np.sin(6 * columns), np.cos(5 * rows * columns)))[None]
    return [{"pixels": pixels.astype(np.float32)} for pixels in (noise, smooth)]


def vae_decoder_cases(model: ModelSpec) -> list[Case]:
    rng = np.random.default_rng(3)
    sizes = ((4, 6), (9, 5))
    return [{"latents": normal(rng, 1, model.latent_channels, *size)} for size in sizes]


def vae_cases(graph: str, model: ModelSpec) -> list[Case]:
    """Return the cases of either graph of the autoencoder."""
    return {"vae_encoder": vae_encoder_cases, "vae_decoder": vae_decoder_cases}[graph](model)


def conditioner_cases(model: ModelSpec) -> list[Case]:
    rng = np.random.default_rng(4)
    return [
        {"hidden_states": normal(rng, length, model.text_width) * 0.2, "noise_level": levels}
        for length, levels in ((1, NOISE_LEVELS[:1]), (21, NOISE_LEVELS), (300, NOISE_LEVELS[1:3]))
    ]


def denoiser_cases(manifest: Manifest, condition: Condition) -> list[Case]:
    """Packs whose text and modulation are the conditioner's, as ``condition`` runs it."""
    return [pack(members, manifest, condition, np.random.default_rng(5 + i)) for i, members in enumerate(PACKS)]


def pack(members: Sequence[Member], manifest: Manifest, condition: Condition, rng: np.random.Generator) -> Case:
    """Return the denoiser's inputs for the members together; values are drawn member by member."""
    model, branches = manifest.model, manifest.guidance_branches
    lists: dict[str, list[Array]] = {}
    slots = tokens = frames = rows = text = 0
    for member in members:
        position = np.concatenate([_positions(frame, *grid) for frame, grid in enumerate(member.grids)])
        frame = np.repeat(np.arange(len(member.grids)), [height * width for height, width in member.grids])
        count = len(position)
        used = len(member.texts)
        index = (
            tokens + np.arange(count)[:, None] + count * np.where(np.arange(branches) < used, np.arange(branches), 0)
        )
        weight = np.zeros((count, branches), np.float32)
        weight[:, :used] = member.weights
        updates = UPDATES[rng.integers(0, len(UPDATES), len(member.grids))][frame]
        add: Mapping[str, Array] = {"guidance_index": index, "guidance_weight": weight, "update": updates}
        for length in member.texts:
            hidden = normal(rng, max(length, 1), model.text_width) * 0.2
            levels = NOISE_LEVELS[rng.integers(0, len(NOISE_LEVELS), 2)]
            made = condition({"hidden_states": hidden, "noise_level": levels})
            branch: Mapping[str, Array] = {
                "source": slots + np.arange(count),
                "position": position,
                "frame": frames + frame,
                "row": rows + rng.integers(0, 2, len(member.grids)),
                "modulation": made["modulation"],
                "q_range": np.array([[tokens, count]]),
                "kv_range": np.array([[tokens, count]]),
                "text_range": np.array([[text, length]]),
                "text_k": made["text_k"],
                "text_v": made["text_v"],
            }
            extend(lists, branch)
            tokens, frames, rows, text = tokens + count, frames + len(member.grids), rows + 2, text + max(length, 1)
        latents = {name: normal(rng, count, model.token_width) for name in ("latents", "history")}
        extend(lists, {**add, **latents})
        slots += count
    specs = manifest.graphs["denoiser"].inputs
    return {
        name: np.concatenate(lists[name], axis=1 if name in {"text_k", "text_v"} else 0).astype(spec.dtype)
        for name, spec in specs.items()
    }


def extend(lists: dict[str, list[Array]], arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        lists.setdefault(name, []).append(array)


def _positions(frame: int, height: int, width: int) -> Array:
    return np.array([(frame, row, column) for row in range(height) for column in range(width)])


def normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)
