"""A backend that computes nothing: it keeps what its graphs are given, and returns marks that show where results went.

The engine's own code (sequence, store, pack) then fills the tables of a compiled request, and nothing of it is
written twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
        self._phases: list[_Calls] = []

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Any]:
        if graph == "text_encoder":
            self._prompts.append(({name: array.copy() for name, array in feeds.items()}, self._zeros(graph, feeds)))
            return dict(self._prompts[-1][1])
        if graph == "conditioner":
            return self._condition(feeds)
        if graph == "vae_encoder" and set(feeds) == {"pixels"}:
            mark = np.uint32(QUIET_NAN + len(self._pictures)).view(np.float32)
            self._pictures.append(np.array(feeds["pixels"], np.float32))
            sides = (side // self._model.vae_factor for side in feeds["pixels"].shape[2:])
            return {"mean": np.full((1, self._model.latent_channels, *sides), mark, np.float32)}
        raise CompiledRequestError(
            f"a request that gives {graph} {', '.join(feeds)} cannot be compiled; run it instead"
        )

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
        if wrong := (wanted ^ set(given)) - set(WINDOWS) | marked:
            raise CompiledRequestError(
                f"this bundle's denoiser takes {', '.join(sorted(wrong))}, which cannot be compiled; run it instead"
            )
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

    def places(self) -> Ints:
        """Return (picture, first slot) of every frame that a picture fills."""
        marks = self._phases[0].latents.view(np.uint32)
        marked: list[bool] = np.isnan(self._phases[0].latents).any(axis=1).tolist()  # type: ignore[assignment]
        found, slot, side = [], 0, self._model.multiple
        while slot < len(marks):
            if not marked[slot]:
                slot += 1
                continue
            picture = int(marks[slot, 0]) - QUIET_NAN
            tokens = self._pictures[picture].shape[2] // side * (self._pictures[picture].shape[3] // side)
            assert (marks[slot : slot + tokens] == QUIET_NAN + picture).all(), "a frame holds more than one picture"
            found.append((picture, slot))
            slot += tokens
        return np.asarray(found, np.int32).reshape(-1, 2)

    def phases(self) -> tuple[Phase, ...]:
        return tuple(_finished(calls, first=number == 0) for number, calls in enumerate(self._phases))


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
