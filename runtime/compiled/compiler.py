"""Requests to a file: the engine's own path, run on a backend that only records."""

import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from functools import partial

import numpy as np

import framert
from framert.runtime import sequence, tiling
from framert.runtime.backends.tensorrt.library import KINDS
from framert.runtime.backends.tensorrt.profiles import Profiles
from framert.runtime.backends.tensorrt.rebuild import rebuild_command
from framert.runtime.bundle import Bundle
from framert.runtime.compiled.format import FORMAT, OUTPUT_COLUMNS, VERSION, CompiledRequest, Phase, file_hashes
from framert.runtime.compiled.recorder import Recorder
from framert.runtime.components import Components
from framert.runtime.errors import ConfigError
from framert.runtime.job import prepare
from framert.runtime.pack import Pack
from framert.runtime.request import Request
from framert.runtime.sequence import Sequence
from framert.runtime.store import ConditioningStore


def compile_requests(bundle: Bundle, requests: List[Request]) -> CompiledRequest:
    """Return everything the bundle's graphs are given for these requests. No graph runs, and none is loaded.

    The requests begin together and share calls; each leaves after its last one. Noise is drawn here, so the result
    holds for these seeds.

    Args:
        bundle: of ONNX graphs, or of engines, whose sizes the requests must fit.
        requests: at least one; ``on_step`` is ignored.
    Raises: ConfigError for no request, or one with reuse; BackendError for more than engines were built for; what
        ``Pipeline.run`` raises for arguments that do not fit.
    """
    check_sizes = _sizes_of(bundle)
    jobs = [prepare(request, bundle.manifest) for request in requests]
    if not jobs:
        raise ConfigError("no request was given; give at least one")
    for job in jobs:
        if job.reuse > 1:
            raise ConfigError(f"reuse is {job.reuse}; a compiled request runs every frame in every call, leave it out")
    recorder = Recorder(bundle)
    components = Components(bundle, recorder)
    store = ConditioningStore(components, recorder, bundle.manifest)
    pack = Pack(recorder, bundle.manifest)
    states = [sequence.start(job, components, store) for job in jobs]
    outputs: list[tuple[int, ...]] = []
    running = list(enumerate(states))
    while running:
        pack.step([state for _, state in running])
        for number, state in running:
            if state.done:
                outputs += _outputs(number, state, pack, recorder.phase)
        running = [(number, state) for number, state in running if not state.done]
    phases = recorder.phases()
    for phase in phases:
        check_sizes(phase, recorder.arenas)
    return CompiledRequest(
        prompts=recorder.prompts,
        pictures=recorder.pictures,
        reference_pictures=recorder.reference_pictures,
        references=recorder.references(),
        conditioning=recorder.conditioning,
        arenas=recorder.arenas,
        places=recorder.places(),
        phases=phases,
        outputs=np.asarray(sorted(outputs), np.int32).reshape(-1, OUTPUT_COLUMNS),
        metadata=_metadata(bundle, states),
    )


def _sizes_of(bundle: Bundle) -> Callable[[Phase, Mapping[str, tuple[int, int]]], None]:
    """Return what raises BackendError for a phase that the bundle's engines were not built for."""
    if bundle.manifest.target.get("kind") not in KINDS:
        return lambda phase, arenas: None
    profiles = Profiles.read(bundle.path, ("denoiser",), partial(rebuild_command, bundle))
    inputs = bundle.manifest.graphs["denoiser"].inputs

    def check(phase: Phase, arenas: Mapping[str, tuple[int, int]]) -> None:
        given = {**phase.tables, "row": phase.row[0], "latents": phase.update_group[:, None]}
        sizes = {
            axis: length
            for name, array in given.items()
            if name in inputs
            for axis, length in zip(inputs[name].shape, array.shape, strict=True)
            if isinstance(axis, str)
        }
        sizes |= {
            str(axis): rows
            for name, (place, rows) in arenas.items()
            if isinstance(axis := inputs[name].shape[place], str)
        }
        profiles.choose("denoiser", sizes)

    return check


def _outputs(number: int, state: Sequence, pack: Pack, phase: int) -> list[tuple[int, ...]]:
    slots = pack.latents(state)[:, 0].astype(np.int64)
    tokens = state.height * state.width
    rows: list[tuple[int, ...]] = []
    for frame in state.generated_frames:
        picture = state.job.composition.kinds[frame] != "rays"
        rows.append((number, frame, int(picture), phase, int(slots[frame * tokens]), state.height, state.width))
    return rows


def _metadata(bundle: Bundle, states: List[Sequence]) -> dict[str, str]:
    model = bundle.manifest.model
    return {
        "format": FORMAT,
        "version": VERSION,
        "framert": framert.__version__,
        "family": bundle.manifest.family,
        "files": " ".join(sorted(file_hashes(bundle))),
        "patch": str(model.patch),
        "latent_channels": str(model.latent_channels),
        "vae_factor": str(model.vae_factor),
        "scaling_factor": repr(float(model.scaling_factor)),
        "shift": repr(float(model.shift)),
        "tile": str(tiling.TILE),
        "requests": json.dumps([dict(state.job.settings) for state in states]),
    }
