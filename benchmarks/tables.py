"""README's tables of benchmark rows, as Markdown: each is empty while there are no rows for it."""

import re
from collections.abc import Iterable
from pathlib import Path

from framert.runtime.bench.rows import RESULTS, Row, latest, newest, read

LIMIT = 0.01  # relative loss on a continuous metric, as evaluate.py judges it
SIDES = {
    "framert": "**framert**, ONNX Runtime, fp32",
    "eager": "published algorithm, PyTorch eager, fp32",
    "eager-sdpa": "the same with SDPA and no softcap (another model, which flatters it)",
    "compiled": "published algorithm under torch.compile, fp32",
    "eager-bf16": "published algorithm, PyTorch eager, bf16",
    "hoisted-compiled": "hoisted by hand and compiled for this one shape, fp32",
    "hoisted-compiled-bf16": "hoisted by hand and compiled for this one shape, bf16",
}
BACKENDS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "triton": "Triton", "tensorrt": "TensorRT"}
EAGER = "eager"


def all_rows(root: Path, bench: str) -> list[Row]:
    """Return ``bench``'s last run on each device, whatever file its rows are in."""
    rows = [row for file in sorted((root / RESULTS).glob("*.csv")) for row in read(file) if row.bench == bench]
    devices = dict.fromkeys(row.device for row in rows)
    return [row for device in devices for row in latest([each for each in rows if each.device == device], bench)]


def rows_of(root: Path, name: str) -> list[Row]:
    """Return the rows of benchmarks/results/``name``.csv, oldest first; none where there is no such file."""
    file = root / RESULTS / f"{name}.csv"
    return read(file) if file.exists() else []


def words(side: str) -> str:
    """Return a side in words: "openvino-int8+bf16" is "**framert**, OpenVINO, int8 + bf16"."""
    backend, _, precision = side.partition("-")
    if side in SIDES or backend not in BACKENDS:
        return SIDES.get(side, side)
    return f"**framert**, {BACKENDS[backend]}, {precision.replace('+', ' + ')}"


def step_table(root: Path) -> str:
    """Return the tables of the last run of bench_step.py, one for each case."""
    rows = latest(rows_of(root, "step_cpu"), "step_cpu")
    return "\n\n".join(
        _step_case([row for row in rows if row.case == case]) for case in dict.fromkeys(r.case for r in rows)
    )


def _step_case(rows: list[Row]) -> str:
    by_key = {(row.impl, row.metric): row for row in rows}
    lines = [
        "| one denoiser step | median | 20 % to 80 % | framert's speed against it | velocity differs by |",
        "|---|---|---|---|---|",
    ]
    measured = [row.impl for row in rows if row.metric == "step"]
    for side in [*(name for name in SIDES if name in measured), *(name for name in measured if name not in SIDES)]:
        step = by_key[side, "step"]
        ratio, error = by_key.get((f"framert/{side}", "rate_ratio")), by_key.get((side, "velocity_error"))
        own = by_key.get((f"{side}/{EAGER}", "rate_ratio")) if side != "framert" else None
        faster = f"{ratio.p50:.2f}x" if ratio else f"is itself {own.p50:.2f}x eager fp32" if own else ""
        lines.append(
            f"| {words(side)} | {_milliseconds(step.p50)} ms | "
            f"{_milliseconds(step.p20)} to {_milliseconds(step.p80)} | "
            f"{faster} | {f'{error.p50:.1g}' if error else ''} |"
        )
    first = rows[0]
    return "\n".join(lines) + (
        f"\n\nRandom model, {first.case}; {first.threads} threads of {first.device}; {first.n} alternating rounds, "
        f"ratios round by round; torch {first.torch}, onnxruntime {first.onnxruntime}; commit {first.commit}, "
        f"{first.date[:10]}."
    )


