"""``framert build``: a bundle of ONNX graphs to a bundle of TensorRT engines."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from framert.runtime.checkpoints import cache_folder
from framert.runtime.cli.lazy import export_module
from framert.runtime.errors import ConfigError
from framert.runtime.profiles import Capacity

NAME = "build"
SUMMARY = "build TensorRT engines of a bundle"
DESCRIPTION = """Build a TensorRT engine of every graph of a bundle, and write them as a bundle of their own, which
appears whole or not at all. TensorRT builds for the GPU of the machine; TensorRT-RTX needs none and builds for several
at once. For ONNX Runtime's TensorRT provider, which builds engines when they first run, --backend onnxruntime writes
the graphs in a form that TensorRT takes whole. Needs the extras framert[export] and framert[tensorrt] or
framert[tensorrt-rtx]."""
EPILOG = """examples:
  framert build blocks.bundle --target sm_89 -o blocks.sm_89
  framert build blocks.bundle --target sm_86 --target sm_89 --backend tensorrt-rtx -o blocks.rtx
  framert build blocks.bundle --target sm_87 --precision fp16 --tokens 128,512 --sequences 4 -o blocks.orin
  framert build blocks.bundle --backend onnxruntime --precision fp16 -o blocks.padded"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder that framert export made")
    parser.add_argument("-o", "--output", required=True, metavar="BUNDLE", help="the folder to make")
    parser.add_argument(
        "--target",
        action="append",
        metavar="sm_NN",
        help="compute capability, such as sm_89; repeatable",
    )
    parser.add_argument("--backend", default="tensorrt", help="tensorrt (default), tensorrt-rtx or onnxruntime")
    parser.add_argument("--precision", metavar="P", help="cast fp32 graphs to fp16 or bf16 (default: leave them)")
    sizes = parser.add_argument_group("sizes the engines are made for")
    sizes.add_argument(
        "--tokens",
        type=buckets,
        metavar="N,N,..",
        help="buckets of model tokens per call, guidance branches counted (default: 1, 2 and 8 guided native pictures)",
    )
    for name, text in (
        ("sequences", "sequences per call: each guidance branch of each request is one (default: 8)"),
        ("frames", "frames per call (default: 64)"),
        ("rows", "modulation rows kept (default: 4096)"),
        ("text", "text tokens kept (default: 8192)"),
        ("side", "largest side in pixels of a picture in one piece (default: 1024)"),
    ):
        sizes.add_argument(f"--{name}", type=int, metavar="N", help=text)
    sizes.add_argument(
        "--attention-gib", type=float, metavar="GIB", help="memory that logits of one attention may take (default: 4)"
    )
    engine = parser.add_argument_group("engines")
    engine.add_argument(
        "--attention",
        default="padded",
        metavar="WAY",
        help="padded (default): TensorRT's own operators. The others run framert's kernel and need framert[triton] to "
        "build: plugin needs Python at run time; aot puts PTX into the engine (TensorRT 10.9 and later); library "
        "needs the C++ launcher of kernels/plugin/cpp, here and at run time",
    )
    engine.add_argument("--plugin-library", type=Path, metavar="FILE", help="the launcher, for --attention library")
    engine.add_argument("--weight-streaming", action="store_true", help="weights may stay in host memory")
    engine.add_argument("--compatible", default="none", metavar="WITH", help="none (default), version or ampere+")
    engine.add_argument("--timing-cache", type=Path, metavar="DIR", help="where to keep what TensorRT measured")
    engine.add_argument("--no-timing-cache", action="store_true", help="measure anew and keep nothing")
    parser.add_argument("--force", action="store_true", help="replace a bundle that exists")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="TensorRT's messages; -vv: all of them")


def buckets(text: str) -> tuple[int, ...]:
    """``256,1024`` -> (256, 1024)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        message = f"{text!r} is not a list of whole numbers; give such as 256,1024"
        raise argparse.ArgumentTypeError(message) from error


def run(arguments: argparse.Namespace) -> int:
    if arguments.backend == "onnxruntime":
        return _write_padded(arguments)
    if not arguments.target:
        raise ConfigError("--target is missing; give a compute capability such as --target sm_89")
    builder = export_module("tensorrt.builder", NAME)
    cache = None if arguments.no_timing_cache else arguments.timing_cache or cache_folder() / "timing"
    built = builder.build(
        arguments.bundle,
        arguments.output,
        targets=arguments.target,
        backend=arguments.backend,
        precision=arguments.precision,
        capacity=_capacity(arguments),
        options=builder.Options(
            attention=arguments.attention,
            plugin_library=arguments.plugin_library,
            weight_streaming=arguments.weight_streaming,
            compatible=arguments.compatible,
            timing_cache=cache,
            verbosity=arguments.verbose,
        ),
        force=arguments.force,
        progress=not arguments.quiet,
        say=lambda line: tqdm.write(line, file=sys.stderr),
    )
    print(json.dumps([asdict(one) for one in built], indent=1) if arguments.json else _table(built))
    return 0


def _capacity(arguments: argparse.Namespace) -> Capacity:
    given = ("tokens", "sequences", "frames", "rows", "text", "side", "attention_gib")
    return Capacity(**{name: value for name in given if (value := getattr(arguments, name)) is not None})


def _write_padded(arguments: argparse.Namespace) -> int:
    own = ("target", "attention", "plugin_library", "weight_streaming", "compatible", "timing_cache", "no_timing_cache")
    given = [name for name in own if getattr(arguments, name) != arguments.parser.get_default(name)]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} is for engines, which ONNX Runtime builds when they first run; omit it"
        )
    written = export_module("tensorrt.padded", NAME).write_padded(
        arguments.bundle,
        arguments.output,
        precision=arguments.precision,
        capacity=_capacity(arguments),
        force=arguments.force,
        progress=not arguments.quiet,
    )
    print(json.dumps({"bundle": str(written)}) if arguments.json else written)
    return 0


def _table(built: list[Any]) -> str:
    return "\n".join(
        f"{one.graph:13} {one.seconds:7.1f} s {one.size / 2**20:9.1f} MiB"
        + (f"  {one.plugins} plugins" if one.plugins else "")
        for one in built
    )
