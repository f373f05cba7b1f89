"""Peak memory of a whole run of the full-size model: published configuration, random weights, 512 x 512, two frames.

    python benchmarks/bench_memory.py [--precision denoiser=int4,text_encoder=int8] [--steps 2] [--work DIR] [--dry-run]

Writes a checkpoint (8 GB), exports it, and runs image_to_depth with ``low_memory=True`` in a process of its own, of
which the highest resident memory is read; mapped pages of weights count. Needs 30 GB of disk for fp32. Rows go to
benchmarks/results/memory_cpu.csv; everything else is removed.
"""

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import framert
from framert.runtime.bench.rows import Environment, Row
from framert.runtime.errors import FramertError

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "checkpoint"
BENCH = "memory_cpu"
GIB = 2**30
CONFIGS: Mapping[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "NextDiT", "hidden_size": 3840, "depth": 16, "num_heads": 32, "num_kv_heads": 8,
        "caption_channels": 2048, "in_channels": 16, "patch_size": [1, 2, 2], "input_size": [1, 96, 96],
        "multiple_of": 256, "ffn_dim_multiplier": None, "norm_eps": 1e-5, "qk_norm": True, "pred_sigma": False,
        "rotary_max_length": 128, "rotary_max_length_t": None,
    },
    "vae": {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32},
    "text_encoder": {"d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_heads": 32, "num_layers": 24, "vocab_size": 32128},
}  # fmt: skip


def write_checkpoint(folder: Path, configs: Mapping[str, dict[str, Any]]) -> None:
    """Write the published layout: the golden small files, ``configs`` over theirs, random bf16 weights."""
    from framert.export.families.onediffusion_plan import plan_graphs
    from framert.export.models.nextdit import NextDiTConfig
    from framert.export.trace import stored_shapes

    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    merged = {}
    for part, values in configs.items():
        file = folder / part / "config.json"
        merged[part] = (json.loads(file.read_text(encoding="utf-8")) if part != "transformer" else {}) | values
        file.write_text(json.dumps(merged[part]), encoding="utf-8")
    plans = plan_graphs(NextDiTConfig.from_checkpoint(merged["transformer"]), merged["vae"], merged["text_encoder"])
    shapes: dict[str, dict[str, tuple[int, ...]]] = {part: {} for part in configs}
    for plan in plans:
        shapes[plan.part] |= stored_shapes(plan)
    names = {"text_encoder": "model.safetensors"}
    for part, tensors in shapes.items():
        _write_tensors(folder / part / names.get(part, "diffusion_pytorch_model.safetensors"), tensors)


