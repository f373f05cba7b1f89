"""Plots of benchmark rows, as PNG files under benchmarks/results that say which rows they were drawn from.

matplotlib is needed to draw, not to check.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tables import largest_losses, number_in, quality_rows, rows_of, step_rows, words

from framert.runtime.bench.quality import IDENTICAL
from framert.runtime.bench.rows import RESULTS, Row, latest

KEY = "framert-rows"  # the text of the PNG that holds the digest of its rows
DOTS = 150  # per inch


@dataclass(frozen=True, slots=True)
class Plot:
    """rows: what it shows, of a checkout's results; draw: onto matplotlib axes."""

    rows: Callable[[Path], list[Row]]
    draw: Callable[[Any, list[Row]], None]


def digest(rows: list[Row]) -> str:
    """Return sixteen digits over everything the rows say."""
    text = "\n".join(repr(sorted(asdict(row).items())) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stale(root: Path) -> list[str]:
    """Return the names of plots that were not drawn from the rows that are there now, or stand there without rows."""
    names = []
    for name, plot in PLOTS.items():
        rows, file = plot.rows(root), root / RESULTS / f"{name}.png"
        if (drawn_from(file) if file.exists() else None) != (digest(rows) if rows else None):
            names.append(name)
    return names


def picture(name: str, words: str, root: Path) -> str:
    """Return the Markdown that shows a plot; nothing while there are no rows for it."""
    return f"![{words}]({RESULTS}/{name}.png)" if PLOTS[name].rows(root) else ""


def drawn_from(file: Path) -> str:
    """Return the digest a plot holds; nothing for a picture that is no plot of ours."""
    with Image.open(file) as image:
        return str(image.info.get(KEY, ""))


def redraw(root: Path) -> list[Path]:
    """Draw the plots that are stale anew, remove those without rows, and return the files."""
    files = []
    for name in stale(root):
        plot, file = PLOTS[name], root / RESULTS / f"{name}.png"
        rows = plot.rows(root)
        if not rows:
            file.unlink()
            continue
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.2), layout="constrained")
        plot.draw(figure.add_subplot(), rows)
        figure.savefig(file, dpi=DOTS, metadata={KEY: digest(rows), "Software": None})
        files.append(file)
    return files


def _speed_rows(root: Path) -> list[Row]:
    """Speed against eager and quality of every side that has both, and the speed of what they are compared with."""
    quality = quality_rows(root)
    speed = {side: row for (side, metric), row in step_rows(root).items() if metric == "rate_ratio"}
    references = {row.impl.partition("/")[2] for row in quality}
    both = ({row.impl for row in quality if row.metric == "latents_psnr"} | references) & set(speed)
    near = [row for row in quality if row.impl.partition("/")[0] in both and _is_quality(row.metric)]
    return [*(speed[side] for side in sorted(both)), *near]


def _is_quality(metric: str) -> bool:
    return metric == "latents_psnr" or "_loss_" in metric


def _draw_speed(axes: Any, rows: list[Row]) -> None:
    """Points of speed and distance to the reference; the reference itself, which has no distance, is a line."""
    for row in (row for row in rows if row.metric == "rate_ratio"):
        name = row.impl.partition("/")[0]
        side = "onnxruntime-fp32" if name == "framert" else name
        near = [each.p50 for each in rows if (each.impl, each.metric) == (side, "latents_psnr")]
        if min(near, default=IDENTICAL) >= IDENTICAL:
            axes.axvline(row.p50, ls=":", color="grey")
            label = f" {words(side).replace('**framert**, ', '')}: the reference"
            place = axes.get_xaxis_transform()
            axes.text(row.p50, 0.5, label, rotation=90, va="center", ha="right", fontsize=8, transform=place)
            continue
        loss = largest_losses(rows, side)
        note = f"\nlargest task loss {loss[0].p50:.1%}" if loss else ""
        axes.errorbar(row.p50, min(near), xerr=[[row.p50 - row.p20], [row.p80 - row.p50]], fmt="o", capsize=3)
        label = words(side).replace("**framert**, ", "") + note
        axes.annotate(label, (row.p50, min(near)), xytext=(6, 6), textcoords="offset points", fontsize=8)
    axes.set_xlabel("speed of a step against the published algorithm in eager PyTorch, fp32")
    axes.set_ylabel("PSNR of latents against fp32, worst task (dB)")
    axes.margins(0.35, 0.25)
    axes.grid(alpha=0.3)


def _scaling_rows(root: Path) -> list[Row]:
    return latest(rows_of(root, "scaling_cpu"), "scaling_cpu")


def _draw_scaling(axes: Any, rows: list[Row]) -> None:
    """Seconds of a step against packed tokens, measured (points) and as the roofline allows (dashed)."""
    for metric, style in (("step", "o-"), ("roofline", "x--")):
        mine = [row for row in rows if row.metric == metric]
        for impl, requests in dict.fromkeys((row.impl, _requests(row)) for row in mine):
            line = sorted(
                (tokens, row.p50)
                for row in mine
                if (row.impl, _requests(row)) == (impl, requests) and (tokens := number_in(TOKENS, row.case))
            )
            label = f"{words(impl).replace('**framert**, ', '')}, {requests:.0f} request{'s' if requests > 1 else ''}"
            axes.plot(
                *zip(*line, strict=True), style, ms=4, label=label + (", roofline" if metric == "roofline" else "")
            )
    axes.set(xscale="log", yscale="log", xlabel="model tokens in the call", ylabel="seconds of a step")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)


def _requests(row: Row) -> float:
    return number_in(r"(\d+) requests?", row.case) or 1.0


TOKENS = r"(\d+) tokens"
PLOTS: Mapping[str, Plot] = {
    "speed_quality": Plot(_speed_rows, _draw_speed),
    "scaling": Plot(_scaling_rows, _draw_scaling),
}
