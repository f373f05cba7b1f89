"""``framert kernels``: the denoiser's GPU kernels, compiled for GPUs that need not be here."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from framert.runtime.bundle import MANIFEST, Bundle, new_bundle
from framert.runtime.cli.lazy import export_module
from framert.runtime.errors import BundleError, OutputError
from framert.runtime.sizes import carries_text

NAME = "kernels"
SUMMARY = "compile the GPU kernels ahead of time"
DESCRIPTION = """Compile every kernel that a bundle's denoiser needs to PTX and cubin, and show registers, spills and
shared memory. Needs no GPU, but the extra framert[triton] (and framert[export] to read a bundle). Without BUNDLE the
kernels are those of the published configuration and of models/blocks. Exit code 1 if a kernel spills registers or
does not fit its target."""
EPILOG = """examples:
  framert kernels --target sm_87
  framert kernels blocks.bundle --target sm_87 --target sm_110 -o blocks.kernels
  framert kernels --target sm_90 --quantized fp8 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a folder that framert export made")
    parser.add_argument(
        "--target",
        action="append",
        required=True,
        metavar="SM",
        help="compute capability, such as sm_87 (Orin) or sm_110 (Thor); may be repeated",
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="write .ptx, .cubin and manifest.json there")
    parser.add_argument("--dtype", choices=("bf16", "fp16"), default="bf16", help="of activations (default: bf16)")
    parser.add_argument(
        "--quantized",
        action="append",
        metavar="KIND",
        help="int8, int4 or fp8; may be repeated (default: all that each target has)",
    )
    parser.add_argument("--force", action="store_true", help="replace a folder of kernels that exists")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    from framert.kernels.aot import build, ops, report
    from framert.kernels.aot.targets import parse_targets

    targets = parse_targets(arguments.target)
    if arguments.output:
        _check_free(Path(arguments.output), arguments.force)
    shapes = [_shape(arguments.bundle)] if arguments.bundle else [ops.PUBLISHED, ops.BLOCKS]
    jobs = build.plan(shapes, targets, arguments.dtype, arguments.quantized)
    with tqdm(total=len(jobs), unit="kernel", desc="compile", disable=arguments.quiet) as bar:
        compiled = build.compile_all(jobs, done=lambda _: bar.update())
    if arguments.output:
        with new_bundle(arguments.output, force=arguments.force) as folder:
            report.write_folder(folder, compiled)
            (folder / MANIFEST).write_text(_json(report.manifest(compiled, arguments.dtype)) + "\n", encoding="utf-8")
    if arguments.json:
        found = report.by_target(compiled)
        print(_json(found[0] if len(found) == 1 else found))
    else:
        print(report.render(compiled))
        if arguments.output:
            print(arguments.output)
    problems = report.problems(compiled)
    for problem in problems:
        print(f"framert: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _shape(path: str) -> Any:
    """Return the sizes of a bundle's denoiser. Raises: BundleError where its step is not the one that is compiled."""
    opened = Bundle.open(path)
    if carries_text(opened.manifest):
        raise BundleError(
            f"{path} has its text inside the sequences, and kernels are compiled ahead of time for text beside them; "
            "backend 'triton' compiles this bundle's when it first runs"
        )
    return export_module("model_shape", NAME).model_shape(opened)


def _json(content: Any) -> str:
    return json.dumps(content, indent=1)


def _check_free(folder: Path, force: bool) -> None:
    """Raises: OutputError if something stands there that is not to be replaced; before anything is compiled."""
    if not folder.exists():
        return
    if not force:
        raise OutputError(f"{folder} exists; give another -o, or --force to replace it")
    file = folder / MANIFEST
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("kind") if file.is_file() else None
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != "kernels":
        raise OutputError(f"{folder} exists and is not a folder of kernels, so it is not replaced; give another -o")
