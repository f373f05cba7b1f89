"""A backend that computes nothing: it keeps what its graphs are given, and returns marks that show where results went.

The engine's own code (sequence, store, pack) then fills the tables of a compiled request, and nothing of it is
written twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framert.runtime.arrays import Array, Floats, Ints
from framert.runtime.backends.base import text_arenas
from framert.runtime.bundle import Bundle
from framert.runtime.compiled.format import STEPPED, Conditioning, Phase
from framert.runtime.compiled.safetensors_file import WORDS
from framert.runtime.errors import CompiledRequestError
from framert.runtime.tables import Tables
from framert.runtime.windows import WINDOWS, windows

QUIET_NAN = 0x7FC00000  # a float32; its low bits say which picture's latents stand there. No other latent is NaN
STATE = ("latents", "history")  # denoiser's inputs that are its own outputs of the call before
MODULATION = "modulation"
SHOWN = "conditions"  # the denoiser's input that shows pictures beside the noisy ones, where a family has it


@dataclass(frozen=True, slots=True)
class _Output:
    """What stands for an output of the conditioner; ``length`` rows of an arena will hold it."""

    name: str
    call: Conditioning
    length: int


@dataclass(slots=True)
class _Calls:
    """A phase under way."""

    tables: dict[str, Array]
    latents: Floats
    row: list[Ints] = field(default_factory=list)
    update: list[Floats] = field(default_factory=list)


class Recorder:
    """Backend and denoiser in one, for one compilation.

    Args:
        bundle: gives the shapes; its graphs are never loaded.
    """

    name = "recorder"

    def __init__(self, bundle: Bundle) -> None:
        self._model, self._graphs = bundle.manifest.model, bundle.manifest.graphs
        self._text = text_arenas(bundle.manifest)
        self._arenas = {name: (axis, 1) for name, axis in (*self._text.items(), (MODULATION, 0))}
        self._prompts: list[tuple[dict[str, Array], dict[str, Array]]] = []  # feeds, and what stands for the outputs
        self._calls: list[Conditioning] = []
        self._pictures: list[Floats] = []
        self._references: list[Floats] = []
        self._referred: list[tuple[int, int, int]] = []
        self._phases: list[_Calls] = []
        self._found: list[tuple[int, int, int, int]] = []

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Any]:
        if graph == "text_encoder":
            return self._read(feeds)
        if graph == "conditioner":
            return self._condition(feeds)
        if graph == "vae_encoder" and set(feeds) == {"pixels"}:
            sides = (side // self._model.vae_factor for side in feeds["pixels"].shape[2:])
            return {"mean": _marked((1, self._model.latent_channels, *sides), self._pictures, feeds["pixels"])}
        if graph == "image_encoder" and set(feeds) == {"pixels"}:
            width = self._graphs[graph].outputs["feature"].shape[-1]
            return {"feature": _marked((1, int(width)), self._references, feeds["pixels"])}
        raise CompiledRequestError(
            f"a request that gives {graph} {', '.join(feeds)} cannot be compiled; run it instead"
        )

    def _read(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        kept = {name: np.array(array) for name, array in feeds.items()}
        feature = kept.get("feature")
        if feature is not None:
            marks = _marks(feature)[:, :1]
            for row in np.flatnonzero(marks[:, 0] >= 0).tolist():
                self._referred.append((len(self._prompts), row, int(marks[row, 0])))
            kept["feature"] = np.where(np.isnan(feature), np.float32(0), feature)
        self._prompts.append((kept, self._zeros("text_encoder", feeds)))
        return dict(self._prompts[-1][1])

    def _condition(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        encoded = {id(array): number for number, (_, made) in enumerate(self._prompts) for array in made.values()}
        prompts = {encoded[id(array)] for array in feeds.values() if id(array) in encoded}
        given = {name: np.array(array) for name, array in feeds.items() if id(array) not in encoded}
        if len(prompts) != 1 or any(array.dtype not in WORDS for array in given.values()):
            raise CompiledRequestError(f"a conditioner given {', '.join(feeds)} cannot be compiled; run it instead")
        self._calls.append(Conditioning(prompt=prompts.pop(), given=given, to={}))
        sizes = self._sizes("conditioner", feeds)
        outputs = self._graphs["conditioner"].outputs
        axes = {name: axis for name, (axis, _) in self._arenas.items()}
        return {name: _Output(name, self._calls[-1], sizes[str(outputs[name].shape[axes[name]])]) for name in axes}

    def _zeros(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        sizes = self._sizes(graph, feeds)
        return {
            name: np.zeros([side if isinstance(side, int) else sizes[side] for side in spec.shape], np.float32)
            for name, spec in self._graphs[graph].outputs.items()
        }

    def _sizes(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, int]:
        """Return the sizes of a graph's free axes, by their names in the manifest, as these inputs have them."""
        inputs = self._graphs[graph].inputs
        return {
            axis: length
            for name, array in feeds.items()
            for axis, length in zip(inputs[name].shape, array.shape, strict=True)
            if isinstance(axis, str)
        }

    def denoiser(self) -> "Recorder":
        return self

    def reserve(self, *, text: int, rows: int) -> None:
        """What is written says how large the arenas must be."""

    def write_text(self, begin: int, *parts: _Output) -> None:
        for part in parts:
            self._write(begin, part)

    def write_modulation(self, begin: int, modulation: _Output) -> None:
        self._write(begin, modulation)

    def _write(self, begin: int, part: _Output) -> None:
        axis, rows = self._arenas[part.name]
        self._arenas[part.name] = axis, max(rows, begin + part.length)
        part.call.to[part.name] = begin  # type: ignore[index]  # a dict while it is being made

    def padded(self, tokens: int) -> int:
        return tokens

    def bind(self, tables: Tables, latents: Floats, history: Floats) -> None:
        given = tables.arrays() | windows(tables)
        wanted = set(self._graphs["denoiser"].inputs) - {*STATE, *STEPPED, *self._arenas}
        marked = {name for name, array in given.items() if array.dtype.kind == "f" and np.isnan(array).any()}
        marked -= {SHOWN}
        if wrong := (wanted ^ set(given)) - set(WINDOWS) | marked:
            raise CompiledRequestError(
                f"this bundle's denoiser takes {', '.join(sorted(wrong))}, which cannot be compiled; run it instead"
            )
        places = self._places(latents, -1) if not self._phases else []
        if (shown := given.get(SHOWN)) is not None:
            places += self._places(shown, len(self._phases))
            given[SHOWN] = np.where(np.isnan(shown), np.float32(0), shown)
        self._found += places
        self._phases.append(_Calls(given, latents.copy()))

    def step(self, row: Ints, update: Floats) -> None:
        self._phases[-1].row.append(row.copy())
        self._phases[-1].update.append(update.copy())

    def state(self) -> tuple[Floats, Floats]:
        """Return arrays in which every token holds the number of its slot."""
        slots = np.arange(len(self._phases[-1].latents), dtype=np.float32)
        marks = np.repeat(slots[:, None], self._model.token_width, axis=1)
        return marks, marks.copy()

    def velocity(self) -> Floats:
        raise AssertionError("nothing asks a compilation for previews")

    @property
    def phase(self) -> int:
        """The number of the phase under way."""
        return len(self._phases) - 1

    @property
    def prompts(self) -> tuple[dict[str, Array], ...]:
        return tuple(feeds for feeds, _ in self._prompts)

    @property
    def pictures(self) -> tuple[Floats, ...]:
        return tuple(self._pictures)

    @property
    def arenas(self) -> dict[str, tuple[int, int]]:
        return dict(self._arenas)

    @property
    def conditioning(self) -> tuple[Conditioning, ...]:
        return tuple(self._calls)

    @property
    def reference_pictures(self) -> tuple[Floats, ...]:
        return tuple(self._references)

    def references(self) -> Ints:
        """Return (prompt, row of its feature, reference)."""
        return np.asarray(self._referred, np.int32).reshape(-1, 3)

    def places(self) -> Ints:
        """Return (picture, first row, phase or -1 for latents, values of a pixel there)."""
        return np.asarray(self._found, np.int32).reshape(-1, 4)

    def _places(self, values: NDArray[Any], phase: int) -> list[tuple[int, int, int, int]]:
        """Return the places of pictures in (rows, width) values: runs of rows whose latent channels hold their mark."""
        pixel = values.shape[1] // self._model.patch**2
        marks = _marks(values).reshape(len(values), -1, pixel)[:, :, : self._model.latent_channels]
        first = marks[:, 0, 0].tolist()
        found, row, side = [], 0, self._model.multiple
        while row < len(first):
            if first[row] < 0:
                row += 1
                continue
            picture = first[row]
            height, width = self._pictures[picture].shape[2:]
            tokens = height // side * (width // side)
            assert (marks[row : row + tokens] == picture).all(), "a frame holds more than one picture"
            found.append((picture, row, phase, pixel))
            row += tokens
        return found

    def phases(self) -> tuple[Phase, ...]:
        return tuple(_finished(calls, first=number == 0) for number, calls in enumerate(self._phases))


