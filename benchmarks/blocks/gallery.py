"""Run every task of bundles on held-out Blocks scenes and show inputs, outputs and ground truth side by side.

    python benchmarks/blocks/gallery.py BUNDLE [BUNDLE ...] -o demo [--failures 24]

Writes demo/index.html with demo/images, and demo/gallery.png, one contact sheet. Nothing is picked: scenes are seeded.
With --failures so many more scenes of each task are run, and the first of each task that fails is shown, framed in red.
demo/inputs holds the first scene's pictures, to try the command line on.
"""

import argparse
import html
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cases import CHECK_TASK, cameras_of, picture_of
from failures import failure
from frames import SceneFrames, caption, scene_frames
from PIL import Image, ImageDraw
from sheet import Card, Shown, contact_sheet
from suites import SUITES, Suite
from tqdm import tqdm

import framert

FIRST_SCENE = 0  # held out: training uses seeds from 1,000,000 on


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What every task of the gallery is run with; None is the task's own."""

    scenes: int
    steps: int | None
    seed: int
    solver: str
    failures: int = 0


def cards(pipe: framert.Pipeline, options: Options) -> list[Card]:
    """Run every task on ``options.scenes`` scenes, one after another, with a bar on stderr."""
    side, suite = pipe.manifest.native_side, SUITES[pipe.manifest.family]
    scenes = [suite.frames(FIRST_SCENE + index, side, None) for index in range(options.scenes + options.failures)]
    runs = [(task, index, frames) for task in suite.tasks for index, frames in enumerate(scenes)]
    shown: list[Card] = []
    for task, index, frames in (bar := tqdm(runs, unit="picture")):
        bar.set_description(f"{task:20}")
        looked_for = index >= options.scenes
        if looked_for and any(card.task == task and card.wrong for card in shown):
            continue  # one is enough
        case = suite.case_of(task, frames)
        begin = time.perf_counter()
        result = _run(pipe, task, index, options, case.request)
        seconds, wrong = time.perf_counter() - begin, ""
        if options.failures:
            scores = case.score(result)
            if case.check is not None and not failure(scores):
                check = case.check(result)
                scores = check.score(_run(pipe, CHECK_TASK, index, options, check.request))
            wrong = failure(scores)
        if wrong or not looked_for:
            shown.append(_card(suite, task, frames, case.request, result, seconds, wrong))
    return shown


def _run(pipe: framert.Pipeline, task: str, index: int, options: Options, request: dict[str, Any]) -> framert.Result:
    return pipe.run(task, seed=options.seed + index, steps=options.steps, solver=options.solver, **request)


def _card(
    suite: Suite,
    task: str,
    frames: SceneFrames,
    request: dict[str, Any],
    result: framert.Result,
    seconds: float,
    wrong: str,
) -> Card:
    pictures = [Shown("given", image) for image in request.get("images", [])]
    if task in suite.given:
        pictures = [Shown("given", picture_of(frames.pictures[suite.given[task]]))]
    pictures += [Shown("made", image) for image in result.images]
    pictures += [Shown("truth", picture_of(frames.pictures[name])) for name in suite.truths(task, frames)]
    if result.cameras is not None:
        pictures.append(Shown("cameras", _camera_plot(result.cameras, cameras_of(frames, len(result.cameras)))))
    return Card(task=task, prompt=_words(request, frames, task), seconds=seconds, pictures=tuple(pictures), wrong=wrong)


def _words(request: dict[str, Any], frames: SceneFrames, task: str) -> str:
    """What the caller said: the prompt, or the legend of the colours asked for."""
    legend = ", ".join(f"{thing}: {colour}" for thing, colour in request.get("colors", {}).items())
    if task == "camera_pose":
        return "where the second camera stands: red made, green truth"
    return request.get("prompt") or legend or f"({caption(frames.story.scene)})"


def _camera_plot(made: framert.Cameras, truth: framert.Cameras, side: int = 192) -> Image.Image:
    """Draw camera positions and viewing directions from above, relative to the first camera."""
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    for cameras, colour in ((truth.relative(), "green"), (made.relative(), "red")):
        for matrix in cameras.camera_to_world:
            centre = matrix[[0, 2], 3]
            ahead = centre + 0.5 * matrix[[0, 2], 2]
            x0, y0, x1, y1 = (side * (np.concatenate((centre, ahead)) * [1, -1, 1, -1] / 4 + [0.5, 0.7] * 2)).tolist()
            draw.line((x0, y0, x1, y1), fill=colour, width=3)
            draw.ellipse((x0 - 5, y0 - 5, x0 + 5, y0 + 5), outline=colour, width=3)
    return image


