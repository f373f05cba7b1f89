"""``framert bench``: what a bundle costs here, and how near its pictures are to a reference's."""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from framert.runtime.bench.measure import BENCH, Report, measure
from framert.runtime.bench.plan import Plan
from framert.runtime.bench.quality import DEFAULT_GATE
from framert.runtime.bench.rows import Environment, Row, checkout, read
from framert.runtime.bench.trace import FORM, Trace
from framert.runtime.bench.workload import request
from framert.runtime.bundle import Bundle
from framert.runtime.checkpoints import is_checkpoint
from framert.runtime.cli import values
from framert.runtime.cli.lazy import export_module
from framert.runtime.cpu import physical_cores
from framert.runtime.errors import ConfigError
from framert.runtime.families import find_family, find_task
from framert.runtime.job import prepare
from framert.runtime.pipeline import load

NAME = "bench"
SUMMARY = "measure latency, throughput, a mixed load and picture quality"
DESCRIPTION = """Measure a bundle: seconds to load and to the first step, latency of each task alone, throughput of
several requests packed into shared calls, latency and goodput under an open-loop load (--trace), peak memory, energy
where the platform reports it. Beside each stands the PSNR of the pictures against those of --reference with the same
seeds. Exit code 1 if a median PSNR is below --gate. The pictures and prompts it runs on are drawn from seeds."""
EPILOG = """examples:
  framert bench blocks.bundle
  framert bench int8.bundle --reference blocks.bundle --tasks text_to_image image_to_depth --steps 20
  framert bench int8.bundle --trace poisson:rate=80%,mix=text_to_image@64x64*3+edit@128x64,seconds=60 --json
  framert bench my_checkpoint --size 512 --tasks all -o rows.csv"""
