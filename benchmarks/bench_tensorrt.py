"""Engines of ``framert build`` on the GPU they were built for: numerics of each against ONNX Runtime, and latency.

    framert build models/blocks.bundle --target sm_89 --precision fp16 -o blocks.engines
    python benchmarks/bench_tensorrt.py models/blocks.bundle blocks.engines [--rounds 30] [--dry-run]

Every graph runs on random inputs of the sizes its profiles are best at, in both; the denoiser as velocities of the
largest call that each of its profiles takes, with attention over two sequences. Latency: each graph with its copies to
and from the device; a denoiser call queued, captured and replayed as a request makes it; and a whole picture. Exit code
1 if an engine is farther off than its precision explains. Rows: benchmarks/results/tensorrt.csv.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import framert
from framert.runtime import tables, velocity
from framert.runtime.arrays import Array
from framert.runtime.backends.base import text_arenas
from framert.runtime.backends.onnxruntime import OnnxRuntimeBackend
from framert.runtime.backends.tensorrt.backend import TensorRtBackend
from framert.runtime.bench.rows import Environment, Row
from framert.runtime.bundle import GRAPHS, Bundle
from framert.runtime.components import Components
from framert.runtime.errors import FramertError
from framert.runtime.families import find_family
from framert.runtime.manifest import PRECISION_WORDS
from framert.runtime.tables import BranchRows

ROOT = Path(__file__).resolve().parents[1]
BENCH = "tensorrt"
# Largest relative L2 distance to the exported graph in ONNX Runtime that a precision explains; beyond it is a defect.
ALLOWED = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.1, "fp8": 0.3, "int4": 0.3}
LEVELS = (900.0, 300.0)  # noise of the two frames of a velocity, in 0..1000
PROMPT = "[[text2image]] a red cube and a blue sphere on a grey floor"


class Measurement:
    """Rows of one run, and what was farther off than allowed."""

    def __init__(self, graphs: Bundle, engines: Bundle, environment: Environment, rounds: int) -> None:
        self.bundle, self.engines = graphs, engines
        self.environment, self.rounds = environment, rounds
        self.exact = OnnxRuntimeBackend(graphs, threads=None)
        self.backend = TensorRtBackend(engines)
        self.backend.denoiser()
        self.rows: list[Row] = []
        self.failures: list[str] = []

    def precision(self, graph: str) -> str:
        return PRECISION_WORDS.get(self.engines.manifest.graphs[graph].precision, "fp32")

    def add(self, impl: str, case: str, metric: str, unit: str, samples: list[float]) -> None:
        row = self.environment.row(bench=BENCH, impl=impl, case=case, metric=metric, unit=unit, samples=samples)
        self.rows.append(row)
        print(f"{case:44} {impl:24} {metric:12} {row.p50:11.4g} {unit:4} ({row.p20:.4g} to {row.p80:.4g})", flush=True)

    def compare(self, graph: str, case: str, found: Array, exact: Array) -> None:
        """Note how far an output is off."""
        error = float(np.linalg.norm(np.float64(found) - exact) / max(np.linalg.norm(np.float64(exact)), 1e-30))
        precision = self.precision(graph)
        self.add(f"tensorrt-{precision}", case, "error", "rel", [error])
        if not error <= ALLOWED[precision]:
            self.failures.append(f"{case} is {error:.2g} off, and {precision} explains {ALLOWED[precision]:g}")

    def time(self, graph: str, case: str, work: Callable[[], object]) -> None:
        work()
        samples = []
        for _ in range(self.rounds):
            begin = time.perf_counter()
            work()
            samples.append(time.perf_counter() - begin)
        self.add(f"tensorrt-{self.precision(graph)}", case, "time", "s", samples)


def measure(run: Measurement) -> None:
    for graph in GRAPHS:
        if graph != "denoiser":
            for number in range(len(run.backend.profiles.of(graph))):
                one_graph(run, graph, number)
    for number in range(len(run.backend.profiles.of("denoiser"))):
        denoiser(run, number)
    whole(run)


def one_graph(run: Measurement, graph: str, number: int) -> None:
    """Compare and time a graph around the denoiser at the sizes that a profile is best at."""
    profile = {axis: sizes[1] for axis, sizes in run.backend.profiles.of(graph)[number].items()}
    generator = np.random.default_rng(0)
    spec = run.bundle.manifest.graphs[graph]
    feeds: dict[str, Array] = {}
    for name, tensor in spec.inputs.items():
        shape = tuple(profile[size] if isinstance(size, str) else size for size in tensor.shape)
        if tensor.dtype.startswith("int"):
            feeds[name] = generator.integers(3, 30, shape).astype(tensor.dtype)  # ids of words
        elif name == "noise_level":
            feeds[name] = np.linspace(1000, 0, shape[0], dtype=np.float32)
        else:
            feeds[name] = generator.standard_normal(shape).astype(tensor.dtype)
    sizes = " ".join(f"{axis}={size}" for axis, size in profile.items())
    exact = run.exact.run(graph, feeds)
    found = run.backend.run(graph, feeds)
    for name, values in exact.items():
        got = found[name] if isinstance(found[name], np.ndarray) else run.backend.read(found[name])
        run.compare(graph, f"{graph}.{name} {sizes}", got, values)
    run.time(graph, f"{graph} {sizes}", lambda: run.backend.run(graph, feeds))


def denoiser(run: Measurement, number: int) -> None:
    """Compare velocities of, and time, the largest call of two sequences that a profile takes."""
    manifest = run.bundle.manifest
    model, profile = manifest.model, run.backend.profiles.of("denoiser")[number]
    tokens = profile["tokens"][2]
    longest = min(tokens // 2, profile.get("longest", (1, 1, tokens))[2])
    side = min(int(longest**0.5), model.max_positions)
    frames = max(1, min(longest // side**2, 2))
    if frames == 2:
        side = min(side, int((longest // 2) ** 0.5))
    case = f"denoiser profile {number}, 2 x {frames * side * side} tokens"
    samples = np.random.default_rng(1).standard_normal(
        (2, frames, model.latent_channels, side * model.patch, side * model.patch), np.float32
    )
    levels = np.asarray(LEVELS[:frames], np.float32)
    results = []
    for backend, bundle in ((run.exact, run.bundle), (run.backend, run.engines)):
        components = Components(bundle, backend)
        text = np.stack([read(run)["hidden_states"]] * 2)
        results.append(velocity.velocity(backend, components, manifest, samples, levels, text, np.ones(text.shape[:2])))
    run.compare("denoiser", case, results[1], results[0])
    steps(run, case, frames, side)


def read(run: Measurement) -> Mapping[str, Array]:
    """Return what ONNX Runtime's text encoder makes of a prompt, so that both sides begin with the same."""
    return Components(run.bundle, run.exact).read(PROMPT, {}).values


