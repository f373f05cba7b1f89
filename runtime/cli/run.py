"""``framert run``: one task of one bundle, into files."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from framert.runtime import output
from framert.runtime.bundle import Bundle
from framert.runtime.cameras import DEFAULT_FOCAL, Cameras
from framert.runtime.cli import values
from framert.runtime.errors import ConfigError
from framert.runtime.job import prepare
from framert.runtime.pipeline import load
from framert.runtime.request import Request
from framert.runtime.result import Result
from framert.runtime.solvers import SOLVERS

NAME = "run"
SUMMARY = "run a task and write what it makes"
DESCRIPTION = """Run a task of a bundle. What is left out has the task's own value; framert tasks lists them.

Several pictures become out-0.png, out-1.png; depth is also written as out.npy, masks as out-NAME.png, boxes and
cameras as out.json. The names of the files are printed. Pictures hold the settings and the seed in their metadata
(the text "framert" of a PNG)."""
EPILOG = """examples:
  framert run blocks.bundle text_to_image --prompt "a red cube and a blue sphere" --seed 3 -o cube.png
  framert run blocks.bundle image_to_depth --image cube.png -o depth.png
  framert run blocks.bundle edit --image cube.png --prompt "make the red cube green" -o green.png
  framert run blocks.bundle image_to_semantic --image cube.png --color "red cube=cyan" -o masks.png
  framert run blocks.bundle inpaint --image cube.png --hole hole.png -o filled.png
  framert run blocks.bundle image_to_multiview --image cube.png \\
      --azimuth 0,20,40 --elevation 20 --distance 3 -o views.png
  framert run univg.bundle segment --image cube.png --prompt "the sphere left of the cube" -o mask.png
  framert run univg.bundle layout_to_image --box "red cube=8,24,40,56" --prompt "on grass" -o layout.png
  framert run blocks.bundle camera_pose --image views-0.png --image views-1.png -o cameras.json"""

MAX_COUNT = 1000  # results of one call, all of which are held until they are written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    how = add_request_arguments(parser, "where to write: .png, .jpg or .webp (.json for cameras)")
    how.add_argument(
        "--backend", metavar="NAME", help="what runs it, or auto (default: onnxruntime, or tensorrt for engines)"
    )
    how.add_argument(
        "--provider", metavar="NAME", help="what backend onnxruntime runs on: cpu (default), cuda or tensorrt"
    )
    how.add_argument("--precision", metavar="WORD", help="what the backend computes in, where it has a choice")
    how.add_argument("--low-memory", action="store_true", help="hold one graph in memory at a time; slower")
    how.add_argument("--threads", type=int, metavar="N", help="threads inside an operator (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print files, settings, timings and results as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no summary")


def add_request_arguments(parser: argparse.ArgumentParser, output: str) -> argparse._ArgumentGroup:
    """Add what says which task of which bundle to run, and return the group that says how.

    Args:
        output: help of -o.
    """
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder that framert export made")
    parser.add_argument("task", metavar="TASK", help="a name that framert tasks lists")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=output)
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", default="", metavar="TEXT", help="a caption or an instruction")
    what.add_argument("--negative-prompt", default="", metavar="TEXT", help="what guidance moves away from")
    what.add_argument("--image", action="append", default=[], metavar="FILE", help="a given picture (repeatable)")
    what.add_argument(
        "--color",
        action="append",
        type=values.color,
        metavar="NAME=COLOUR",
        help="colour of a thing in masks and boxes, such as 'red cube=cyan' (repeatable)",
    )
    what.add_argument("--caption", action="append", metavar="TEXT", help="of a given picture, in order (repeatable)")
    what.add_argument("--item", metavar="TEXT", help="what the given picture shows, such as 'red cube'")
    what.add_argument(
        "--box",
        action="append",
        type=values.box,
        metavar="NAME=L,T,R,B",
        help="where a thing is to be, in pixels of the result: left, top, right, bottom (repeatable)",
    )
    what.add_argument(
        "--extend", type=values.integers, metavar="L,T,R,B", help="pixels to add: left, top, right, bottom"
    )
    what.add_argument("--hole", metavar="FILE", help="a mask of the image's size, white where to fill")
    camera = parser.add_argument_group("cameras, one number per view or one for all; those of given pictures first")
    camera.add_argument("--azimuth", type=values.numbers, metavar="A,B,..", help="degrees around the vertical axis")
    camera.add_argument("--elevation", type=values.numbers, metavar="A,B,..", help="degrees above the ground")
    camera.add_argument("--distance", type=values.numbers, metavar="A,B,..", help="from the middle of the scene")
    camera.add_argument(
        "--focal", type=float, metavar="NUMBER", help=f"focal length in image sides (default {DEFAULT_FOCAL})"
    )
    how = parser.add_argument_group("how to make it")
    how.add_argument("--size", type=values.size, metavar="WIDTHxHEIGHT", help="of the pictures, in pixels")
    how.add_argument("--steps", type=int, metavar="N", help="intervals of the schedule")
    how.add_argument("--guidance", type=float, metavar="NUMBER", help="strength of the prompt; 1 or less is none")
    how.add_argument(
        "--image-guidance", type=float, metavar="NUMBER", help="strength of the given picture, where the bundle has it"
    )
    how.add_argument("--solver", default="euler", metavar="NAME", help=f"{', '.join(SOLVERS)} (default euler)")
    how.add_argument(
        "--reuse",
        type=int,
        default=1,
        metavar="K",
        help="run the frames of given pictures only in every K-th call: faster, a little off; backend triton alone "
        "(default 1, exact)",
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default 0)")
    how.add_argument(
        "--count",
        type=int,
        default=1,
        metavar="N",
        help=f"results to make (up to {MAX_COUNT}), with seeds SEED, SEED + 1, ..",
    )
    return how


def run(arguments: argparse.Namespace) -> int:
    keywords = request_keywords(arguments)
    _check(arguments, keywords)
    pipe = load(
        arguments.bundle,
        backend=arguments.backend,
        threads=arguments.threads,
        precision=arguments.precision,
        low_memory=arguments.low_memory,
        provider=arguments.provider,
    )
    made = pipe.run(
        arguments.task,
        prompt=arguments.prompt,
        count=arguments.count,
        progress=not arguments.quiet,
        **keywords,
    )
    results = made if isinstance(made, list) else [made]
    files = output.write(results, arguments.output, force=arguments.force, extra=_origin(arguments))
    if not arguments.quiet:
        _summarize(results)
    if arguments.json:
        print(json.dumps(_report(results, files), indent=1))
    else:
        for item in files:
            for file in item.all:
                print(file)
    return 0


def request_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``Pipeline.run`` but the prompt and the count. Raises: TaskError for an unknown task."""
    return {
        "images": arguments.image,
        "colors": _by_name("--color", arguments.color, "colour"),
        "hole": arguments.hole,
        "captions": arguments.caption,
        "item": arguments.item,
        "cameras": _cameras(arguments),
        "boxes": _by_name("--box", arguments.box, "box"),
        "extend": arguments.extend,
        "negative_prompt": arguments.negative_prompt,
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "image_guidance": arguments.image_guidance,
        "size": arguments.size,
        "seed": arguments.seed,
        "solver": arguments.solver,
        "reuse": arguments.reuse,
    }