DEFAULT_TASKS = ("text_to_image", "image_to_depth", "image_to_multiview")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle; a checkpoint is exported first, and that is timed")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="append rows to this .csv; needs a clean checkout, whose commit they name",
    )
    parser.add_argument("--json", action="store_true", help="print environment, rows and failures as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help=f"or all (default: of {', '.join(DEFAULT_TASKS)} those that the bundle has)",
    )
    what.add_argument(
        "--sizes",
        "--size",
        nargs="+",
        type=_sizes,
        metavar="WIDTHxHEIGHT",
        help="of the pictures, or the sides of squares (default: the native size)",
    )
    what.add_argument("--steps", type=int, metavar="N", help="intervals of the schedule (default: each task's own)")
    what.add_argument("--rounds", type=int, default=5, metavar="N", help="timed rounds of each (default 5)")
    what.add_argument("--together", type=int, default=8, metavar="N", help="requests packed together (default 8)")
    what.add_argument("--trace", metavar="SPEC", help=f"open-loop load: {FORM}".replace("%", "%%"))
    how = parser.add_argument_group("how to run it")
    how.add_argument("--backend", metavar="NAME", help="what runs it (default: onnxruntime, or tensorrt for engines)")
    how.add_argument(
        "--provider", metavar="NAME", help="what backend onnxruntime runs on: cpu (default), cuda or tensorrt"
    )
    how.add_argument(
        "--precision",
        metavar="NAME",
        help="of a bundle: what the backend computes in, where it has a choice; of a checkpoint: what to export it in",
    )
    how.add_argument(
        "--threads", type=int, metavar="N", help="threads inside an operator (default: one per physical core)"
    )
    gate = parser.add_argument_group("quality")
    gate.add_argument(
        "--reference", metavar="BUNDLE", help="whose pictures to compare with, made one by one (default: this bundle's)"
    )
    gate.add_argument(
        "--gate", type=float, default=DEFAULT_GATE, metavar="DB", help=f"least median PSNR (default {DEFAULT_GATE:g})"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.output is not None:
        _check_output(Path(arguments.output))
    environment = Environment.capture(
        checkout(),
        threads=arguments.threads or physical_cores(),
        record=arguments.output is not None,
    )
    say = _silent if arguments.quiet else _say
    with tempfile.TemporaryDirectory() as folder:
        bundle, exported = _bundle(arguments, Path(folder), say)
        plan = _plan(arguments, bundle)
        reference = arguments.reference and partial(load, arguments.reference, threads=arguments.threads)
        if reference is not None:
            _check_reference(arguments.reference, plan)
        precision = None if exported is not None else arguments.precision  # a checkpoint was exported in it
        opener = partial(
            load,
            bundle,
            backend=arguments.backend,
            threads=arguments.threads,
            precision=precision,
            provider=arguments.provider,
        )
        report = measure(opener, reference, plan, environment, say)
    if exported is not None:
        first = report.rows[0]
        made = environment.row(
            bench=BENCH, impl=first.impl, case=first.case, metric="export", unit="s", samples=[exported]
        )
        report.rows.insert(0, made)
    print(json.dumps(_content(report, environment), indent=1) if arguments.json else table(report.rows))
    if arguments.output is not None:
        say(f"rows appended to {environment.append(str(Path(arguments.output).resolve()), report.rows)}")
    for line in report.failures:
        print(f"framert: error: {line}", file=sys.stderr)
    return 1 if report.failures else 0


def table(rows: Sequence[Row]) -> str:
    """Return rows as lines under the name of their case, and first whose they are."""
    first = rows[0]
    whose = first.case.rpartition("; ")[2]
    lines, case = [f"{first.impl} of {whose}, {first.threads} threads of {first.device}"], ""
    for row in rows:
        if row.case != case:
            lines.append(row.case.removesuffix(f"; {whose}"))
            case = row.case
        spread = f"p20 {row.p20:.4g}, p80 {row.p80:.4g}, p99 {row.p99:.4g}, n {row.n}" if row.n > 1 else ""
        ratio = " packed/alone" if "/" in row.impl else ""
        lines.append(f"  {row.metric + ratio:24} {row.p50:10.4g} {row.unit:12} {spread}".rstrip())
    return "\n".join(lines)


def _bundle(arguments: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> tuple[Path, float | None]:
    """Return the bundle's path, and the seconds its export took if a checkpoint was given."""
    path = Path(arguments.bundle)
    if not is_checkpoint(path):
        return path, None
    say(f"exporting {path}")
    begin = time.perf_counter()
    export_module("pipeline", NAME).export(
        path, folder / f"{path.name}.bundle", precision=arguments.precision or "fp32", progress=not arguments.quiet
    )
    return folder / f"{path.name}.bundle", time.perf_counter() - begin


def _check_output(path: Path) -> None:
    """Refuse a file that rows cannot be appended to before an hour of measuring rather than after."""
    if path.suffix != ".csv" or path.is_dir():
        raise ConfigError(f"-o is {path}; rows are appended to a file whose name ends in .csv")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"-o is {path}, in a folder that does not exist; make it first")
    if path.exists() and path.stat().st_size:
        read(path)
    if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
        raise ConfigError(f"-o is {path}, which cannot be written; give another")


def _sizes(text: str) -> list[tuple[int, int]]:
    return [values.size(part) for part in text.split(",")]


def _plan(arguments: argparse.Namespace, bundle: Path) -> Plan:
    manifest = Bundle.open(bundle, check_files=False).manifest
    side, family = manifest.native_side, manifest.family
    able = find_family(family).tasks(manifest)
    given = [task for task in DEFAULT_TASKS if task in able] if arguments.tasks is None else arguments.tasks
    named = [task for words in given for task in words.split(",")]
    tasks = list(able) if named == ["all"] else named
    for task in tasks:
        find_task(task, family, manifest)
    return Plan(
        family=family,
        tasks=tasks,
        sizes=[size for sizes in arguments.sizes or [[(side, side)]] for size in sizes],
        steps=arguments.steps,
        rounds=arguments.rounds,
        together=arguments.together,
        trace=Trace.parse(arguments.trace, family) if arguments.trace else None,
        gate=arguments.gate,
    )


def _check_reference(bundle: str, plan: Plan) -> None:
    """Refuse a reference before an hour of measuring rather than after."""
    manifest = Bundle.open(bundle).manifest
    for kind in plan.all_kinds:
        prepare(request(kind, 0), manifest)


def _content(report: Report, environment: Environment) -> dict[str, Any]:
    return {
        "environment": {
            "device": environment.device,
            "threads": environment.threads,
            "versions": environment.versions,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "commit": environment.commit or None,
            "date": environment.date,
        },
        "rows": [asdict(row) for row in report.rows],
        "failures": report.failures,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass
