"""Memory and time of building the full-size denoiser's engine: published configuration, random weights.

    python benchmarks/bench_build_full.py [--depth 16] [--target sm_89] [--precision fp16] [--attention padded]
                                          [--work DIR] [--dry-run]

Exports the denoiser in fp32 (9.3 GiB on disk), casts it and builds it with TensorRT-RTX, each in a process of its own,
whose highest anonymous memory is the row: mapped pages of the weight files are given back under pressure. Needs 20 GB
of disk. Rows go to benchmarks/results/build.csv.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import framert
from framert.runtime import profiles
from framert.runtime.bench.rows import Environment, Row
from framert.runtime.bundle import Bundle
from framert.runtime.errors import FramertError
from framert.runtime.manifest import Graph, Manifest, ModelSpec, ScheduleSpec

ROOT = Path(__file__).resolve().parents[1]
BENCH = "build"
MIB = 1 << 20
WIDTHS: dict[str, Any] = {
    "hidden_size": 3840, "num_heads": 32, "num_kv_heads": 8, "caption_channels": 2048, "in_channels": 16, "patch": 2,
    "multiple_of": 256, "ffn_dim_multiplier": None, "norm_eps": 1e-5, "rotary_max_length": 128,
    "rotary_max_length_t": 128,
}  # fmt: skip
TEXT, VAE = {"d_model": 2048}, {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16, "in_channels": 3}


def export_denoiser(folder: Path, depth: int) -> Manifest:
    """Write denoiser.onnx with random weights, no two alike: a builder keeps equal ones once. Return its manifest."""
    from framert.export import frame_attention
    from framert.export.families.onediffusion_plan import plan_graphs
    from framert.export.models.nextdit import NextDiTConfig
    from framert.export.passes import clean, fold_weights
    from framert.export.trace import name_ends, parameters, trace
    from framert.export.weights import Weight, write_model

    config = NextDiTConfig(depth=depth, **WIDTHS)
    (plan,) = (one for one in plan_graphs(config, VAE, TEXT) if one.name == "denoiser")
    model = trace(plan)
    clean(model)
    name_ends(model.graph, plan)
    inputs = parameters(model.graph, plan)
    noise = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32) / 64

    def weight(index: int, shape: tuple[int, ...]) -> Weight:
        return Weight(shape, lambda: np.resize(np.roll(noise, 7919 * index), shape))

    weights = {
        str(value.name): weight(index, tuple(int(side) for side in value.shape))  # type: ignore[union-attr,call-overload]
        for index, value in enumerate(inputs)
    }
    functions = [frame_attention.function(config.softcap)]
    files = write_model(model, fold_weights(model.graph, inputs, weights), functions, folder, "denoiser")
    return Manifest(
        family="onediffusion",
        native_side=512,
        model=ModelSpec(
            hidden_size=config.hidden_size, depth=depth, heads=config.num_heads, kv_heads=config.num_kv_heads,
            head_dim=config.head_dim, softcap=config.softcap, patch=2, latent_channels=16, vae_factor=8,
            scaling_factor=1.5305, text_width=2048, max_positions=128, max_frames=128,
        ),
        schedule=ScheduleSpec(
            num_train_timesteps=1000, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
        ),
        prompt_tokens=300,
        guidance_branches=4,
        target={"kind": "onnx"},
        graphs={
            "denoiser": Graph(
                files=files, precision="float32", inputs=dict(plan.inputs), outputs=dict(plan.outputs)
            )
        },
        files={},
    )  # fmt: skip


def make_plugin(target: str, half: str | None) -> Any:
    from framert.export.tensorrt import plugin
    from framert.kernels.aot.ops import PUBLISHED

    return plugin.Plugin(form="plugin", launches=plugin.compile_kernels(PUBLISHED, half or "fp32", [target]))


def cast_denoiser(folder: Path, manifest: Manifest, half: str | None, plugin: Any, work: Path) -> Any:
    from framert.export.tensorrt.prepare import prepare

    return prepare(Bundle(folder, manifest), "denoiser", half, work, plugin=plugin)


def build_denoiser(prepared: Any, manifest: Manifest, target: str, plugin: Any, out: Path) -> Any:
    from framert.export.tensorrt import builder
    from framert.export.tensorrt.api import load

    api = load("tensorrt-rtx")
    capacity = profiles.Capacity(tokens=(4096,), sequences=3)  # two frames of 512 x 512 with guidance
    table = profiles.plan_profiles(manifest, capacity, plugin=plugin is not None)["denoiser"]
    options = builder.Options(attention="padded" if plugin is None else plugin.form)
    with nullcontext() if plugin is None else plugin.registered(api):
        return builder.build_engine(api, prepared, table, [target], options, plugin, out)


def alone(function: Callable[..., Any]) -> tuple[Any, float, float]:
    """Call a function in a process of its own; return its result, seconds and highest anonymous memory in bytes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_metered, (function,))


