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
    encoded = [backend.run("text_encoder", dict(feeds)) for feeds in compiled.prompts]
    for call in compiled.conditioning:
        inputs = bundle.manifest.graphs["conditioner"].inputs
        states = {name: encoded[call.prompt][name] for name in inputs if name not in call.given}
        made = backend.run("conditioner", {**states, **call.given})
        if begins := {call.to[name] for name in arenas if name in call.to}:
            denoiser.write_text(begins.pop(), *(made[name] for name in arenas))
        if "modulation" in call.to:
            denoiser.write_modulation(call.to["modulation"], made["modulation"])
    latents, history = _start(compiled, bundle, components)
    finished: list[Floats] = []
    for phase in compiled.phases:
        if phase.carry is not None:
            latents, history = latents[phase.carry], history[phase.carry]
        denoiser.bind(_tables(phase), latents, history)
        for call_number in range(phase.calls):
            denoiser.step(phase.row[call_number], phase.update[call_number][phase.update_group])
        latents, history = denoiser.state()
        finished.append(latents)
    return _results(compiled, bundle, components, finished)


def _start(compiled: CompiledRequest, bundle: Bundle, components: Components) -> tuple[Floats, Floats]:
    first = compiled.phases[0].latents
    assert first is not None
    latents = first.copy()
    for picture, begin in compiled.places.tolist():
        encoded = components.encode(compiled.pictures[picture][0].transpose(1, 2, 0), {})
        tokens = to_tokens(encoded[None], bundle.manifest.model.patch)
        latents[begin : begin + len(tokens)] = tokens
    return latents, np.zeros_like(latents)


def _tables(phase: Phase) -> Tables:
    names = {item.name for item in fields(Tables)}
    given: dict[str, Any] = {name: array for name, array in phase.tables.items() if name in names}
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
