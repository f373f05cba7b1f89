"""``framert estimate``: least time and memory of tasks on a board, computed from the model's shape."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from framert.runtime.bundle import Bundle
from framert.runtime.cli import values
from framert.runtime.devices import DEVICES, Device, find_device
from framert.runtime.errors import ConfigError
from framert.runtime.estimate import (
    GIB,
    PRECISIONS,
    PUBLISHED,
    TEXT,
    VIEWS,
    Shape,
    Work,
    memory,
    roofline,
    shape_of,
    work_of,
)

NAME = "estimate"
SUMMARY = "compute least time and memory of tasks on a board"
DESCRIPTION = """Compute the roofline of tasks on a device: the operations of the denoiser's calls over the device's
peak rate, and over half of it, which is what well-made kernels reach. With --memory the memory instead: of all parts
together, and of one part at a time. Nothing is run or measured."""
EPILOG = """examples:
  framert estimate --published --device orin-agx
  framert estimate --published --device thor --task edit --size 1024x1024 --precision fp8
  framert estimate --published --device orin-nano --memory
  framert estimate blocks.bundle --device orin-nano --json"""
DEFAULT_TASKS = ("text_to_image", "image_to_depth", "image_to_multiview")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a folder that framert export made")
    parser.add_argument("--published", action="store_true", help="the published OneDiffusion, instead of a bundle")
    parser.add_argument(
        "--device", action="append", metavar="NAME", help=f"repeatable: {', '.join(DEVICES)} (default orin-agx)"
    )
    parser.add_argument(
        "--task", action="append", metavar="TASK", help=f"repeatable (default {' '.join(DEFAULT_TASKS)})"
    )
    parser.add_argument(
        "--size", action="append", type=values.size, metavar="WIDTHxHEIGHT", help="repeatable (default: native)"
    )
    parser.add_argument(
        "--precision", action="append", metavar="WORD", help=f"repeatable: {', '.join(PRECISIONS)} (default: all)"
    )
    parser.add_argument(
        "--steps", action="append", type=int, metavar="N", help="denoiser calls; repeatable (default: the task's own)"
    )
    parser.add_argument(
        "--guidance",
        action="append",
        type=float,
        metavar="NUMBER",
        help="1 or less is none; repeatable (default: the task's own)",
    )
    parser.add_argument("--views", type=int, default=VIEWS, metavar="N", help=f"of multiview tasks (default {VIEWS})")
    parser.add_argument("--text", type=int, default=TEXT, metavar="N", help=f"tokens of a prompt (default {TEXT})")
    parser.add_argument("--memory", action="store_true", help="memory instead of time")
    parser.add_argument("--padded", action="store_true", help="attention without a plugin, which holds its logits")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    if (arguments.bundle is None) != arguments.published:
        raise ConfigError("give a BUNDLE or --published, one of the two")
    shape = PUBLISHED if arguments.published else shape_of(Bundle.open(arguments.bundle, check_files=False))
    devices = [find_device(name) for name in arguments.device or ["orin-agx"]]
    works = [
        work_of(task, shape, side=size, steps=steps, guidance=scale, views=arguments.views, text=arguments.text)
        for task in arguments.task or DEFAULT_TASKS
        for size in arguments.size or [None]
        for steps in arguments.steps or [None]
        for scale in arguments.guidance or [None]
    ]
    rows = [
        row
        for work in works
        for row in (
            _memory(shape, work, devices, arguments.precision, padded=arguments.padded)
            if arguments.memory
            else _times(shape, work, devices, arguments.precision)
        )
    ]
    if arguments.json:
        content = {"model": asdict(shape), "devices": [asdict(device) for device in devices], "rows": rows}
        print(json.dumps(content, indent=1))
    else:
        print(_table(rows))
    return 0


def _precisions(device: Device, given: list[str] | None) -> list[str]:
    return given or [word for word in PRECISIONS if word != "fp8" or device.fp8]


def _task(work: Work) -> str:
    guided = "guidance" if work.branches > 1 else "no guidance"
    plural = "frame" if work.frames == 1 else "frames"
    return f"{work.task} {work.side[0]}x{work.side[1]}, {work.frames} {plural}, {work.calls} calls, {guided}"


def _times(shape: Shape, work: Work, devices: list[Device], precisions: list[str] | None) -> list[dict[str, Any]]:
    rows = []
    for device in devices:
        for precision in _precisions(device, precisions):
            made = roofline(shape, work, device, precision)
            rows.append(
                {
                    "task": _task(work),
                    "device": device.name,
                    "precision": precision,
                    "TFLOP": _rounded(made.products + made.attention),
                    "s at peak": _rounded(made.seconds),
                    "s at half of peak": _rounded(2 * made.seconds),
                    "bound by": made.bound,
                }
            )
    return rows


def _memory(
    shape: Shape, work: Work, devices: list[Device], precisions: list[str] | None, *, padded: bool
) -> list[dict[str, Any]]:
    rows = []
    words = precisions or [word for word in PRECISIONS if word != "fp8" or any(device.fp8 for device in devices)]
    for precision in words:
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
        made = memory(shape, work, precision, padded=padded)
        weights = {part: _rounded(size / GIB) for part, size in made.weights.items()}
        rows.append(
            {
                "task": _task(work),
                "precision": precision,
                **weights,
                "step": _rounded((made.step + made.logits + made.arenas) / GIB),
                "decoding": _rounded(made.decoder / GIB),
                "all at once, GiB": _rounded(made.together / GIB),
                "one at a time, GiB": _rounded(made.in_turn / GIB),
            }
        )
    return rows


def _rounded(value: float) -> float:
    """Three digits."""
    return float(f"{value:.3g}")


def _table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a table that Markdown takes too."""
    cells = [[f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
