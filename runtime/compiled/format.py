"""What a compiled request holds, and how it lies in its file.

| tensor | shape | what |
|---|---|---|
| prompt.P.NAME | as the graph's | text_encoder's inputs, once per prompt: token ids |
| picture.P.pixels | (1, 3, height, width) | vae_encoder's input, once per given picture, in -1..1 |
| reference.R.pixels | (1, 3, side, side) | image_encoder's input, once per picture that a prompt refers to |
| references | (n, 3) int32 | a prompt, and the row of its input ``feature`` that takes the feature of a reference |
| conditioner.C.in.NAME | as the graph's | conditioner's inputs; those missing are text_encoder's outputs of that name |
| conditioner.C.prompt | (1) int32 | ... for this prompt |
| conditioner.C.to.NAME | (1) int32 | where arena NAME keeps conditioner's output of that name: the first row |
| arena.NAME | (2) int32 | an input of denoiser that outlives phases: the axis of its rows, and how many there must be |
| places | (n, 4) int32 | a picture; the first row its tokens fill; of a phase's ``conditions``, or ``latents`` (-1); *|
| phase.H.NAME | | denoiser's inputs that hold for all calls of a phase, by their own names |
| phase.H.latents | (slots, token width) | the noise, and zeros where ``places`` puts a picture. The first phase alone |
| phase.H.carry | (slots) int32 | the slot of the phase before that each slot goes on from. All phases but the first |
| phase.H.row | (calls, frames) int32 | denoiser's input ``row``, call by call |
| phase.H.update, .update_group | (calls, groups, 6), (slots) int32 | its ``update`` is update[call][update_group] |
| outputs | (n, 7) int32 | request, frame, 1 = decode it, phase that ends it, first slot, rows, columns of tokens |

* and the values of a pixel there, of which the latent's channels are the first.

Metadata: ``format``, ``version``, ``framert``, ``family``, ``files`` (sha256 of the bundle's files), ``patch``,
``latent_channels``, ``vae_factor``, ``scaling_factor`` and ``shift`` (latent = (encoder's mean - shift) * scaling),
``tile`` (latent side up to which a picture is decoded whole) and ``requests`` (a JSON list of each request's settings).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framert.runtime.arrays import Array, Floats, Ints
from framert.runtime.bundle import Bundle
from framert.runtime.compiled import safetensors_file
from framert.runtime.compiled.safetensors_file import REMEDY
from framert.runtime.errors import CompiledRequestError

FORMAT, VERSION = "framert-request", "1"
METADATA = (
    "format", "version", "framert", "family", "files", "patch", "latent_channels", "vae_factor", "scaling_factor",
    "shift", "tile", "requests",
)  # fmt: skip
STEPPED = ("row", "update")  # denoiser's inputs that change from call to call
OUTPUT_COLUMNS = 7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioning:
    """One conditioner call.

    prompt: whose text_encoder outputs it takes. given: its other inputs. to: {arena: first row} of what is kept.
    """

    prompt: int
    given: Mapping[str, Array]
    to: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phase:
    """Calls that share members. tables: denoiser's inputs that hold for all of them. See the module's table."""

    tables: Mapping[str, Array]
    latents: Floats | None
    carry: Ints | None
    row: Ints
    update: Floats
    update_group: Ints

    @property
    def calls(self) -> int:
        return len(self.row)

    @property
    def slots(self) -> int:
        return len(self.update_group)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompiledRequest:
    """Everything the graphs of a bundle are given for one or several requests. See the module's table.

    arenas: {denoiser's input: (axis of its rows, how many)}.
    """

    prompts: tuple[Mapping[str, Array], ...]
    pictures: tuple[Floats, ...]
    reference_pictures: tuple[Floats, ...]
    references: Ints
    conditioning: tuple[Conditioning, ...]
    arenas: Mapping[str, tuple[int, int]]
    places: Ints
    phases: tuple[Phase, ...]
    outputs: Ints
    metadata: Mapping[str, str]

    def save(self, file: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the file, whole or not at all. Raises: OutputError."""
        return safetensors_file.write(file, self._arrays(), self.metadata, force=force)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "CompiledRequest":
        """Raises: CompiledRequestError if the file is missing, damaged, of a newer version or no compiled request."""
        arrays, metadata = safetensors_file.read(file)
        _check_metadata(file, metadata)
        try:
            made = _assemble(dict(arrays), metadata)
        except KeyError as error:
            raise CompiledRequestError(f"{file} lacks {error.args[0]}; {REMEDY}") from error
        except ValueError as error:
            raise CompiledRequestError(f"{file} is damaged: {error}; {REMEDY}") from error
        return made

    def check_bundle(self, bundle: Bundle) -> None:
        """Raises: CompiledRequestError unless ``bundle``, or the one its engines were built from, made this request."""
        wanted = set(self.metadata["files"].split())
        origin = bundle.manifest.provenance.get("built", {})
        built_from = set(origin.get("onnx", {}).values()) if isinstance(origin, Mapping) else set()
        if not (wanted <= file_hashes(bundle) or wanted <= built_from):
            raise CompiledRequestError(
                f"this request was compiled for another bundle ({self.metadata['family']}) than {bundle.path}; "
                f"compile it with framert compile-request {bundle.path}"
            )

    def _arrays(self) -> dict[str, Array]:
        arrays: dict[str, Array] = {"places": self.places, "outputs": self.outputs, "references": self.references}
        arrays |= {f"arena.{name}": np.asarray(sizes, np.int32) for name, sizes in self.arenas.items()}
        for number, feeds in enumerate(self.prompts):
            arrays |= {f"prompt.{number}.{name}": array for name, array in feeds.items()}
        arrays |= {f"picture.{number}.pixels": pixels for number, pixels in enumerate(self.pictures)}
        arrays |= {f"reference.{number}.pixels": pixels for number, pixels in enumerate(self.reference_pictures)}
        for number, call in enumerate(self.conditioning):
            arrays[f"conditioner.{number}.prompt"] = np.asarray([call.prompt], np.int32)
            arrays |= {f"conditioner.{number}.in.{name}": array for name, array in call.given.items()}
            arrays |= {f"conditioner.{number}.to.{name}": np.asarray([row], np.int32) for name, row in call.to.items()}
        for number, phase in enumerate(self.phases):
            own = {**phase.tables, "row": phase.row, "update": phase.update, "update_group": phase.update_group}
            own |= {"latents": phase.latents} if phase.latents is not None else {}
            own |= {"carry": phase.carry} if phase.carry is not None else {}
            arrays |= {f"phase.{number}.{name}": array for name, array in own.items()}
        return arrays


def file_hashes(bundle: Bundle) -> set[str]:
    """Return the sha256 of every file of a bundle."""
    return {spec.sha256 for spec in bundle.manifest.files.values()}


def _check_metadata(file: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise CompiledRequestError(f"{file} is no compiled request; framert compile-request makes one")
    if metadata.get("version") != VERSION:
        raise CompiledRequestError(
            f"{file} has version {metadata.get('version')!r}, this framert reads {VERSION}; update framert, or {REMEDY}"
        )
    if set(metadata) != set(METADATA):
        wrong = sorted(set(metadata) ^ set(METADATA))
        raise CompiledRequestError(f"{file} has metadata {', '.join(wrong)} too few or too many; {REMEDY}")


def _assemble(arrays: dict[str, Array], metadata: Mapping[str, str]) -> CompiledRequest:
    """Take the arrays apart. Raises: KeyError for a missing one; ValueError for what does not fit."""
    made = CompiledRequest(
        prompts=tuple(_below(arrays, f"prompt.{number}.") for number in range(_count(arrays, "prompt"))),
        pictures=_pictures(arrays, "picture"),
        reference_pictures=_pictures(arrays, "reference"),
        references=_shaped("references", arrays.pop("references"), np.int32, None, 3),
        conditioning=tuple(_conditioning(arrays, number) for number in range(_count(arrays, "conditioner"))),
        arenas={name: _arena(name, sizes) for name, sizes in _below(arrays, "arena.").items()},
        phases=tuple(_phase(arrays, number) for number in range(_count(arrays, "phase"))),
        places=_shaped("places", arrays.pop("places"), np.int32, None, 4),
        outputs=_shaped("outputs", arrays.pop("outputs"), np.int32, None, OUTPUT_COLUMNS),
        metadata=metadata,
    )
    if arrays:
        raise ValueError(f"it holds {', '.join(sorted(arrays)[:3])}, which this version does not know")
    _check_numbers(made)
    return made


def _count(arrays: Mapping[str, Array], kind: str) -> int:
    found = {int(match[1]) for name in arrays if (match := re.match(rf"{kind}\.(\d{{1,6}})\.", name))}
    return max(found, default=-1) + 1


def _pictures(arrays: dict[str, Array], kind: str) -> tuple[Floats, ...]:
    return tuple(
        _shaped("pixels", arrays.pop(f"{kind}.{number}.pixels"), np.float32, 1, 3, None, None)
        for number in range(_count(arrays, kind))
    )


def _below(arrays: dict[str, Array], stem: str) -> dict[str, Array]:
    """Take out the arrays whose names begin with ``stem``, and return them by the rest of their names."""
    return {name.removeprefix(stem): arrays.pop(name) for name in [name for name in arrays if name.startswith(stem)]}


def _arena(name: str, sizes: Array) -> tuple[int, int]:
    axis, rows = _shaped(name, sizes, np.int32, 2).tolist()
    if not (0 <= axis < 8 and rows >= 1):
        raise ValueError(f"arena {name} has {rows} rows on axis {axis}")
    return axis, rows


def _conditioning(arrays: dict[str, Array], number: int) -> Conditioning:
    stem = f"conditioner.{number}."
    (prompt,) = _shaped("prompt", arrays.pop(stem + "prompt"), np.int32, 1).tolist()
    to = _below(arrays, stem + "to.")
    return Conditioning(
        prompt=prompt,
        given=_below(arrays, stem + "in."),
        to={name: _shaped(name, row, np.int32, 1).tolist()[0] for name, row in to.items()},
    )


def _phase(arrays: dict[str, Array], number: int) -> Phase:
    stem = f"phase.{number}."
    own = _below(arrays, stem)
    if missing := [name for name in ("carry" if number else "latents", "update_group", *STEPPED) if name not in own]:
        raise KeyError(stem + missing[0])
    update_group = _shaped("update_group", own.pop("update_group"), np.int32, None)
    row = _shaped("row", own.pop("row"), np.int32, None, None)
    return Phase(
        latents=None if number else _shaped("latents", own.pop("latents"), np.float32, len(update_group), None),
        carry=_shaped("carry", own.pop("carry"), np.int32, len(update_group)) if number else None,
        row=row,
        update=_shaped("update", own.pop("update"), np.float32, len(row), None, 6),
        update_group=update_group,
        tables=own,
    )


def _shaped(name: str, array: Array, dtype: type, *shape: int | None) -> npt.NDArray[Any]:
    fits = len(array.shape) == len(shape) and all(
        side in (None, own) for side, own in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
    return array


def _check_numbers(made: CompiledRequest) -> None:
    """Raises: ValueError if a number points beyond what it points into; the graphs' own indices are left to them."""
    slots = [phase.slots for phase in made.phases]
    limits = [
        ("phases", [0 if made.phases else 1], 1),
        ("conditioner's prompt", [call.prompt for call in made.conditioning], len(made.prompts)),
        ("places' picture", made.places[:, 0], len(made.pictures)),
        ("places' phase", made.places[:, 2] + 1, len(slots) + 1),
        ("references' prompt", made.references[:, 0], len(made.prompts)),
        ("references' picture", made.references[:, 2], len(made.reference_pictures)),
        ("outputs' phase", made.outputs[:, 3], len(slots)),
    ]
    limits += [("carry", phase.carry, slots[number]) for number, phase in enumerate(made.phases[1:])]
    limits += [("update_group", phase.update_group, phase.update.shape[1]) for phase in made.phases]
    limits += [("row", phase.row, made.arenas["modulation"][1]) for phase in made.phases]
    for call in made.conditioning:
        limits += [(f"conditioner's {name}", [row], made.arenas[name][1]) for name, row in call.to.items()]
    for name, numbers, limit in limits:
        values = np.asarray(numbers)
        if values.size and not (values.min() >= 0 and values.max() < limit):
            raise ValueError(f"{name} points beyond {limit}")
    for _, begin, phase, _ in made.places.tolist():
        target = made.phases[0].latents if phase < 0 else made.phases[phase].tables.get("conditions")
        if target is None or not 0 <= begin < len(target):
            raise ValueError("places point beyond what pictures fill")
    for _, _, _, phase, begin, height, width in made.outputs.tolist():
        if min(begin, height - 1, width - 1) < 0 or begin + height * width > slots[phase]:
            raise ValueError("outputs point beyond the slots")