class Member:
    """Two branches of a request that nobody made."""

    conditions = None

    def __init__(self, frames: int, side: int, text: int) -> None:
        self.frames, self.height, self.width = frames, side, side
        self.branches = (BranchRows(0, text, 0, 3.0), BranchRows(0, text, 0, -2.0))


def steps(run: Measurement, case: str, frames: int, side: int) -> None:
    """Time calls of one pack, each with its row and update, queued behind one another as a request queues them."""
    manifest = run.engines.manifest
    components = Components(run.engines, run.backend)
    text = read(run)
    length = len(text["hidden_states"])
    made = components.condition(text, LEVELS, {})
    denoiser = run.backend.denoiser()
    denoiser.reserve(text=length, rows=len(LEVELS))
    denoiser.write_text(0, *(made[name] for name in text_arenas(manifest)))
    denoiser.write_modulation(0, made["modulation"])
    member = Member(frames, side, length)
    packed = tables.build(
        [member],
        guidance_branches=manifest.guidance_branches,
        tokens=denoiser.padded(tables.token_count(member)),
        layout=find_family(manifest.family).layout(manifest),
    )
    latents = np.random.default_rng(2).standard_normal((packed.slots, manifest.model.token_width), np.float32)
    denoiser.bind(packed, latents, np.zeros_like(latents))
    row, update = np.zeros(packed.frames, np.int32), np.zeros((packed.slots, 6), np.float32)
    update[:, 0] = 1
    for _ in range(4):  # queued, and captured, both ways
        denoiser.step(row, update)
    captured = sum(denoiser.captured().values())

    def burst() -> None:
        for _ in range(10):
            denoiser.step(row, update)
        denoiser.state()

    burst()
    samples = []
    for _ in range(run.rounds):
        begin = time.perf_counter()
        burst()
        samples.append((time.perf_counter() - begin) / 10)
    precision = run.precision("denoiser")
    run.add(f"tensorrt-{precision}", f"{case}, step{'' if captured else ' (not captured)'}", "time", "s", samples)


def whole(run: Measurement) -> None:
    """Time a guided picture from prompt to pixels in 20 steps, of the native size or the largest that was built for."""
    pipe = framert.Pipeline(run.engines, run.backend)
    manifest = run.engines.manifest
    side = min(
        manifest.native_side, run.backend.profiles.most("vae_decoder", "latent_height") * manifest.model.vae_factor
    )
    call: Mapping[str, Any] = {"prompt": "a red cube", "steps": 20, "guidance": 4.0, "size": (side, side)}
    try:
        pipe.run("text_to_image", **call)
    except FramertError as error:
        print(f"left out: a whole picture: {error}", file=sys.stderr)
        return
    run.time("denoiser", f"text_to_image {side}x{side}, 20 steps", lambda: pipe.run("text_to_image", **call))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="the exported bundle, of ONNX graphs")
    parser.add_argument("engines", help="what framert build made of it")
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds (default 30)")
    parser.add_argument("--dry-run", action="store_true", help="print the figures, write no rows")
    options = parser.parse_args(arguments)
    try:
        engines = Bundle.open(options.engines)
        device = TensorRtBackend(engines, low_memory=True).device_name  # refuses what cannot run, before anything else
        environment = Environment.capture(ROOT, threads=1, device=device, record=not options.dry_run)
        run = Measurement(Bundle.open(options.bundle), engines, environment, options.rounds)
        measure(run)
        if not options.dry_run:
            print(f"rows appended to {environment.append(f'{BENCH}.csv', run.rows)}", file=sys.stderr)
    except FramertError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for failure in run.failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
