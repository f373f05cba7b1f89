"""Write README's tables from what they are about: benchmark rows, the task table, the bundled model's scores.

python benchmarks/report.py            rewrite the blocks between <!-- bench:NAME --> and <!-- /bench:NAME -->
python benchmarks/report.py --check    change nothing; exit 1 if a block differs from its rows
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from framert.runtime.bench.rows import RESULTS, Row, latest, read
from framert.runtime.errors import ConfigError, FramertError
from framert.runtime.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks" / "blocks"))  # its files are scripts beside each other
from floors import format_table  # noqa: E402  # found there

SIDES = {
    "framert": "**framert**, ONNX Runtime, fp32",
    "eager": "published algorithm, PyTorch eager, fp32",
    "eager-sdpa": "the same with SDPA and no softcap (another model, which flatters it)",
    "compiled": "published algorithm under torch.compile, fp32",
    "eager-bf16": "published algorithm, PyTorch eager, bf16",
}


def step_table(root: Path) -> str:
    """Return the tables of the last run of bench_step.py, one for each case; nothing when it never ran."""
    name = "step_cpu"
    file = root / RESULTS / f"{name}.csv"
    rows = latest(read(file), name) if file.exists() else []
    return "\n\n".join(
        _step_case([row for row in rows if row.case == case]) for case in dict.fromkeys(r.case for r in rows)
    )


def _step_case(rows: list[Row]) -> str:
    by_key = {(row.impl, row.metric): row for row in rows}
    lines = [
        "| one denoiser step | median | 20 % to 80 % | framert's speed against it | velocity differs by |",
        "|---|---|---|---|---|",
    ]
    for side, words in SIDES.items():
        step = by_key.get((side, "step"))
        if step is None:
            continue
        ratio, error = by_key.get((f"framert/{side}", "rate_ratio")), by_key.get((side, "velocity_error"))
        lines.append(
            f"| {words} | {_milliseconds(step.p50)} ms | {_milliseconds(step.p20)} to {_milliseconds(step.p80)} | "
            f"{f'{ratio.p50:.2f}x' if ratio else ''} | {f'{error.p50:.1g}' if error else ''} |"
        )
    first = rows[0]
    return "\n".join(lines) + (
        f"\n\nRandom model, {first.case}; {first.threads} threads of {first.device}; {first.n} alternating rounds, "
        f"ratios round by round; torch {first.torch}, onnxruntime {first.onnxruntime}; commit {first.commit}, "
        f"{first.date[:10]}."
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


def task_table(root: Path) -> str:
    """Return the runtime's task table."""
    lines = ["| task | makes | pictures given | also takes | steps, guidance |", "|---|---|---|---|---|"]
    for task in TASKS.values():
        fewest, most = task.images
        count = "none" if most == 0 else f"{fewest}" if fewest == most else f"{fewest} to {most or 'any number'}"
        extras = [*task.needs, *(f"({name})" for name in task.takes)]
        lines.append(
            f"| `{task.name}` | {task.summary} | {count} | {', '.join(extras)} | {task.steps}, {task.guidance:g} |"
        )
    return "\n".join(lines)


def blocks_table(root: Path) -> str:
    """Return those of the bundled model's scores that have a floor; nothing while there are none. The card has all."""
    file = root / "models" / "blocks" / "scores.json"
    return format_table(json.loads(file.read_text(encoding="utf-8")), floors_only=True) if file.exists() else ""


BLOCKS: Mapping[str, Callable[[Path], str]] = {"step": step_table, "tasks": task_table, "blocks": blocks_table}


def rewritten(text: str, root: Path) -> str:
    """Return ``text`` with every block made anew.

    Raises: ConfigError if a marker is unknown or has no partner, or a file of rows is damaged.
    """
    names = re.findall(r"<!-- (/?)bench:([\w-]+) -->", text)
    for (opening, name), (closing, partner) in zip(names[::2], [*names[1::2], ("", "nothing")], strict=False):
        if opening or not closing or name != partner:
            raise ConfigError(f"README.md: <!-- bench:{name} --> and <!-- /bench:{name} --> must enclose one block")
        if name not in BLOCKS:
            raise ConfigError(f"README.md has a block {name!r}; known are {', '.join(BLOCKS)}")
    return re.sub(
        r"(<!-- bench:([\w-]+) -->)\n.*?(<!-- /bench:\2 -->)",
        lambda found: "\n".join(part for part in (found[1], BLOCKS[found[2]](root), found[3]) if part),
        text,
        flags=re.DOTALL,
    )


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if README.md differs")
    options = parser.parse_args(arguments)
    readme = root / "README.md"
    try:
        text = readme.read_text(encoding="utf-8")
        new = rewritten(text, root)
    except (FramertError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if new == text:
        return 0
    if options.check:
        print("README.md differs from benchmarks/results; run python benchmarks/report.py", file=sys.stderr)
        return 1
    readme.write_text(new, encoding="utf-8")
    print(f"{readme} rewritten", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
