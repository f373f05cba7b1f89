"""Size, memory, speed and quality of every precision of the bundled model on this machine's CPU backends.

    python benchmarks/bench_precision.py [--sides onnxruntime-fp32 openvino-bf16 ...] [--full] [--dry-run]
    python benchmarks/bench_precision.py --only quality --scenes 32 --steps 12

A side is BACKEND-PRECISION, or BACKEND-EXPORTED+COMPUTED. models/blocks is exported once per exported precision; then
``framert bench`` appends to results/serve.csv and evaluate.py, paired with fp32 scene by scene, to results/quality.csv:
each side as soon as it is measured. fp32 comes first and runs once. Behind bf16, its loss stands beside every other as
the floor. Five tasks on 32 scenes in 12 steps; with --scenes or --steps every task, with --full on 200 scenes in 30
steps. Quality does not mind what else the machine does, times do: --only quality. report.py makes the table.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from framert.runtime.bench.rows import RESULTS, clean_commit
from framert.runtime.errors import FramertError

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "onnxruntime-fp32"
FLOOR = "openvino-bf16"  # whose loss counts as noise
SIDES = (REFERENCE, "openvino-bf16", "onnxruntime-int8", "openvino-int8", "openvino-int8+bf16", "onnxruntime-int4")
COMPUTED = ("bf16", "fp16")  # what a CPU backend computes in without its bundle being exported so
TASKS = ("text_to_image", "image_to_depth", "image_to_multiview")
TRACE = "poisson:rate=80%,seconds=10"


@dataclass(frozen=True, slots=True)
class Side:
    """exported: the word for framert export; computed: the word for the backend, None for its own."""

    name: str
    backend: str
    exported: str
    computed: str | None

    @classmethod
    def parse(cls, name: str) -> "Side":
        """Read "openvino-int8+bf16". Raises: ValueError."""
        backend, _, rest = name.partition("-")
        exported, _, computed = rest.partition("+")
        if not backend or not exported or (exported in COMPUTED and computed):
            raise ValueError(f"{name!r} is no side; give such as {', '.join(SIDES[:3])}")
        if exported in COMPUTED:
            exported, computed = "fp32", exported
        return cls(name, backend, exported, computed or None)

    @property
    def options(self) -> list[str]:
        """For ``framert bench`` and evaluate.py alike."""
        return ["--backend", self.backend, *(["--precision", self.computed] if self.computed else [])]


def commands(side: Side, folder: Path, options: argparse.Namespace) -> list[list[str]]:
    """Return the command lines that measure one side, whose bundle lies in ``folder``."""
    bundle, reference = folder / f"{side.exported}.bundle", folder / "fp32.bundle"
    against = [] if side.name == REFERENCE else [str(reference)]
    serve = [sys.executable, "-m", "framert", "bench", str(bundle), *side.options, "--tasks", *TASKS]
    serve += ["--steps", "12", "--rounds", "3", "--together", "4", "--trace", TRACE]
    serve += ["--gate", "10"]  # quality is judged by the evaluation, which says by how much and of what
    serve += ["--reference", *against] if against else []
    evaluate = [sys.executable, str(ROOT / "benchmarks" / "blocks" / "evaluate.py"), str(bundle), *side.options]
    chosen = [
        word for name in ("scenes", "steps") if (value := getattr(options, name)) for word in (f"--{name}", str(value))
    ]
    evaluate += chosen if chosen or options.full else ["--quick"]
    evaluate += ["--json", str(folder / f"{side.name}.json")]
    if against:
        evaluate += ["--against", str(folder / f"{REFERENCE}.json")]
        floor = folder / f"{FLOOR}.json"
        evaluate += ["--floor", str(floor)] if side.name != FLOOR and floor.exists() else []
    if not options.dry_run:
        serve += ["-o", str(ROOT / RESULTS / "serve.csv")]
        evaluate += ["--rows"]
    return {"serve": [serve], "quality": [evaluate]}.get(options.only, [serve, evaluate])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", default=SIDES, metavar="SIDE", help=f"default {' '.join(SIDES)}")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "blocks", help="default models/blocks")
    parser.add_argument("--full", action="store_true", help="every task, 200 scenes, 30 steps")
    parser.add_argument("--scenes", type=int, help="of every task")
    parser.add_argument("--steps", type=int, help="of every task")
    parser.add_argument("--only", choices=("serve", "quality"), help="one of the two files of rows")
    parser.add_argument("--dry-run", action="store_true", help="print the figures, write no rows")
    options = parser.parse_args()
    try:
        sides = [Side.parse(name) for name in dict.fromkeys([REFERENCE, *options.sides])]
        if options.full and (options.scenes or options.steps):
            raise ValueError("--full is 200 scenes in 30 steps; give it, or --scenes and --steps")
        if not options.dry_run:
            clean_commit(ROOT)  # before an hour of work rather than after
        with tempfile.TemporaryDirectory() as folder:
            for exported in dict.fromkeys(["fp32", *(side.exported for side in sides)]):
                target = str(Path(folder) / f"{exported}.bundle")
                export = [sys.executable, "-m", "framert", "export", str(options.checkpoint), "-o", target, "--quiet"]
                _run([*export, "--precision", exported])
            for number, side in enumerate(sides, 1):
                print(f"== {side.name} ({number}/{len(sides)})", file=sys.stderr, flush=True)
                for command in commands(side, Path(folder), options):
                    _run(command)
    except (FramertError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:  # it has said why
        print(f"error: {' '.join(error.cmd[1:4])} ended with {error.returncode}", file=sys.stderr)
        return 1
    return 0


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
