"""Registers, spills and shared memory of every kernel on every target: compiled here, without a GPU.

    python benchmarks/kernels_aot.py [--changed] [--quick -o FILE]

Writes benchmarks/results/kernels_aot.csv: bf16 and fp16, for the published configuration and for models/blocks, on all
eight targets. --changed compiles only kernels whose hash is not the table's and keeps the other rows; that also goes on
after control-C, which writes what is ready. --quick compiles less, but every kernel in bf16 on every target, as the
test does that compares with the table. Exit code 1 if a kernel spills or does not fit. Needs the extra framert[triton].
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from framert.kernels.aot import build, report
from framert.kernels.aot.build import Job, plan
from framert.kernels.aot.compiler import Compiled
from framert.kernels.aot.ops import BLOCKS, PUBLISHED
from framert.kernels.aot.targets import TARGETS
from framert.kernels.specialization import ModelShape
from framert.runtime.errors import FramertError

TABLE = Path(__file__).resolve().parent / "results" / "kernels_aot.csv"
QUICK = ((PUBLISHED, "fp16"), (BLOCKS, "bf16"))  # what --quick compiles beside the published shape in bf16,
QUICK_TARGETS = ("sm_87", "sm_90")  # and where: one of each way to reach tensor cores


def jobs(*, quick: bool) -> list[Job]:
    """Return what the table holds, or the part of it that --quick compiles."""
    found: list[Job] = []
    sets: Sequence[tuple[ModelShape, Literal["bf16", "fp16"]]] = (
        (PUBLISHED, "bf16"),
        (BLOCKS, "bf16"),
        (PUBLISHED, "fp16"),
        (BLOCKS, "fp16"),
    )
    for shape, dtype in sets:
        if not quick or (shape, dtype) == sets[0]:
            found += plan([shape], list(TARGETS.values()), dtype)
        elif (shape, dtype) in QUICK:
            found += plan([shape], [TARGETS[name] for name in QUICK_TARGETS], dtype)
    unique = {(job.target.name, job.shape.name, job.name): job for job in found}  # some kernels are fp32 in either
    return list(unique.values())


def unchanged(todo: Sequence[Job]) -> dict[Job, dict[str, str]]:
    """Return the jobs whose kernels are those of the table, with their rows."""
    if not TABLE.exists():
        return {}
    held = {(row["target"], row["model"], row["kernel"]): row for row in report.read_csv(TABLE)}
    found = {job: held.get((job.target.name, job.shape.name, job.name)) for job in todo}
    return {job: row for job, row in found.items() if row and build.hash_of(job).startswith(row["sha256"])}


def main(words: Sequence[str] | None = None) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changed", action="store_true", help="keep the table's rows of kernels that did not change")
    parser.add_argument("--quick", action="store_true", help="compile less; needs -o")
    parser.add_argument("-o", "--output", type=Path, help=f"default: {TABLE.name} under results")
    arguments = parser.parse_args(words)
    if arguments.quick and arguments.output is None:
        parser.error("--quick is not the whole table; give -o")
    try:
        todo = jobs(quick=arguments.quick)
        kept = unchanged(todo) if arguments.changed else {}
        todo = [job for job in todo if job not in kept]
        compiled: list[Compiled] = []
        with tqdm(total=len(todo), unit="kernel", desc="compile") as bar, contextlib.suppress(KeyboardInterrupt):

            def done(kernel: Compiled) -> None:
                compiled.append(kernel)
                bar.update()

            build.compile_all(todo, done=done)
    except FramertError as error:
        print(f"kernels_aot: error: {error}", file=sys.stderr)
        return 2
    report.write_csv(arguments.output or TABLE, [*kept.values(), *report.rows(compiled)])
    if len(compiled) < len(todo):
        print(f"kernels_aot: interrupted, {len(todo) - len(compiled)} left; --changed goes on", file=sys.stderr)
        return 130
    for problem in (problems := report.problems(compiled)):
        print(f"kernels_aot: {problem}", file=sys.stderr)
    return 1 if problems or any(row["spills"] != "0" for row in kept.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
