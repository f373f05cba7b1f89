"""Score every task of a bundle on held-out Blocks scenes, through framert's public interface alone.

    python benchmarks/blocks/evaluate.py BUNDLE --scenes 200 --seed 0 --steps 30 [--json [FILE]] [--tasks NAME ...]
    python benchmarks/blocks/evaluate.py INT8_BUNDLE --quick --against FP32_BUNDLE [--json FILE] [--rows]
    python benchmarks/blocks/evaluate.py --compare FP32.json INT8.json [BF16.json ...] [--floor BF16.json]

Scores are means over scenes (medians of angles) with 95 % intervals: bootstrap over scenes. With --against, or from two
files, losses are paired: the same scenes from the same noise, and an interval for the relative loss itself. A
checkpoint is exported first. The table goes to stdout, progress to stderr. A floor that is not met, or a loss beyond
the limit, is reported and is no error (exit code 0).
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from comparison import Comparison, check_one_model, check_settings, comparison_table
from floors import format_table, format_targets
from kept import SUFFIX, Kept
from measured import LOSSES, Measured
from quality_rows import BENCH, quality_rows
from recorded import record
from scenes import Run, Sides, run_scenes
from suites import SUITES, Suite
from world import FIRST_TRAINING_SEED

import framert
from framert.runtime.bench.plan import identity
from framert.runtime.bench.rows import Environment
from framert.runtime.bundle import Bundle
from framert.runtime.checkpoints import is_checkpoint

ROOT = Path(__file__).resolve().parents[2]
CPU = ("onnxruntime", "openvino")
QUICK = {"scenes": 32, "steps": 12}
TASKS = tuple(dict.fromkeys(task for suite in SUITES.values() for task in suite.tasks))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("bundle", type=Path, nargs="?", help="a bundle, or a checkpoint, which is exported first")
    made.add_argument("--backend", default="onnxruntime")
    made.add_argument("--precision", help="of a bundle: what the backend computes in; of a checkpoint: for its export")
    made.add_argument(
        "--against",
        type=Path,
        help="a bundle to compare with (ONNX Runtime), or the --json of its run without --against",
    )
    made.add_argument(
        "--compare", type=Path, nargs="+", metavar="FILE", help="--json files: the reference, then others"
    )
    made.add_argument("--floor", type=Path, metavar="FILE", help="--json of the precision whose loss counts as noise")
    made.add_argument("--quick", action="store_true", help="4 or 5 tasks, 32 scenes, 12 steps unless said otherwise")
    made.add_argument("--scenes", type=int, help="default 200")
    made.add_argument("--seed", type=int, default=0, help="scenes have seeds 1000 * seed and on")
    made.add_argument("--steps", type=int, help="default 30")
    made.add_argument("--guidance", type=float, help="instead of each task's own")
    made.add_argument("--size", type=int, help="side of the pictures in pixels; default the bundle's native side")
    made.add_argument("--tasks", nargs="+", choices=TASKS, metavar="TASK")
    made.add_argument("--jobs", type=int, help="processes; default one per core on the CPU, else 1")
    made.add_argument("--threads", type=int, help="of each process; default its share of the cores")
    made.add_argument("--rows", action="store_true", help="append to benchmarks/results/quality.csv (clean checkout)")
    made.add_argument("--record", action="store_true", help="write the scores and losses into the bundle's manifest")
    made.add_argument("--summary", action="store_true", help="leave the values of single scenes out of --json")
    made.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="print JSON instead of the table, or write it to FILE too"
    )
    return made


def arguments() -> argparse.Namespace:
    """Return the parsed command line, with defaults filled in."""
    made = parser()
    given = made.parse_args()
    if (given.bundle is None) == (given.compare is None):
        made.error("give a BUNDLE, or --compare with files")
    if given.compare is not None and len(given.compare) < 2:
        made.error("--compare takes the reference's file and at least one other")
    if given.compare is not None and (given.rows or given.summary or given.against or given.record):
        made.error("--compare measures nothing, so --rows, --record, --summary and --against are not for it")
    if given.record and is_checkpoint(given.bundle):
        made.error("--record writes into a bundle's manifest; export the checkpoint and give the bundle")
    if given.floor is not None and given.compare is None and given.against is None:
        made.error("--floor stands beside a comparison; give --against or --compare too")
    if given.json not in (None, "-") and not Path(given.json).resolve().parent.is_dir():
        made.error(f"--json is {given.json}, in a folder that does not exist")
    if given.json not in (None, "-") and (Path(given.json).is_dir() or Path(given.json).suffix == SUFFIX):
        made.error(f"--json is {given.json}; give the name of a .json file")
    if given.rows and not Path(framert.__file__).resolve().is_relative_to(ROOT):
        made.error(f"--rows names this checkout's commit, but framert is imported from {framert.__file__}")
    defaults = QUICK if given.quick else {"scenes": 200, "steps": 30}
    for name, value in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if given.scenes < 1 or not 0 <= given.seed < FIRST_TRAINING_SEED // 1000 or given.scenes > 1000:
        made.error(f"--scenes is 1 to 1000 and --seed 0 to {FIRST_TRAINING_SEED // 1000 - 1}: others are trained on")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if given.jobs is None:
        given.jobs = min(cores, given.scenes) if given.backend in CPU else 1
    if given.jobs < 1:
        made.error("--jobs is at least 1")
    if given.threads is None and given.backend in CPU:
        given.threads = max(1, cores // given.jobs)
    return given


def evaluate(given: argparse.Namespace, folder: Path) -> tuple[Measured, Measured | None, Kept]:
    """Return what a bundle scores, what the one it is compared with does, and what the latter, or the only one, made.

    folder: for what has to be exported.

    Raises: FramertError for a bundle that cannot be opened or run; ValueError for a file that holds no evaluation, or a
    task of another family.
    """
    bundle = _exported(given.bundle, folder / "bundle", given.precision)
    manifest = Bundle.open(bundle).manifest
    stored = Measured.read(given.against) if given.against and given.against.suffix == ".json" else None
    reference = _exported(given.against, folder / "reference") if given.against and stored is None else None
    run = Run(
        tasks=_tasks(given, SUITES[manifest.family], manifest.family),
        first=1000 * given.seed,
        scenes=given.scenes,
        steps=given.steps,
        guidance=given.guidance,
        side=given.size or manifest.native_side,
        family=manifest.family,
    )
    kept = None
    if stored is not None:
        check_settings(stored, Measured(run.described() | {"impl": given.backend}, {}))
        beside = given.against.with_suffix(SUFFIX)
        if beside.exists():
            kept = Kept.read(beside, stored.run)
        else:
            print(f"{beside} is missing, so latents and velocities are not compared", file=sys.stderr)
    sides = Sides(
        bundle=bundle,
        backend=given.backend,
        precision=given.precision if bundle == given.bundle else None,
        threads=given.threads,
        reference=reference,
        kept=kept,
    )
    whose = [{"impl": pipe.side, "model": identity(pipe.manifest)} for pipe in sides.open()]
    if given.rows or given.record:
        check_one_model([each["model"] for each in (*whose, *([stored.run] if stored else []))])
    *scores, made = run_scenes(sides, run, given.jobs)
    measured = [Measured(run.described() | who, found) for who, found in zip(whose, scores, strict=False)]
    return measured[0], measured[1] if len(measured) > 1 else stored, made


def _tasks(given: argparse.Namespace, suite: Suite, family: str) -> tuple[str, ...]:
    """Return the tasks to evaluate. Raises: ValueError for one that the bundle's family is not evaluated on."""
    tasks = tuple(given.tasks or (suite.quick if given.quick else suite.tasks))
    if others := [task for task in tasks if task not in suite.tasks]:
        raise ValueError(
            f"--tasks names {', '.join(others)}; of a {family} bundle are evaluated {', '.join(suite.tasks)}"
        )
    return tasks