def _metered(function: Callable[..., Any]) -> tuple[Any, float, float]:
    peak = 0.0

    def watch() -> None:
        nonlocal peak
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            peak = max(peak, *(1024.0 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")))
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    begin = time.perf_counter()
    result = function()
    return result, time.perf_counter() - begin, peak


def measure(options: argparse.Namespace, work: Path, environment: Environment) -> list[Row]:
    """Return seconds and peak memory of every stage, and the sizes of weights and engine."""
    half = None if options.precision == "fp32" else options.precision
    case = f"published, {options.depth} layers, {options.precision} {options.target} {options.attention} denoiser"
    rows = []

    def row(stage: str, metric: str, unit: str, value: float) -> float:
        rows.append(
            environment.row(
                bench=BENCH, impl="tensorrt-rtx", case=f"{case} {stage}", metric=metric, unit=unit, samples=[value]
            )
        )
        print(f"{stage:10} {metric:12} {value:10.1f} {unit}", flush=True)
        return value

    def stage(name: str, function: Callable[..., Any]) -> tuple[Any, float]:
        result, seconds, peak = alone(function)
        row(name, "build", "s", seconds)
        return result, row(name, "peak_memory", "MiB", peak / MIB)

    for name in ("fp32", "cast", "engine"):
        (work / name).mkdir()
    manifest, _ = stage("export", partial(export_denoiser, work / "fp32", options.depth))
    plugin = None
    if options.attention == "plugin":
        plugin, _ = stage("kernels", partial(make_plugin, options.target, half))
    prepared, _ = stage("cast", partial(cast_denoiser, work / "fp32", manifest, half, plugin, work / "cast"))
    (_, built), _ = stage(
        "engine", partial(build_denoiser, prepared, manifest, options.target, plugin, work / "engine")
    )
    weights = sum(file.stat().st_size for file in prepared.file.parent.iterdir()) / MIB
    row("weights", "size", "MiB", weights)
    row("engine", "engine", "MiB", built.size / MIB)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=16, help="layers (default 16, as published)")
    parser.add_argument("--target", default="sm_89", help="compute capability (default sm_89)")
    parser.add_argument("--precision", default="fp16", help="fp32, fp16 (default) or bf16")
    parser.add_argument("--attention", default="padded", help="padded (default) or plugin")
    parser.add_argument("--work", type=Path, help="where the large files go (default: the temporary folder)")
    parser.add_argument("--dry-run", action="store_true", help="print the figures, write no rows")
    options = parser.parse_args()
    if not Path(framert.__file__).resolve().is_relative_to(ROOT):
        print(f"error: framert is imported from {framert.__file__}, not from this checkout", file=sys.stderr)
        return 2
    try:
        environment = Environment.capture(ROOT, threads=os.cpu_count() or 1, record=not options.dry_run)
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            rows = measure(options, Path(folder), environment)
        if not options.dry_run:
            print(f"rows appended to {environment.append(f'{BENCH}.csv', rows)}", file=sys.stderr)
    except FramertError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