def _write_tensors(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write bf16 values of about the size that keeps activations of order one; vectors are around one."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    noise = np.random.default_rng(0).standard_normal(2**22, dtype=np.float32)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            count, scale = int(np.prod(shape)), float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.1
            chunk = noise * np.float32(scale) + np.float32(len(shape) == 1)
            raw = (chunk.view(np.uint32) >> 16).astype(np.uint16)
            for begin in range(0, count, len(raw)):
                stream.write(raw[: count - begin].tobytes())


@contextmanager
def made_up_ranges(checkpoint: Path) -> Iterator[None]:
    """Leave out calibration, which would run the whole model in fp32 to learn the ranges of random numbers."""
    from framert.export.checkpoint import open_checkpoint
    from framert.export.quantize import prepare
    from framert.export.quantize.calibration import Activation

    def activation(width: int) -> Activation:
        sample = np.random.default_rng(0).standard_normal((8, width), dtype=np.float32)
        return Activation(channel=np.ones(width, np.float32), sample=sample, largest=4.0, result=4.0)

    def calibrate(_bundle: object, _oracle: object, wanted: Sequence[str]) -> dict[str, dict[str, Activation]]:
        tensors = open_checkpoint(checkpoint).tensors
        return {
            part: {
                name: activation(tensor.shape[1]) for name, tensor in tensors[part].items() if len(tensor.shape) == 2
            }
            for part in wanted
        }

    real, prepare.calibrate = prepare.calibrate, calibrate
    try:
        yield
    finally:
        prepare.calibrate = real


class _Meter(threading.Thread):
    """Samples this process's memory; the kernel keeps the highest resident value, but not the highest anonymous one."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = 0

    def run(self) -> None:
        while True:
            self.anonymous = max(self.anonymous, _status("RssAnon"))
            time.sleep(0.02)


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith(field + ":")))


def run_child(options: argparse.Namespace) -> None:
    """Run the task and print what it took as JSON: the whole process is measured."""
    meter = _Meter()
    meter.start()
    begin = time.perf_counter()
    pipe = framert.load(
        options.child, backend=options.backend, threads=options.threads, low_memory=True, check_files=False
    )
    peaks: dict[str, int] = {}
    backend = pipe._backend

    def noted(name: str, before: float) -> None:
        peaks[name] = max(peaks.get(name, 0), _status("VmHWM"))
        print(f"{name}: {time.perf_counter() - before:.1f} s", file=sys.stderr, flush=True)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the highest value starts anew

    inner, denoiser = backend.run, pipe._engine._pack._denoiser
    inner_step = denoiser.step

    def run(graph: str, feeds: Any) -> Any:
        start = time.perf_counter()
        made = inner(graph, feeds)
        noted(graph, start)
        return made

    def step(row: Any, update: Any) -> None:
        start = time.perf_counter()
        inner_step(row, update)
        noted("denoiser", start)

    backend.run, denoiser.step = run, step  # type: ignore[method-assign]
    picture = np.random.default_rng(0).integers(0, 256, (options.side, options.side, 3), dtype=np.uint8)
    made = pipe.run(
        "image_to_depth", images=[picture], prompt="a cube", size=(options.side, options.side), steps=options.steps
    )
    seconds = time.perf_counter() - begin
    print(json.dumps({
        "peaks": peaks, "anonymous": meter.anonymous, "seconds": seconds, "parts": dict(made.timings),
    }))  # fmt: skip


def measure(options: argparse.Namespace, environment: Environment, folder: Path) -> list[Row]:
    """Make the bundle, run it in another process and return the rows."""
    bundle = options.bundle
    if bundle is None:
        from framert.export.pipeline import export

        _log("writing a random checkpoint of the published configuration")
        write_checkpoint(folder / "checkpoint", CONFIGS)
        _log(f"exporting it in {options.precision}")
        bundle = folder / "full.bundle"
        with made_up_ranges(folder / "checkpoint"):
            export(folder / "checkpoint", bundle, precision=options.precision, check=False, progress=False)
        shutil.rmtree(folder / "checkpoint")
    size = sum(file.stat().st_size for file in Path(bundle).iterdir())
    _log(f"running it: {size / GIB:.2f} GiB of files")
    command = [sys.executable, __file__, "--child", str(bundle), "--backend", options.backend]
    command += ["--side", str(options.side), "--steps", str(options.steps), "--threads", str(options.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    case = (
        f"published configuration, random weights, {options.precision}; image_to_depth {options.side}x{options.side}, "
        f"2 frames, {options.steps} steps; low_memory"
    )

    def row(metric: str, unit: str, value: float) -> Row:
        return environment.row(bench=BENCH, impl=options.backend, case=case, metric=metric, unit=unit, samples=[value])

    return [
        row("peak_resident", "GiB", max(found["peaks"].values()) / GIB),
        row("peak_anonymous", "GiB", found["anonymous"] / GIB),
        *(row(f"peak_resident_{name}", "GiB", peak / GIB) for name, peak in found["peaks"].items()),
        row("bundle_size", "GiB", size / GIB),
        row("run", "s", found["seconds"]),
        row("denoiser", "s", found["parts"]["denoiser"]),
    ]


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", help="as framert export --precision takes it (default fp32)")
    parser.add_argument("--backend", default="onnxruntime", help="onnxruntime or openvino (default onnxruntime)")
    parser.add_argument("--steps", type=int, default=2, help="intervals of the schedule (default 2)")
    parser.add_argument("--side", type=int, default=512, help="of the pictures, in pixels (default 512)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--work", type=Path, help="folder for the temporary files (default the system's)")
    parser.add_argument(
        "--bundle", type=Path, help="measure this one instead of making one: of the same model, in --precision"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the figures, write no rows")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bundle and not options.precision:
        parser.error("--bundle needs --precision: rows say what was measured")
    options.precision = options.precision or "fp32"
    try:
        if options.child:
            run_child(options)
            return 0
        environment = Environment.capture(ROOT, threads=options.threads, record=not options.dry_run)
        with tempfile.TemporaryDirectory(dir=options.work, prefix="framert-memory-") as folder:
            rows = measure(options, environment, Path(folder))
        for row in rows:
            print(f"{row.impl:12} {row.metric:32} {row.p50:10.4g} {row.unit}")
        if not options.dry_run:
            _log(f"rows appended to {environment.append(f'{BENCH}.csv', rows)}")
    except (FramertError, OSError, subprocess.CalledProcessError) as error:
        _log(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