def precision_table(root: Path) -> str:
    """Return size, memory, speed and quality of every backend and precision that was evaluated, fastest first."""
    quality = quality_rows(root)
    if not quality:
        return ""
    model = _model(quality[0])
    serve = [row for row in newest(rows_of(root, "serve"), "serve") if _model(row) == model]
    steps = step_rows(root)
    sides = dict.fromkeys(row.impl.partition("/")[0] for row in quality)
    order = sorted(sides, key=lambda side: -steps[side, "rate_ratio"].p50 if (side, "rate_ratio") in steps else 0.0)
    lines = [
        "| backend, precision | bundle | peak memory | one step | speed against eager fp32 | velocity differs by | "
        "latents PSNR | largest loss of a task (95 % interval) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side in order:
        size, memory = (_cell(serve, side, metric) for metric in ("bundle_size", "peak_resident"))
        step, ratio = steps.get((side, "step")), steps.get((side, "rate_ratio"))
        errors, psnr = ([row for row in quality if (row.impl, row.metric) == (side, name)]
                        for name in ("velocity_error", "latents_psnr"))  # fmt: skip
        error = max(errors, key=lambda row: row.date, default=None)  # of the first task: not the same in every run
        lines.append(
            f"| {words(side)} | {size} | {memory} | {f'{_milliseconds(step.p50)} ms' if step else ''} | "
            f"{f'{ratio.p50:.2f}x' if ratio else ''} | {f'{error.p50:.1%}' if error else ''} | "
            f"{f'{min(row.p50 for row in psnr):.1f} dB' if psnr else ''} | {_largest_loss(quality, side)} |"
        )
    first = max(quality, key=lambda row: row.date)
    settings = first.case.split("; ")[1]
    return "\n".join(lines) + (
        f"\n\nSize, memory and quality on {model.split()[0]}, {settings}; losses are paired with the reference "
        "scene by scene; PSNR is that of the worst task, velocities differ by a relative L2 distance. Steps and their "
        "speed are those of the random model in the table of one denoiser step. "
        f"{first.device}; {commits(quality)}."
    )


def quality_rows(root: Path) -> list[Row]:
    """Return the newest row of each side, task and metric, of the last evaluated model and its settings alone."""
    rows = newest(rows_of(root, "quality"), "quality")
    of_last = max(rows, key=lambda row: row.date).case.partition("; ")[2] if rows else ""
    return [row for row in rows if row.case.partition("; ")[2] == of_last]


def step_rows(root: Path) -> dict[tuple[str, str], Row]:
    """Return, by side and metric, the last run's step and its speed against eager fp32 ("rate_ratio")."""
    rows = latest(rows_of(root, "step_cpu"), "step_cpu")
    first = rows[0].case if rows else ""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        name, _, against = row.impl.partition("/")
        side = "onnxruntime-fp32" if name == "framert" else name
        if row.case == first and (row.metric == "step" or (row.metric == "rate_ratio" and against == EAGER)):
            found[side, row.metric] = row
    return found


def largest_losses(rows: Iterable[Row], side: str) -> tuple[Row, Row, Row] | None:
    """Return loss, low and high of the metric with a side's largest loss against its reference."""
    mine = {(row.case, row.metric): row for row in rows if row.impl.startswith(f"{side}/")}
    losses = [key for key in mine if key[1].endswith("_loss_ratio")]
    if not losses:
        return None
    case, metric = max(losses, key=lambda key: mine[key].p50)
    stem = metric.removesuffix("_loss_ratio")
    return mine[case, metric], mine[case, f"{stem}_loss_low_ratio"], mine[case, f"{stem}_loss_high_ratio"]


def _largest_loss(rows: list[Row], side: str) -> str:
    found = largest_losses(rows, side)
    if found is None:
        return "reference"
    loss, low, high = (row.p50 for row in found)
    metric, task = found[0].metric.removesuffix("_loss_ratio"), found[0].case.partition(";")[0]
    lows = [row for row in rows if row.impl.startswith(f"{side}/") and row.metric.endswith("_loss_low_ratio")]
    beyond = " **beyond 1 %**" if low > LIMIT else ""
    if others := sum(row.p50 > LIMIT for row in lows) - bool(beyond):  # whose loss is smaller and better known
        beyond += f" **and {others} more**" if beyond else f", **{others} other beyond 1 %**"
    return f"{loss:.2%} ({low:.2%} to {high:.2%}), {metric} of {task}{beyond}"


def serve_table(root: Path) -> str:
    """Return latency, throughput and the open-loop load of every side that framert bench measured."""
    rows = newest(rows_of(root, "serve"), "serve")
    shown = [row for row in rows if row.metric in ("latency", "throughput", "goodput")]
    if not shown:
        return ""
    model = _model(max(shown, key=lambda row: row.date))
    shown = [row for row in shown if _model(row) == model]
    psnr = [row for row in rows if row.metric == "psnr" and _model(row) == model]
    lines = ["| backend, precision | load | | median | 99 % | PSNR |", "|---|---|---|---|---|---|"]
    for row in shown:
        load = row.case.rpartition("; ")[0]
        near = _pictures([each for each in psnr if each.impl == row.impl], load)
        last = f"{row.p99:.3g} s" if row.metric == "latency" else ""
        lines.append(
            f"| {words(row.impl)} | {load} | {row.metric} | {row.p50:.3g} {row.unit} | {last} | "
            f"{f'{near:.1f} dB' if near is not None else ''} |"
        )
    first = max(shown, key=lambda row: row.date)
    return "\n".join(lines) + (f"\n\n{model.split()[0]}; {first.threads} threads of {first.device}; {commits(shown)}.")


def _pictures(psnr: list[Row], load: str) -> float | None:
    """Return the median PSNR of a load's pictures; of several kinds together that of the worst."""
    own = [row.p50 for row in psnr if row.case.partition(", against")[0] == load]
    mode = load.partition(":")[0]
    return min(own or [row.p50 for row in psnr if row.case.partition(":")[0] == mode], default=None)


def memory_table(root: Path) -> str:
    """Return the peak memory of the full-size model by backend and precision."""
    rows = newest(rows_of(root, "memory_cpu"), "memory_cpu")
    if not rows:
        return ""
    rest = max(rows, key=lambda row: row.date).case.partition("; ")[2]
    rows = [row for row in rows if row.case.partition("; ")[2] == rest]
    lines = ["| backend, precision | peak resident | of it not files | bundle | run |", "|---|---|---|---|---|"]
    for impl, case in dict.fromkeys((row.impl, row.case) for row in rows):
        mine = {row.metric: row for row in rows if (row.impl, row.case) == (impl, case)}
        precision = case.partition(";")[0].split(", ", 2)[-1]
        cells = [f"{mine[name].p50:.2f} GiB" if name in mine else "" for name in MEMORY]
        seconds = f"{mine['run'].p50:.0f} s" if "run" in mine else ""
        lines.append(f"| {BACKENDS.get(impl, impl)}, {precision} | {' | '.join(cells)} | {seconds} |")
    first = max(rows, key=lambda row: row.date)
    return "\n".join(lines) + (
        f"\n\nPublished configuration, random weights; {rest}. {first.threads} threads of {first.device}; "
        f"{commits(rows)}."
    )


def device_table(bench: str, root: Path) -> str:
    """Return every figure of the last run of a GPU benchmark, a table for each device."""
    rows = all_rows(root, bench)
    tables = []
    for device in dict.fromkeys(row.device for row in rows):
        mine = [row for row in rows if row.device == device]
        lines = ["| case | side | | median | 20 % to 80 % |", "|---|---|---|---|---|"]
        lines += [
            f"| {row.case} | {row.impl} | {row.metric} | {row.p50:.4g} {row.unit} | {row.p20:.4g} to {row.p80:.4g} |"
            for row in mine
        ]
        first = mine[0]
        lines += [
            "",
            f"{device}; torch {first.torch}, triton {first.triton}; commit {first.commit}, {first.date[:10]}.",
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def triton_table(root: Path) -> str:
    """Return what precision and reuse cost the picture in backend "triton", by the last run of its benchmark."""
    rows = latest(rows_of(root, "triton_quality"), "triton_quality")
    if not rows:
        return ""
    levels = list(dict.fromkeys(row.case.partition(";")[0] for row in rows if row.metric == "velocity_error"))
    lines = [
        f"| precision | velocity differs by, at {', '.join(levels)} | latents PSNR, worst task | pictures PSNR |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(row.impl for row in rows):
        mine = [row for row in rows if row.impl == name]
        errors = [f"{row.p50:.2%}" for row in mine if row.metric == "velocity_error"]
        latents = min(row.p50 for row in mine if row.metric == "latents_psnr")
        pixels = next(row.p50 for row in mine if row.metric == "pixels_psnr")
        lines.append(f"| {name} | {', '.join(errors)} | {latents:.1f} dB | {pixels:.1f} dB |")
    first = rows[0]
    return "\n".join(lines) + (
        f"\n\nMedians, against fp32: {first.case.partition('; ')[2]}. {first.device}; torch {first.torch}; "
        f"commit {first.commit}, {first.date[:10]}."
    )


MEMORY = ("peak_resident", "peak_anonymous", "bundle_size")


def _model(row: Row) -> str:
    """The last part of a case: checkpoint and digest."""
    return row.case.rpartition("; ")[2]


def commits(rows: Iterable[Row]) -> str:
    """Return the commits the rows were measured at, which need not be one: each side has its newest row."""
    found = {row.commit: row.date[:10] for row in sorted(rows, key=lambda row: row.date)}
    return f"commit{'s' if len(found) > 1 else ''} " + ", ".join(f"{commit} ({date})" for commit, date in found.items())


def _cell(rows: list[Row], side: str, metric: str) -> str:
    found = [row for row in rows if (row.impl, row.metric) == (side, metric)]
    newest_row = max(found, key=lambda row: row.date, default=None)
    return f"{newest_row.p50:.0f} {newest_row.unit}" if newest_row else ""


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds >= 0.01 else f"{1000 * seconds:.2f}"


def number_in(pattern: str, text: str) -> float | None:
    """Return the number that the group of ``pattern`` finds in a case, or None."""
    found = re.search(pattern, text)
    return float(found[1]) if found else None
