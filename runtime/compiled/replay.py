"""Run a compiled request: graphs and the file, and none of the engine's planning. What examples/cpp does, in Python."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from framert.runtime.arrays import Array, Floats
from framert.runtime.backends.base import Backend, text_arenas
from framert.runtime.bundle import Bundle
from framert.runtime.compiled.format import CompiledRequest, Phase
from framert.runtime.components import Components
from framert.runtime.patches import to_frames, to_tokens
from framert.runtime.tables import Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One request's results, as ``Result`` has them.

    latents: (generated frames, channels, h, w). pixels: (pictures, height, width, 3) in 0..1, not yet rounded.
    """

    latents: Floats
    pixels: Floats


def replay(compiled: CompiledRequest, bundle: Bundle, backend: Backend) -> list[Replayed]:
    """Run a compiled request on a backend that ``framert.runtime.backends.create`` made of ``bundle``.

    Returns: the results in the order the requests were compiled in.
    Raises: CompiledRequestError if the bundle is not the one it was compiled for; what the backend raises.
    """
    compiled.check_bundle(bundle)
    components = Components(bundle, backend)
    denoiser = backend.denoiser()
    arenas = text_arenas(bundle.manifest)
    denoiser.reserve(text=max(compiled.arenas[name][1] for name in arenas), rows=compiled.arenas["modulation"][1])
    encoded = [backend.run("text_encoder", feeds) for feeds in _prompts(compiled, backend)]
    for call in compiled.conditioning:
        inputs = bundle.manifest.graphs["conditioner"].inputs
        states = {name: encoded[call.prompt][name] for name in inputs if name not in call.given}
        made = backend.run("conditioner", {**states, **call.given})
        if begins := {call.to[name] for name in arenas if name in call.to}:
            denoiser.write_text(begins.pop(), *(made[name] for name in arenas))
        if "modulation" in call.to:
            denoiser.write_modulation(call.to["modulation"], made["modulation"])
    latents, shown = _start(compiled, bundle, components)
    history = np.zeros_like(latents)
    finished: list[Floats] = []
    for number, phase in enumerate(compiled.phases):
        if phase.carry is not None:
            latents, history = latents[phase.carry], history[phase.carry]
        denoiser.bind(_tables(phase, shown.get(number)), latents, history)
        for call_number in range(phase.calls):
            denoiser.step(phase.row[call_number], phase.update[call_number][phase.update_group])
        latents, history = denoiser.state()
        finished.append(latents)
    return _results(compiled, bundle, components, finished)


def _prompts(compiled: CompiledRequest, backend: Backend) -> list[dict[str, Array]]:
    """Return the text encoder's inputs, with the features of the pictures that prompts refer to."""
    feeds = [{name: array.copy() for name, array in given.items()} for given in compiled.prompts]
    made = [backend.run("image_encoder", {"pixels": pixels})["feature"] for pixels in compiled.reference_pictures]
    for prompt, row, reference in compiled.references.tolist():
        feeds[prompt]["feature"][row] = made[reference][0]
    return feeds


def _start(compiled: CompiledRequest, bundle: Bundle, components: Components) -> tuple[Floats, dict[int, Floats]]:
    """Return the first latents, and the conditions of phases, with the latents of given pictures in their places."""
    first, patch = compiled.phases[0].latents, bundle.manifest.model.patch
    assert first is not None
    filled = {-1: first.copy()}
    for picture, begin, phase, pixel in compiled.places.tolist():
        if phase not in filled:
            filled[phase] = np.array(compiled.phases[phase].tables["conditions"], np.float32)
        encoded = components.encode(compiled.pictures[picture][0].transpose(1, 2, 0), {})
        tokens = to_tokens(encoded[None], patch).reshape(-1, patch * patch, len(encoded))
        rows = filled[phase][begin : begin + len(tokens)].reshape(len(tokens), patch * patch, pixel)
        rows[:, :, : len(encoded)] = tokens
        filled[phase][begin : begin + len(tokens)] = rows.reshape(len(tokens), -1)
    return filled.pop(-1), filled


def _tables(phase: Phase, conditions: Floats | None) -> Tables:
    names = {item.name for item in fields(Tables)}
    given: dict[str, Any] = {name: array for name, array in phase.tables.items() if name in names}
    if conditions is not None:
        given["conditions"] = conditions
    return Tables(**given, frames=phase.row.shape[1])


def _results(
    compiled: CompiledRequest, bundle: Bundle, components: Components, finished: Sequence[Array]
) -> list[Replayed]:
    model = bundle.manifest.model
    made: dict[int, tuple[list[Floats], list[Floats]]] = {}
    for number, _, decode, phase, begin, height, width in compiled.outputs.tolist():
        shape = (1, model.latent_channels, height * model.patch, width * model.patch)
        frame = to_frames(np.asarray(finished[phase][begin : begin + height * width], np.float32), model.patch, shape)
        frames, pictures = made.setdefault(number, ([], []))
        frames.append(frame[0])
        if decode:
            pictures.append(components.decode(frame[0], {}))
    return [
        Replayed(
            latents=np.stack(frames),
            pixels=np.stack(pictures) if pictures else _no_pictures(frames[0], model.vae_factor),
        )
        for _, (frames, pictures) in sorted(made.items())
    ]


def _no_pictures(frame: Floats, factor: int) -> Floats:
    return np.zeros((0, frame.shape[1] * factor, frame.shape[2] * factor, 3), np.float32)