def _marked(shape: tuple[int, ...], seen: list[Floats], pixels: Array) -> Floats:
    """Return values that say of which picture they are, and keep the picture."""
    mark = np.uint32(QUIET_NAN + len(seen)).view(np.float32)
    seen.append(np.array(pixels, np.float32))
    return np.full(shape, mark, np.float32)


def _marks(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of the picture that each value stands for, -1 where it is a value."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.int64)
    marks: NDArray[np.int64] = np.where(np.isnan(values), bits - QUIET_NAN, -1)
    return marks


def _finished(calls: _Calls, *, first: bool) -> Phase:
    updates = np.stack(calls.update)  # (calls, slots, 6): few slots differ, so each course is kept once
    courses = np.ascontiguousarray(updates.transpose(1, 0, 2)).reshape(updates.shape[1], -1)
    distinct, group = np.unique(courses, axis=0, return_inverse=True)
    clean = np.where(np.isnan(calls.latents), np.float32(0), calls.latents)
    return Phase(
        tables=calls.tables,
        latents=clean if first else None,
        carry=None if first else calls.latents[:, 0].astype(np.int32),
        row=np.stack(calls.row),
        update=np.ascontiguousarray(distinct.reshape(-1, len(calls.update), 6).transpose(1, 0, 2)),
        update_group=group.reshape(-1).astype(np.int32),
    )
