"""``framert tasks``: what can be run, and what each task takes."""

import argparse
import json
from typing import Any

from framert.runtime.bundle import Bundle
from framert.runtime.families import DEFAULT, find_family
from framert.runtime.manifest import Manifest
from framert.runtime.task import EXTRAS, Task

NAME = "tasks"
SUMMARY = "list the tasks and what they take"
DESCRIPTION = """List the tasks: how many images each takes, what else it takes (in brackets: may be left out), and its
defaults. With a bundle also the sizes that the bundle allows."""
EPILOG = """examples:
  framert tasks
  framert tasks blocks.bundle
  framert tasks blocks.bundle --json"""
SIZES = {
    "native": "the bundle's native square",
    "aspect": "the shape of the first image, with about the native square's area",
    "square": "the bundle's native square; others must be square",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a folder that framert export made")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    manifest = None
    if arguments.bundle is not None:
        manifest = Bundle.open(arguments.bundle, check_files=False).manifest
    if arguments.json:
        content: dict[str, Any] = {"tasks": [_row(task) for task in _tasks(manifest)]}
        if manifest is not None:
            content["bundle"] = _limits(manifest)
        print(json.dumps(content, indent=1))
    else:
        print(_table(manifest))
    return 0


def _tasks(manifest: Manifest | None) -> list[Task]:
    family = find_family(DEFAULT if manifest is None else manifest.family)
    return list(family.tasks(manifest).values())


def _extras(tasks: list[Task]) -> list[str]:
    """Return what the tasks take besides pictures and a prompt."""
    return [name for name in EXTRAS if any(name in task.extras for task in tasks)]


def _row(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "summary": task.summary,
        "images": {"least": task.images[0], "most": task.images[1]},
        "prompt": "required" if task.prompt_required else "optional",
        "needs": list(task.needs),
        "takes": list(task.takes),
        "returns": task.output,
        "size": SIZES[task.size_rule],
        "steps": task.steps,
        "guidance": task.guidance,
        **({} if task.image_guidance is None else {"image_guidance": task.image_guidance}),
    }


def _limits(manifest: Manifest) -> dict[str, Any]:
    model = manifest.model
    return {
        "family": manifest.family,
        "native_size": [manifest.native_side, manifest.native_side],
        "size_multiple": model.multiple,
        "largest_side": model.max_side,
        "most_frames": model.max_frames,
        "prompt_tokens": manifest.prompt_tokens,
    }


def _table(manifest: Manifest | None) -> str:
    tasks = _tasks(manifest)
    two = any(task.image_guidance is not None for task in tasks)
    rows = [("task", "images", "takes", "steps", "text, image guidance" if two else "guidance", "makes")]
    for task in tasks:
        takes = ["prompt" if task.prompt_required else "[prompt]", *task.needs, *(f"[{name}]" for name in task.takes)]
        images = _range(*task.images)
        guidance = f"{task.guidance:g}" + ("" if task.image_guidance is None else f", {task.image_guidance:g}")
        rows.append((task.name, images, " ".join(takes), str(task.steps), guidance, task.summary))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", "how to give them, in Python and on the command line:"]
    lines += ["  prompt    prompt='a red cube' (--prompt)", *(f"  {name:<9} {EXTRAS[name]}" for name in _extras(tasks))]
    if manifest is not None:
        limits = _limits(manifest)
        frames = limits["most_frames"]
        lines += [
            "",
            f"this bundle: {manifest.family}, native size {manifest.native_side}x{manifest.native_side}, "
            f"sides in multiples of {limits['size_multiple']} up to {limits['largest_side']} pixels,",
            f"at most {frames} frame{'s' * (frames > 1)} and {limits['prompt_tokens']} tokens of prompt",
        ]
    return "\n".join(lines)


def _range(least: int, most: int | None) -> str:
    if most is None:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"
