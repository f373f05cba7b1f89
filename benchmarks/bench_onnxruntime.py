"""What ONNX Runtime's settings are worth: session options, a saved optimized model, and attention beside torch's.

    python benchmarks/bench_onnxruntime.py [--rounds 9] [--threads 2] [--dry-run]

The model of bench_step.py in fp32. Sides run in turn; a ratio above one says that the side is faster than the default,
or for attention that ours with softcap is faster than torch's without. Rows: benchmarks/results/onnxruntime_cpu.csv.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_scaling
import bench_step
import numpy as np
import torch
from torch.nn import functional

import framert
from framert.export import frame_attention
from framert.export.pipeline import export
from framert.runtime import backends
from framert.runtime.bench.alternate import alternate, rate_ratios
from framert.runtime.bench.rows import Environment, Row
from framert.runtime.bundle import Bundle
from framert.runtime.errors import FramertError

ROOT = Path(__file__).resolve().parents[1]
BENCH = "onnxruntime_cpu"
SHAPE = (1, 4, 16)  # requests, frames, tokens along a side: 1024 tokens, as the step of bench_step.py
LOADS = 5


def settings(threads: int) -> dict[str, Callable[[Any], None]]:
    """Return what each side changes of the default session options."""

    def entry(key: str, value: str) -> Callable[[Any], None]:
        return lambda options: options.add_session_config_entry(key, value)

    def attribute(name: str, value: Any) -> Callable[[Any], None]:
        return lambda options: setattr(options, name, value)

    # each thread of the pool on a processor of its own, numbered from 1; the first is the calling thread's
    places = ";".join(map(str, range(2, threads + 1)))
    pinned = {"pinned": entry("session.intra_op_thread_affinities", places)} if places else {}
    return {
        "default": lambda options: None,
        "one_thread": attribute("intra_op_num_threads", 1),
        "no_spinning": entry("session.intra_op.allow_spinning", "0"),
        "no_arena": attribute("enable_cpu_mem_arena", False),
        "no_memory_pattern": attribute("enable_mem_pattern", False),
        "no_prepacking": entry("session.disable_prepacking", "1"),
        "denormals_are_zero": entry("session.set_denormal_as_zero", "1"),
        **pinned,
    }


def options_of(change: Callable[[Any], None], threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    change(options)
    return options


def step_sides(bundle: Bundle, case: bench_step.Case, threads: int) -> dict[str, Callable[[], None]]:
    """Return one step under each setting."""
    sides: dict[str, Callable[[], None]] = {}
    for name, change in settings(threads).items():
        backend: Any = backends.create("onnxruntime", bundle, threads=threads)
        backend.options = lambda _, change=change: options_of(change, threads)
        sides[name] = bench_scaling.Step(bundle, backend, case, SHAPE)
    return sides


def load_sides(bundle: Bundle, threads: int, folder: Path) -> dict[str, Callable[[], None]]:
    """Return loading the denoiser as it is, and after ONNX Runtime saved it at two levels of optimization.

    What is saved at "all" holds only for the kind of CPU it was saved on.
    """
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    path = bundle.graph_path("denoiser")
    files = {"load_as_exported": (path, levels.ORT_ENABLE_ALL)}
    for name, level in (("basic", levels.ORT_ENABLE_BASIC), ("all", levels.ORT_ENABLE_ALL)):
        options = options_of(lambda _: None, threads)
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(folder / f"{name}.onnx")
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        files[f"load_saved_{name}"] = (folder / f"{name}.onnx", levels.ORT_DISABLE_ALL)

    def loader(file: Path, level: Any) -> Callable[[], None]:
        def load() -> None:
            options = options_of(lambda _: None, threads)
            options.graph_optimization_level = level
            onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

        return load

    return {name: loader(*arguments) for name, arguments in files.items()}


def attention_sides(case: bench_step.Case, threads: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the attention of one layer: ours with softcap, torch's SDPA without, and torch's formula with it."""
    import onnx
    import onnxruntime
    from onnx import helper

    sequences, length, text = 2, case.frames * case.side**2, case.text
    heads, kv_heads, width = case.heads, case.kv_heads, case.width // case.heads
    generator = np.random.default_rng(0)
    draw = lambda *shape: generator.standard_normal(shape, dtype=np.float32)  # noqa: E731
    ranges = np.array([(length * index, length) for index in range(sequences)], np.int32)
    texts = np.array([(text * index, text) for index in range(sequences)], np.int32)
    feeds = {
        "query": draw(sequences * length, heads, width), "key": draw(sequences * length, kv_heads, width),
        "value": draw(sequences * length, kv_heads, width), "q_range": ranges, "kv_range": ranges,
        "text_k": draw(sequences * text, kv_heads, width), "text_v": draw(sequences * text, kv_heads, width),
        "text_range": texts, "gate": draw(heads),
    }  # fmt: skip
    kinds = {"float32": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32}
    inputs = [
        helper.make_tensor_value_info(name, kinds[str(array.dtype)], array.shape) for name, array in feeds.items()
    ]
    output = helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, feeds["query"].shape)
    attributes = {"softcap": 30.0, "scale": width**-0.5, "plugin_namespace": "framert"}
    node = helper.make_node("FrameAttention", list(feeds), ["output"], domain="framert", **attributes)
    model = helper.make_model(
        helper.make_graph([node], "attention", inputs, [output]),
        functions=[frame_attention.function(30.0)],
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid("framert", 1)],
        ir_version=11,
    )
    onnx.save(model, folder / "attention.onnx")
    options = options_of(lambda _: None, threads)
    session = onnxruntime.InferenceSession(folder / "attention.onnx", options, providers=["CPUExecutionProvider"])

    def by_sequence(name: str, size: int) -> torch.Tensor:
        return torch.from_numpy(feeds[name]).unflatten(0, (sequences, size)).transpose(1, 2)

    query = by_sequence("query", length)
    group = heads // kv_heads
    key, value = (by_sequence(name, length).repeat_interleave(group, 1) for name in ("key", "value"))
    text_k, text_v = (by_sequence(name, text).repeat(1, group, 1, 1) for name in ("text_k", "text_v"))
    gate = torch.from_numpy(feeds["gate"])[:, None, None]

    def sdpa() -> torch.Tensor:
        with torch.no_grad():
            own = functional.scaled_dot_product_attention(query, key, value)
            return own + gate * functional.scaled_dot_product_attention(query, text_k, text_v)

    def formula() -> torch.Tensor:
        with torch.no_grad():
            logits = 30 * torch.tanh(query @ key.transpose(2, 3) * (width**-0.5 / 30))
            own = torch.softmax(logits, -1) @ value
            return own + gate * functional.scaled_dot_product_attention(query, text_k, text_v)

    ours = session.run(None, feeds)[0]
    theirs = formula().transpose(1, 2).reshape(ours.shape).numpy()
    if not np.allclose(ours, theirs, atol=1e-4):
        raise bench_step.CheckFailedError("the attention of ONNX Runtime is not torch's")
    return {
        "attention": lambda: session.run(None, feeds),
        "attention-torch-sdpa-without-softcap": sdpa,
        "attention-torch-softcap": formula,
    }


