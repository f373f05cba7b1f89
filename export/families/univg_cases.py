"""Seeded inputs on which ``verify`` compares a two-stream bundle's graphs with the oracle: ragged and at the edges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from framert.export.cases import NOISE_LEVELS, TEXT_LENGTHS, UPDATES, Array, Case, Condition, Graphs, extend, normal
from framert.export.families.univg_text import TextLayout
from framert.runtime.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One request of a pack. grid: rows and columns in tokens; texts: text length of each branch.

    shown: whether a branch sees the condition; the others read a row that all share.
    """

    grid: tuple[int, int]
    texts: tuple[int, ...]
    shown: tuple[bool, ...]
    weights: tuple[float, ...]


# One sequence; dual guidance; and a ragged pack with an empty text and a picture of one token.
PACKS = (
    (Member(grid=(4, 6), texts=(21,), shown=(False,), weights=(1.0,)),),
    (Member(grid=(6, 6), texts=(2, 2, 33), shown=(False, True, True), weights=(-0.5, -2.0, 3.5)),),
    (
        Member(grid=(5, 7), texts=(80, 0, 5), shown=(True, False, True), weights=(2.0, -1.5, 0.5)),
        Member(grid=(1, 1), texts=(1,), shown=(True,), weights=(1.0,)),
        Member(grid=(8, 3), texts=(12, 2), shown=(True, False), weights=(3.5, -2.5)),
    ),
)


def text_encoder_cases(layout: TextLayout) -> list[Case]:
    """Prompts of several lengths for T5 and filled-up ones for the CLIPs; features in the first places, or none."""
    rng = np.random.default_rng(1)
    cases: list[Case] = []
    for number, length in enumerate(TEXT_LENGTHS):
        case: Case = {}
        for encoder in layout.encoders:
            vocabulary = int(encoder.config["vocab_size"])
            if encoder is layout.t5:
                case[encoder.input] = rng.integers(0, vocabulary, (1, length))
                continue
            ids = rng.integers(0, vocabulary - 2, (1, layout.clip_tokens))
            ids[0, min(length, layout.clip_tokens - 1) :] = vocabulary - 1  # the end token, as CLIP's vocabulary has it
            case[encoder.input] = ids
        if layout.features:
            case["feature"] = normal(rng, min(number, length), layout.text_width)
            case["feature_index"] = np.arange(min(number, length), dtype=np.int32)
        cases.append({name: case[name] for name in layout.inputs})
    return cases


def conditioner_cases(graphs: Graphs) -> list[Case]:
    rng = np.random.default_rng(4)
    cases = [(1, NOISE_LEVELS[:1]), (21, NOISE_LEVELS), (300, NOISE_LEVELS[1:3])]
    return [{**_text(graphs, length, rng), "noise_level": levels} for length, levels in cases]


def image_encoder_cases(graphs: Graphs) -> list[Case]:
    shape = [side for side in graphs["image_encoder"].inputs["pixels"].shape if isinstance(side, int)]
    return [{"pixels": np.random.default_rng(6).uniform(-1, 1, shape).astype(np.float32)}]


def denoiser_cases(manifest: Manifest, condition: Condition) -> list[Case]:
    """Packs whose text and modulation are the conditioner's, as ``condition`` runs it."""
    return [pack(members, manifest, condition, np.random.default_rng(5 + i)) for i, members in enumerate(PACKS)]


def pack(members: Sequence[Member], manifest: Manifest, condition: Condition, rng: np.random.Generator) -> Case:
    """Return the denoiser's inputs for the members together; values are drawn member by member."""
    model, branches, lists = manifest.model, manifest.guidance_branches, dict[str, list[Array]]()
    blank = np.zeros((1, model.condition_width), np.float32)
    extend(lists, {"conditions": blank})
    slots = tokens = frames = rows = capacity = words = 0
    for member in members:
        count, used = int(np.prod(member.grid)), len(member.texts)
        chosen = np.where(np.arange(branches) < used, np.arange(branches), 0)
        weight = np.zeros((count, branches), np.float32)
        weight[:, :used] = member.weights
        own: Mapping[str, Array] = {
            "latents": normal(rng, count, model.token_width),
            "history": normal(rng, count, model.token_width),
            "conditions": normal(rng, count, model.condition_width),
            "guidance_index": tokens + np.arange(count)[:, None] + count * chosen,
            "guidance_weight": weight,
            "update": np.repeat(UPDATES[rng.integers(0, len(UPDATES), 1)], count, axis=0),
        }
        extend(lists, own)
        for length, shown in zip(member.texts, member.shown, strict=True):
            levels = NOISE_LEVELS[rng.integers(0, len(NOISE_LEVELS), 2)]
            made = condition({**_text(manifest.graphs, max(length, 1), rng), "noise_level": levels})
            branch: Mapping[str, Array] = {
                "source": slots + np.arange(count),
                "condition_source": (1 + slots + np.arange(count)) * shown,
                "position": _positions(member.grid, model.max_positions),
                "frame": np.full(count, frames),
                "row": rows + rng.integers(0, 2, 1),
                "modulation": made["modulation"],
                "q_range": np.array([[tokens, count]]),
                "kv_range": np.array([[tokens, count]]),
                "text": made["text"],
                "text_source": capacity + np.arange(length),
                "text_frame": np.full(length, frames),
                "text_range": np.array([[words, length]]),
            }
            extend(lists, branch)
            tokens, frames, rows = tokens + count, frames + 1, rows + 2
            capacity, words = capacity + max(length, 1), words + length
        slots += count
    specs = manifest.graphs["denoiser"].inputs
    return {name: np.concatenate(lists[name]).astype(spec.dtype) for name, spec in specs.items()}


def _text(graphs: Graphs, length: int, rng: np.random.Generator) -> Case:
    """Return what a text encoder would give the conditioner."""
    specs = {name: spec for name, spec in graphs["conditioner"].inputs.items() if name != "noise_level"}
    return {
        name: normal(rng, *(side if isinstance(side, int) else length for side in spec.shape)) * np.float32(0.2)
        for name, spec in specs.items()
    }


def _positions(grid: tuple[int, int], side: int) -> Array:
    """Return (tokens, 3): 0, row and column in the table of positions, whose middle the picture takes."""
    down, across = ((side - length) // 2 for length in grid)
    return np.array([(0, down + row, across + column) for row in range(grid[0]) for column in range(grid[1])])
