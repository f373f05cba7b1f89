"""``framert compile-request``: a task of a bundle as one file, for programs without Python."""

import argparse
import sys
from dataclasses import replace

from framert.runtime.bundle import Bundle
from framert.runtime.cli.run import MAX_COUNT, add_request_arguments, request_keywords
from framert.runtime.compiled.compiler import compile_requests
from framert.runtime.errors import ConfigError
from framert.runtime.job import check_seed
from framert.runtime.request import Request

NAME = "compile-request"
SUMMARY = "write every step's tables of a task, to run without Python"
DESCRIPTION = """Write all that the graphs of a bundle are given for one call of a task: token ids, pixels, noise, and
the tables of every step. A program then needs only the graphs, or engines built from them, and this file; examples/cpp
is one. Nothing is computed here and no backend is needed. The noise of the seed is in the file."""
EPILOG = """examples:
  framert compile-request blocks.bundle text_to_image --prompt "a red cube" --seed 3 -o request.safetensors
  framert compile-request blocks.sm_87 image_to_depth --image cube.png --steps 20 -o depth.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser, "the file to write, such as request.safetensors")
    parser.add_argument("--quiet", action="store_true", help="no summary")


def run(arguments: argparse.Namespace) -> int:
    keywords = request_keywords(arguments)
    count = arguments.count
    if not 1 <= count <= MAX_COUNT:
        raise ConfigError(f"count is {count}; give a whole number of at least 1 and at most {MAX_COUNT}")
    check_seed(arguments.seed + count - 1)
    request = Request(task=arguments.task, prompt=arguments.prompt, **keywords)
    bundle = Bundle.open(arguments.bundle, check_files=False)
    compiled = compile_requests(bundle, [replace(request, seed=arguments.seed + number) for number in range(count)])
    file = compiled.save(arguments.output, force=arguments.force)
    if not arguments.quiet:
        calls = sum(phase.calls for phase in compiled.phases)
        tokens = max(len(phase.tables["source"]) for phase in compiled.phases)
        print(
            f"{arguments.task}: {calls} denoiser calls of {tokens} tokens, {file.stat().st_size / 2**20:.1f} MiB",
            file=sys.stderr,
        )
    print(file)
    return 0