def measure(case: bench_step.Case, environment: Environment, rounds: int, log: Callable[[str], None]) -> list[Row]:
    """Export a random model, run all sides and return the rows."""
    rows: list[Row] = []

    def add(sides: dict[str, Callable[[], object]], first: str, turns: int, name: str) -> None:
        log(f"{name}: {', '.join(sides)}")
        seconds = alternate(sides, rounds=turns, warmup=1)

        def row(impl: str, metric: str, unit: str, samples: list[float]) -> Row:
            return environment.row(
                bench=BENCH, impl=impl, case=f"{name}; {case}", metric=metric, unit=unit, samples=samples
            )

        rows.extend(row(side, "time", "s", samples) for side, samples in seconds.items())
        for side in seconds:
            if side != first:
                pair = (first, side) if name == "attention" else (side, first)
                rows.append(row("/".join(pair), "rate_ratio", "x", rate_ratios(seconds, *pair)))

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bench_step.write_checkpoint(case, bench_step.random_weights(case), folder / "checkpoint")
        export(folder / "checkpoint", folder / "fp32.bundle", progress=False)
        bundle = Bundle.open(folder / "fp32.bundle", check_files=False)
        add(step_sides(bundle, case, environment.threads), "default", rounds, "step")
        add(load_sides(bundle, environment.threads, folder), "load_as_exported", LOADS, "load")
        add(attention_sides(case, environment.threads, folder), "attention", 4 * rounds, "attention")
        begin = time.perf_counter()
        bench_scaling.Step(bundle, backends.create("onnxruntime", bundle, threads=environment.threads), case, SHAPE)()
        cold = time.perf_counter() - begin
    rows.append(
        environment.row(
            bench=BENCH,
            impl="default",
            case=f"cold start; {case}",
            metric="load_to_first_step",
            unit="s",
            samples=[cold],
        )
    )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each side (default 9)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every side (default 2)")
    parser.add_argument("--dry-run", action="store_true", help="print the figures, write no rows")
    options = parser.parse_args()
    if not Path(framert.__file__).resolve().is_relative_to(ROOT):
        print(f"error: framert is imported from {framert.__file__}, not from this checkout", file=sys.stderr)
        return 2
    try:
        environment = Environment.capture(ROOT, threads=options.threads, record=not options.dry_run)
        torch.set_num_threads(options.threads)
        rows = measure(
            bench_step.Case(), environment, options.rounds, lambda line: print(line, file=sys.stderr, flush=True)
        )
        for row in rows:
            print(f"{row.impl:56} {row.metric:20} {row.p50:10.4g} {row.unit:4} ({row.p20:.4g} to {row.p80:.4g})")
        if not options.dry_run:
            print(f"rows appended to {environment.append(f'{BENCH}.csv', rows)}", file=sys.stderr)
    except bench_step.CheckFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except FramertError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