def _check(arguments: argparse.Namespace, keywords: dict[str, Any]) -> None:
    """Refuse a bad call before anything is loaded or computed."""
    if not 1 <= arguments.count <= MAX_COUNT:
        raise ConfigError(f"count is {arguments.count}; give a whole number of at least 1 and at most {MAX_COUNT}")
    manifest = Bundle.open(arguments.bundle, check_files=False).manifest
    job = prepare(Request(task=arguments.task, prompt=arguments.prompt, **keywords), manifest)
    if arguments.seed + arguments.count > 2**63:
        raise ConfigError(
            f"seed {arguments.seed} and count {arguments.count} go beyond the largest seed, 2^63 - 1; "
            "give a smaller --seed or --count"
        )
    contents = output.Contents.of_composition(job.composition)
    output.check(output.plan(arguments.output, [contents] * arguments.count), force=arguments.force)


def _by_name(option: str, pairs: list[tuple[str, Any]] | None, one: str) -> dict[str, Any] | None:
    """Return {thing: value}. Raises: ConfigError if a thing is named twice."""
    found = dict(pairs or ())
    if len(found) < len(pairs or ()):
        names = [thing for thing, _ in pairs or ()]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{option} names {twice!r} twice; give each thing one {one}")
    return found or None


def _cameras(arguments: argparse.Namespace) -> Cameras | None:
    given = {name: getattr(arguments, name) for name in ("azimuth", "elevation", "distance")}
    missing = [f"--{name}" for name, numbers in given.items() if numbers is None]
    if len(missing) == len(given) and arguments.focal is None:
        return None
    if missing:
        raise ConfigError(f"cameras lack {' and '.join(missing)}; give --azimuth, --elevation and --distance")
    views = max(len(numbers) for numbers in given.values())
    azimuths, elevations, distances = (numbers * views if len(numbers) == 1 else numbers for numbers in given.values())
    focal = DEFAULT_FOCAL if arguments.focal is None else arguments.focal
    return Cameras.orbit(azimuths, elevations, distances, focal)


def _origin(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the runtime's own settings do not know: where pictures and weights came from."""
    origin: dict[str, Any] = {"bundle": Path(arguments.bundle).resolve().name}
    if arguments.image:
        origin["images"] = [Path(image).name for image in arguments.image]
    if arguments.hole:
        origin["hole"] = Path(arguments.hole).name
    return origin


def _summarize(results: list[Result]) -> None:
    settings = results[0].settings
    width, height = settings["size"]
    spent = {name: sum(result.timings.get(name, 0.0) for result in results) for name in results[0].timings}
    total = max(result.timings["total"] for result in results)
    slowest = sorted((name for name in spent if name != "total"), key=lambda name: -spent[name])[:3]
    parts = ", ".join(f"{name} {spent[name]:.1f}" for name in slowest)
    last = settings["seed"] + len(results) - 1
    seeds = f"seed {settings['seed']}" if len(results) == 1 else f"seeds {settings['seed']} to {last}"
    scales = [f"guidance {settings['guidance']:g}"]
    if "image_guidance" in settings:
        scales.append(f"image guidance {settings['image_guidance']:g}")
    print(
        f"{settings['task']} {width}x{height}, {settings['steps']} steps of {settings['solver']}, "
        f"{', '.join(scales)}, {seeds}: {total:.1f} s ({parts})",
        file=sys.stderr,
    )


def _report(results: list[Result], files: list[output.Targets]) -> dict[str, Any]:
    return {
        "results": [
            {
                "files": [str(file) for file in item.all],
                **output.describe(result),
                "settings": dict(result.settings),
                "timings": {name: round(seconds, 4) for name, seconds in result.timings.items()},
            }
            for result, item in zip(results, files, strict=True)
        ]
    }
