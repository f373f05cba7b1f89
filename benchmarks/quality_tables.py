"""README's tables of quality: every task's loss by precision, and framert's int8 beside that of other tools."""

from pathlib import Path

from tables import LIMIT, commits, quality_rows, rows_of, words

from framert.runtime.bench.quality import IDENTICAL
from framert.runtime.bench.rows import Row, newest

QUANTIZERS = {
    "framert": "**framert**: per-token scales",
    "nncf": "NNCF, all that it takes",
    "nncf-products": "NNCF, framert's products",
    "nncf-half": "NNCF, framert's products, SmoothQuant alpha 0.5",
    "modelopt": "ModelOpt SmoothQuant, framert's products",
}
STATES = ("as trained", "planted outliers")


def task_quality_table(root: Path) -> str:
    """Return every judged metric of every task: the reference's score, and each precision's paired loss."""
    rows = quality_rows(root)
    losses = {(row.impl.partition("/")[0], row.case, row.metric): row for row in rows if "_loss_" in row.metric}
    sides = list(dict.fromkeys(side for side, _, _ in losses))
    if not sides:
        return ""
    reference = next(iter(losses.values())).impl.partition("/")[2]
    scores = {(row.case, row.metric): row for row in rows if row.impl == reference}
    lines = [
        f"| task | metric, median of {words(reference).replace('**framert**, ', '')} | "
        f"{' | '.join(words(side).replace('**framert**, ', '') for side in sides)} |",
        "|---|---|" + "---|" * len(sides),
    ]
    judged = dict.fromkeys((case, metric) for _, case, metric in losses if metric.endswith("_loss_ratio"))
    for case, metric in judged:
        stem = metric.removesuffix("_loss_ratio")
        score = scores.get((case, stem))
        cells = [_loss(*(losses.get((side, case, f"{stem}_{end}_ratio")) for end in ENDS)) for side in sides]
        shown = f" {score.p50:.3g}{' dB' if score.unit == 'dB' else ''}" if score else ""
        lines.append(f"| `{case.partition(';')[0]}` | {stem}{shown} | {' | '.join(cells)} |")
    first = max(rows, key=lambda row: row.date)
    settings = first.case.split("; ")[1]
    shown = {case for case, _ in judged}
    others = list(dict.fromkeys(f"`{case.partition(';')[0]}`" for case, _ in scores if case not in shown))
    rest = f"Scored by thresholds alone, which are not judged: {', '.join(others)}. " if others else ""
    return "\n".join(lines) + (
        f"\n\n{rest}Relative loss against {words(reference).replace('**framert**, ', '')}, scene by scene, with its "
        f"95 % interval; below 0 is better. {first.case.rpartition('; ')[2].split()[0]}, {settings}. {first.device}; "
        f"{commits(rows)}."
    )


ENDS = ("loss", "loss_low", "loss_high")


def _loss(loss: Row | None, low: Row | None, high: Row | None) -> str:
    if loss is None or low is None or high is None:
        return ""
    beyond = " **beyond 1 %**" if low.p50 > LIMIT else ""
    return f"{loss.p50:.2%} ({low.p50:.2%} to {high.p50:.2%}){beyond}"


def quantizer_table(root: Path) -> str:
    """Return framert's int8 beside that of other tools, by the last settings measured."""
    rows = newest(rows_of(root, "quantizers"), "quantizers")
    if not rows:
        return ""
    steps = max(rows, key=lambda row: row.date).case.split("; ")[1]
    rows = [row for row in rows if row.case.split("; ")[1] == steps]
    lines = [
        "| int8 of the denoiser by | velocity differs by | latents PSNR, worst task | packed equals alone | planted "
        "outliers: velocity | latents PSNR |",
        "|---|---|---|---|---|---|",
    ]
    for side in sorted(dict.fromkeys(row.impl for row in rows), key=_place):
        cells = []
        for state in STATES:
            mine = [row for row in rows if row.impl == side and row.case.split("; ")[2] == state]
            cells += [_span(_values(mine, "velocity_error")), _least(_values(mine, "latents_psnr"))]
            if state == STATES[0]:
                packed = _values(mine, "packed_psnr")
                cells.append("" if not packed else "yes" if packed[0] >= IDENTICAL else f"to {packed[0]:.0f} dB")
        name, _, version = side.partition(" ")
        lines.append(f"| {QUANTIZERS.get(name, name)}{f' ({version})' if version else ''} | {' | '.join(cells)} |")
    first = max(rows, key=lambda row: row.date)
    return "\n".join(lines) + (
        "\n\nVelocities: relative L2 distance to fp32, root mean square of a noise level, best to worst level; "
        f"{first.case.rpartition('; ')[2].split()[0]}, {steps}. ModelOpt's rounding is simulated in torch; "
        "packed and alone were compared to 100 dB, not bit by bit. "
        f"{first.device}; {commits(rows)}."
    )


def _place(side: str) -> int:
    name = side.partition(" ")[0]
    return [*QUANTIZERS, name].index(name)


def _values(rows: list[Row], metric: str) -> list[float]:
    return [row.p50 for row in rows if row.metric == metric]


def _span(values: list[float]) -> str:
    return f"{min(values):.1%} to {max(values):.1%}" if values else ""


def _least(values: list[float]) -> str:
    return f"{min(values):.1f} dB" if values else ""