def write_page(groups: Mapping[str, Sequence[Card]], folder: Path, options: Options) -> None:
    """Write index.html and the pictures it shows: cards under the names of their bundles."""
    failures = f", and framed in red the first that failed of {options.failures} more" if options.failures else ""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    blocks, seconds = [], 0.0
    for name, cards in groups.items():
        seconds += sum(card.seconds for card in cards)
        blocks.append(f"<h2 class=bundle>{html.escape(name)}</h2>")
        stem = Path(name).stem
        blocks += [_section(card, f"{stem}-{number:02}-{card.task}", images) for number, card in enumerate(cards)]
    page = (
        "<!doctype html><meta charset=utf-8><title>framert: every task</title><style>"
        "body{font:15px/1.4 system-ui,sans-serif;margin:2em;background:#fafafa;color:#222}"
        "section{display:inline-block;vertical-align:top;background:#fff;border:1px solid #ddd;border-radius:8px;"
        "padding:.6em 1em;margin:.4em}.wrong{border-color:#c22}.wrong small{color:#c22}"
        "h2{font-size:1.05em;margin:.2em 0}.bundle{font-size:1.3em;margin:1.2em .3em .3em}"
        "small{color:#888;font-weight:normal}"
        "p{margin:.2em 0 .6em;max-width:36em;color:#555}figure{display:inline-block;margin:0 .4em 0 0}"
        "img{width:128px;height:128px;image-rendering:pixelated;border-radius:4px}figcaption{color:#888}</style>"
        f"<h1>Every task of {html.escape(' and '.join(groups))}</h1><p>Held-out scenes: given, made, truth. The first "
        f"{options.scenes} of each task{failures}. framert {framert.__version__}, {seconds:.0f} s in all.</p>"
        f"{''.join(blocks)}"
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _section(card: Card, stem: str, images: Path) -> str:
    figures = []
    for place, picture in enumerate(card.pictures):
        name = f"{stem}-{place}.png"
        picture.image.save(images / name)
        figures.append(f'<figure><img src="images/{name}"><figcaption>{picture.label}</figcaption></figure>')
    note = card.wrong or f"{card.seconds:.1f} s"
    return (
        f"<section{' class=wrong' if card.wrong else ''}><h2>{card.task} <small>{note}</small></h2>"
        f"<p>{html.escape(card.prompt)}</p>{''.join(figures)}</section>"
    )


def write_inputs(frames: SceneFrames, folder: Path) -> None:
    """Write pictures of a scene for a newcomer to run tasks on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("picture", "depth", "semantic", "blur"):
        picture_of(frames.pictures[name]).save(folder / f"{name}.png")
    Image.fromarray(frames.hole).save(folder / "hole.png")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("bundle", type=Path, nargs="+", help="of any family; all are shown on one page")
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder to write into")
    parser.add_argument("--scenes", type=int, default=2, help="scenes per task")
    parser.add_argument("--steps", type=int, default=30, help="solver steps")
    parser.add_argument("--solver", default="euler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=int, default=0, help="scenes per task in which a failure is looked for")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if len({each.resolve().name for each in given.bundle}) < len(given.bundle):
        parser.error("two bundles have the same name; rename one, for the page shows them by it")
    if given.scenes < 1:
        parser.error(f"--scenes is {given.scenes}; give at least 1")
    if given.failures < 0:
        parser.error(f"--failures is {given.failures}; give 0 or more")
    return given


def main() -> int:
    given = arguments()
    options = Options(
        scenes=given.scenes, steps=given.steps, seed=given.seed, solver=given.solver, failures=given.failures
    )
    try:
        given.output.mkdir(parents=True, exist_ok=True)
        groups = {
            each.resolve().name: cards(framert.load(each, threads=given.threads), options) for each in given.bundle
        }
    except (framert.FramertError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    assert "torch" not in sys.modules, "running a bundle must not import torch"
    write_page(groups, given.output, options)
    write_inputs(scene_frames(FIRST_SCENE), given.output / "inputs")
    contact_sheet(groups).save(given.output / "gallery.png")
    print(f"{given.output / 'index.html'}\n{given.output / 'gallery.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