def _exported(path: Path, target: Path, precision: str | None = None) -> Path:
    """Return the bundle at ``path``, or the one that is made at ``target`` of a checkpoint there."""
    if not is_checkpoint(path):
        return path
    from framert.export.pipeline import export

    return export(path, target, precision=precision or "fp32")


def main() -> int:
    """Run the evaluation or the comparison; 2 for a bundle or a file that cannot be opened or run, which is named."""
    given = arguments()
    try:
        floor = None if given.floor is None else Measured.read(given.floor)
        if given.compare is not None:
            first, *others = [Measured.read(path) for path in given.compare]
            comparisons = [Comparison.of(first, other, floor) for other in others]
            content: dict[str, Any] = {each.impl: each.as_json() for each in comparisons}
            tables = []
        else:
            environment = Environment.capture(ROOT, threads=given.jobs * (given.threads or 1), record=given.rows)
            with tempfile.TemporaryDirectory() as folder:
                measured, reference, made = evaluate(given, Path(folder))
            comparisons = [] if reference is None else [Comparison.of(reference, measured, floor)]
            content = measured.as_json(summary=given.summary)
            if comparisons:
                content[LOSSES] = {each.impl: each.as_json() for each in comparisons}
            tables = [table for table in (format_table(content), format_targets(content)) if table]
            if given.record:
                record(given.bundle, measured, comparisons)
            if given.rows:
                path = environment.append(f"{BENCH}.csv", quality_rows(measured, comparisons, environment))
                print(f"rows appended to {path}", file=sys.stderr)
        if given.json not in (None, "-"):
            text = json.dumps(content, indent=1 if given.summary else None) + "\n"
            Path(given.json).write_text(text, encoding="utf-8")
            if given.against is None and given.compare is None and not given.summary:
                made.write(Path(given.json).with_suffix(SUFFIX), measured.run)
    except (framert.FramertError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json == "-":
        print(json.dumps(content, indent=1))
    else:
        print("\n\n".join([*tables, *map(comparison_table, comparisons)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
