"""A bundle on this machine's other CPU backends and precisions, beside ONNX Runtime: how far off, and how fast."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from framert.runtime import backends, velocity
from framert.runtime.arrays import Floats
from framert.runtime.backends.base import Backend
from framert.runtime.bundle import Bundle, write_manifest
from framert.runtime.components import Components
from framert.runtime.cpu import cpu_name
from framert.runtime.errors import BackendError
from framert.runtime.families import find_task

REFERENCE = ("onnxruntime", None)
PROMPT = "a red cube and a blue sphere on a grey floor"
LEVELS = (900.0, 500.0, 100.0)  # noise, in 0..1000
FRAMES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One backend in one precision. velocity_error: the largest relative L2 distance to ONNX Runtime over noise levels.

    seconds: of one denoiser call on two frames of the bundle's native size, or one where it takes no more, and what
    prepares it. refused: why the backend cannot run the bundle; there is nothing else then.
    """

    velocity_error: float | None = None
    seconds: float | None = None
    refused: str = ""


def compare(bundle: Bundle, others: Mapping[str, tuple[str, str | None]], *, threads: int | None) -> dict[str, Any]:
    """Return a Comparison by name: that of ONNX Runtime under "onnxruntime", then of each of ``others``.

    Args:
        others: name -> (backend, precision), all of them usable here.
    Raises: BackendError if ONNX Runtime cannot run the bundle.
    """
    generator = np.random.default_rng(0)
    model = bundle.manifest.model
    side = bundle.manifest.native_side // model.vae_factor
    frames = min(FRAMES, model.max_frames)
    samples: Floats = generator.standard_normal((1, frames, model.latent_channels, side, side)).astype(np.float32)
    expected, seconds = _velocities(bundle, backends.create(REFERENCE[0], bundle, threads=threads), samples)
    found = {REFERENCE[0]: Comparison(velocity_error=0.0, seconds=seconds)}
    for name, (backend, precision) in others.items():
        try:
            made = backends.create(backend, bundle, threads=threads, precision=precision)
            actual, seconds = _velocities(bundle, made, samples)
        except BackendError as error:
            found[name] = Comparison(refused=str(error))
            continue
        errors = [float(np.linalg.norm(a - e) / np.linalg.norm(e)) for a, e in zip(actual, expected, strict=True)]
        # not max(): it would lose a NaN
        found[name] = Comparison(velocity_error=float(np.max(errors)), seconds=seconds)
    return found


def record(bundle: Bundle, found: Mapping[str, Comparison], versions: Mapping[str, str]) -> None:
    """Write comparisons into the manifest, as verified["backends"], where ``load(backend="auto")`` reads them.

    Raises: OSError if the bundle cannot be written.
    """
    about = {"cpu": cpu_name(), **versions, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    entries = {name: asdict(comparison) | about for name, comparison in found.items()}
    verified = {**bundle.manifest.verified, "backends": entries}
    write_manifest(bundle.path, replace(bundle.manifest, verified=verified))


def _velocities(bundle: Bundle, backend: Backend, samples: Floats) -> tuple[list[Floats], float]:
    components = Components(bundle, backend)
    token = find_task("text_to_image", bundle.manifest.family, bundle.manifest).token
    text = components.read(f"{token} {PROMPT}".strip(), {}).values
    hidden, pooled = text["hidden_states"], text.get("pooled")
    made, seconds = [], float("inf")
    for level in (LEVELS[0], *LEVELS):  # the first call loads
        levels = np.array([level, LEVELS[-1]], np.float32)[: samples.shape[1]]
        begin = time.perf_counter()
        made.append(
            velocity.velocity(
                backend, components, bundle.manifest, samples, levels, hidden[None], np.ones((1, len(hidden))),
                None if pooled is None else pooled[None],
            )
        )  # fmt: skip
        seconds = min(seconds, time.perf_counter() - begin)
    return made[1:], seconds
