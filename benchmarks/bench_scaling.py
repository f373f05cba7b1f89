"""A step's time against tokens and requests, beside the roofline of this machine, measured in the same run.

    python benchmarks/bench_scaling.py [--threads 2] [--rounds 3] [--dry-run]

The model of bench_step.py, ONNX Runtime, fp32. The roofline of a case is the time its arithmetic takes at the best rate
of a product here, or reading the weights once at the machine's rate of reading memory, whichever is longer. What limits
is the largest of: products with weights, products of attention, and the glue, which is all the step does besides. Rows
go to benchmarks/results/scaling_cpu.csv.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import bench_step
import numpy as np

import framert
from framert.export.pipeline import export
from framert.runtime import backends, tables
from framert.runtime.arrays import Floats
from framert.runtime.bench.rows import Environment, Row
from framert.runtime.bundle import Bundle
from framert.runtime.errors import FramertError

ROOT = Path(__file__).resolve().parents[1]
BENCH, IMPL = "scaling_cpu", "onnxruntime-fp32"
# Requests, frames of each, tokens along a frame's side: one request from 64 to 8192 tokens, then several of 256.
SHAPES = (
    (1, 1, 8), (1, 1, 16), (1, 2, 16), (1, 1, 32), (1, 2, 32), (1, 4, 32), (1, 8, 32),
    (2, 1, 16), (4, 1, 16), (8, 1, 16), (2, 1, 32), (8, 1, 32),
)  # fmt: skip
LONG = 2.0  # seconds: a step beyond it is timed once


@dataclass(frozen=True, slots=True)
class Rates:
    """flops: best multiply-adds per second of a product, times two; read: bytes per second of reading memory."""

    flops: float
    read: float


@dataclass(frozen=True, slots=True)
class Work:
    """Arithmetic of one step, in floating-point operations, and bytes of weights."""

    weights: float
    attention: float
    size: float

    @classmethod
    def of(cls, case: bench_step.Case, requests: int, frames: int, side: int, text: int, size: float) -> "Work":
        """Count one step of equal requests without guidance; ``size`` is that of the denoiser's files."""
        config = bench_step.baseline.PublishedNextDiT(case.config).state_dict()
        layers = sum(
            value.numel()
            for name, value in config.items()
            if value.ndim == 2 and name.startswith("layers.") and "adaLN" not in name and "_y." not in name
        )
        sequence = frames * side**2
        return cls(
            weights=2.0 * requests * sequence * layers,
            attention=4.0 * requests * sequence * (sequence + text) * case.width * case.depth,
            size=size,
        )

    def bound(self, rates: Rates) -> float:
        """Return the seconds below which the step cannot come."""
        return max((self.weights + self.attention) / rates.flops, self.size / rates.read)


def measure_rates(threads: int, folder: Path) -> Rates:
    """Return the best of a few products of usual shapes in ONNX Runtime, and of reading a large array in threads."""
    rate = max(_product_rate(threads, folder, *shape) for shape in ((1024, 768, 2048), (2048, 2048, 2048)))
    array = np.ones(2**25, np.float64)
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:  # a sum lets go of the interpreter's lock
        seconds = min(_clock(lambda: list(pool.map(np.sum, parts))) for _ in range(5))
    return Rates(flops=rate, read=array.nbytes / seconds)


def _product_rate(threads: int, folder: Path, m: int, k: int, n: int) -> float:
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(np.full((k, n), 0.5, np.float32), "w")
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [m, size]) for name, size in (("x", k), ("y", n))
    ]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", ends[:1], ends[1:], [weight])
    file = folder / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.ones((m, k), np.float32)}
    seconds = min(_clock(lambda: session.run(None, feeds)) for _ in range(12))
    return 2.0 * m * k * n / seconds


def _clock(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class Step:
    """One bound pack of equal requests on a shared backend."""

    def __init__(
        self, bundle: Bundle, backend: backends.Backend, case: bench_step.Case, shape: tuple[int, ...]
    ) -> None:
        requests, frames, side = shape
        generator = np.random.default_rng(0)
        self._denoiser = backend.denoiser()
        self._denoiser.reserve(text=case.text, rows=1)
        hidden: Floats = generator.standard_normal((case.text, case.text_width)).astype(np.float32)
        made = backend.run("conditioner", {"hidden_states": hidden, "noise_level": np.array([500.0], np.float32)})
        self._denoiser.write_text(0, made["text_k"], made["text_v"])
        self._denoiser.write_modulation(0, made["modulation"])
        member = bench_step.Member(frames, side, side, [tables.BranchRows(0, case.text, 0, 1.0)])
        packed = tables.build([member] * requests, guidance_branches=bundle.manifest.guidance_branches)
        latents = generator.standard_normal((packed.slots, bundle.manifest.model.token_width)).astype(np.float32)
        self._denoiser.bind(packed, latents, np.zeros_like(latents))
        self._row = np.zeros(packed.frames, np.int32)
        self._update = np.zeros((packed.slots, 6), np.float32)
        self._update[:, 0] = 1

    def __call__(self) -> None:
        self._denoiser.step(self._row, self._update)


def measure(
    case: bench_step.Case,
    shapes: tuple[tuple[int, int, int], ...],
    environment: Environment,
    rounds: int,
    log: Callable[[str], None],
) -> list[Row]:
    """Export a random model, measure the machine's rates, time every shape and return the rows."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench_step.write_checkpoint(case, bench_step.random_weights(case), folder / "checkpoint")
        export(folder / "checkpoint", folder / "scaling.bundle", progress=False)
        bundle = Bundle.open(folder / "scaling.bundle", check_files=False)
        size = sum(bundle.manifest.files[file].size for file in bundle.manifest.graphs["denoiser"].files)
        rates = measure_rates(environment.threads, folder)
        log(f"best product {rates.flops / 1e9:.0f} GFLOP/s, reading {rates.read / 1e9:.1f} GB/s")
        backend = backends.create("onnxruntime", bundle, threads=environment.threads)
        for requests, frames, side in shapes:
            step = Step(bundle, backend, case, (requests, frames, side))
            step()
            samples = [_clock(step)]
            while len(samples) < rounds and samples[0] < LONG:
                samples.append(_clock(step))
            work = Work.of(case, requests, frames, side, case.text, size)
            rows += _rows(environment, case, (requests, frames, side), samples, work, rates, log)
    overall = f"{case.depth} layers {case.width} wide"
    for metric, unit, value in (
        ("product_rate", "GFLOP/s", rates.flops / 1e9),
        ("read_rate", "GB/s", rates.read / 1e9),
    ):
        rows.append(environment.row(bench=BENCH, impl=IMPL, case=overall, metric=metric, unit=unit, samples=[value]))
    return rows


def _rows(
    environment: Environment,
    case: bench_step.Case,
    shape: tuple[int, int, int],
    samples: list[float],
    work: Work,
    rates: Rates,
    log: Callable[[str], None],
) -> list[Row]:
    requests, frames, side = shape
    total, step, bound = requests * frames * side**2, min(samples), work.bound(rates)
    terms = {"products with weights": work.weights / rates.flops, "attention": work.attention / rates.flops}
    terms["glue"] = max(0.0, step - sum(terms.values()))
    limit = max(terms, key=lambda name: terms[name])
    if work.size / rates.read >= bound:
        limit = "reading the weights"
    shown = ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in terms.items())
    plural = "s" if requests > 1 else ""
    text = f"{case.depth} layers {case.width} wide; {total} tokens in {requests} request{plural} of {frames} frames"
    log(f"{text}: {step * 1e3:.0f} ms, roofline {bound * 1e3:.0f} ({bound / step:.0%}); {limit} limits ({shown} ms)")

    def row(metric: str, unit: str, values: list[float], impl: str = IMPL) -> Row:
        return environment.row(bench=BENCH, impl=impl, case=text, metric=metric, unit=unit, samples=values)

    return [
        row("step", "s", samples),
        row("roofline", "s", [bound]),
        row("products_with_weights", "s", [terms["products with weights"]]),
        row("attention", "s", [terms["attention"]]),
        row("glue", "s", [terms["glue"]]),
        row("reading_weights", "s", [work.size / rates.read]),
        row("rate_ratio", "x", [bound / sample for sample in samples], impl=f"{IMPL}/roofline"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each shape (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--dry-run", action="store_true", help="print the figures, write no rows")
    options = parser.parse_args()
    if not Path(framert.__file__).resolve().is_relative_to(ROOT):
        print(f"error: framert is imported from {framert.__file__}, not from this checkout", file=sys.stderr)
        return 2

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        environment = Environment.capture(ROOT, threads=options.threads, record=not options.dry_run)
        rows = measure(bench_step.Case(), SHAPES, environment, options.rounds, log)
        if not options.dry_run:
            log(f"rows appended to {environment.append(f'{BENCH}.csv', rows)}")
    except FramertError as error:
        log(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
