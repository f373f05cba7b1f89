"""How long TensorRT takes to build the engines of a bundle, how large they are, and how much memory that takes.

python benchmarks/bench_build.py               models/blocks: six precisions, three targets, two attentions, what exists
python benchmarks/bench_build.py --bundle B --target sm_87 --backend tensorrt --precision fp16

Every build runs in a process of its own, whose peak resident memory is a row. They go to benchmarks/results/build.csv.
int8, fp8 and int4 are exported from models/blocks first, denoiser and text encoder in that precision and the rest in
fp16; precisions that a target lacks are left out.
"""

import argparse
import multiprocessing
import os
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import framert
from framert.export.tensorrt.builder import ATTENTION, Built, Options, build
from framert.export.tensorrt.targets import PRECISIONS
from framert.runtime.bench.memory import peak_resident
from framert.runtime.bench.rows import Environment, Row
from framert.runtime.errors import FramertError
from framert.runtime.profiles import Capacity

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = ROOT / "models" / "blocks.bundle.tar.xz"
BENCH = "build"
MIB = 1 << 20
QUANTIZED = ("int8", "fp8", "int4")


def build_alone(
    bundle: Path, target: str, backend: str, precision: str | None, attention: str, capacity: Capacity
) -> tuple[list[Built], float]:
    """Build in a process of its own; return its engines and its peak resident memory in bytes.

    Raises: what ``build`` raises.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_build, (bundle, target, backend, precision, attention, capacity))


def _build(
    bundle: Path, target: str, backend: str, precision: str | None, attention: str, capacity: Capacity
) -> tuple[list[Built], float]:
    with tempfile.TemporaryDirectory() as folder:
        built = build(
            bundle,
            Path(folder) / "engines",
            targets=[target],
            backend=backend,
            precision=precision,
            capacity=capacity,
            options=Options(attention=attention),
            progress=False,
        )
    return built, float(peak_resident() or 0)  # getrusage would give a parent's peak, which a child inherits


def measure(
    bundle: Path,
    name: str,
    target: str,
    precision: str,
    environment: Environment,
    *,
    backend: str,
    attention: str,
    capacity: Capacity,
    rounds: int,
) -> list[Row]:
    """Return the rows of one target and precision: seconds and size of each engine, peak memory of all.

    precision: "as-is", what is cast to ("fp16", "bf16"), or what the bundle's products are in already.
    """
    cast = None if precision == "as-is" else "fp16" if precision in QUANTIZED else precision
    runs = [build_alone(bundle, target, backend, cast, attention, capacity) for _ in range(rounds)]
    case = f"{name} {precision.replace('-', ' ')} {target} {attention}"

    def row(part: str, metric: str, unit: str, samples: Sequence[float]) -> Row:
        return environment.row(
            bench=BENCH, impl=backend, case=f"{case} {part}", metric=metric, unit=unit, samples=samples
        )

    rows = []
    for index, one in enumerate(runs[0][0]):
        rows.append(row(one.graph, "build", "s", [built[index].seconds for built, _ in runs]))
        rows.append(row(one.graph, "engine", "MiB", [built[index].size / MIB for built, _ in runs]))
    rows.append(row("all", "build", "s", [sum(one.seconds for one in built) for built, _ in runs]))
    rows.append(row("all", "peak_memory", "MiB", [peak / MIB for _, peak in runs]))
    rows.append(row("all", "plugins", "layers", [sum(one.plugins for one in runs[0][0])]))
    return rows


def quantized(folder: Path, word: str) -> Path:
    """Export models/blocks with denoiser and text encoder in 8 or 4 bits, in the form that TensorRT takes."""
    from framert.export.pipeline import export

    parts = {"denoiser": word, "text_encoder": word}
    return export(
        ROOT / "models" / "blocks", folder / f"{word}.bundle", precision=parts, target="tensorrt", check=False,
        progress=False,
    )  # fmt: skip


def exists(precision: str, targets: Sequence[str], attention: str, backend: str) -> bool:
    """Return whether all of these targets have a precision, and the backend this form of attention."""
    if attention == "aot" and backend != "tensorrt":
        return False
    return precision == "as-is" or all(precision in PRECISIONS.get(target, ()) for target in targets)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle of ONNX graphs (default: models/blocks)")
    parser.add_argument("--target", action="append", help="compute capability (default: sm_86, sm_89, sm_120)")
    parser.add_argument("--backend", default="tensorrt-rtx", help="tensorrt or tensorrt-rtx (default)")
    parser.add_argument("--precision", action="append", help="as-is, fp16, bf16, int8, fp8 or int4 (default: all)")
    parser.add_argument(
        "--attention", action="append", choices=[one for one in ATTENTION if one != "library"],
        help="default: padded and plugin",
    )  # fmt: skip
    parser.add_argument("--tokens", type=int, action="append", help="token bucket (default: those of framert build)")
    parser.add_argument("--rounds", type=int, default=1, help="builds of each (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the figures, write no rows")
    options = parser.parse_args()
    if not Path(framert.__file__).resolve().is_relative_to(ROOT):
        print(f"error: framert is imported from {framert.__file__}, not from this checkout", file=sys.stderr)
        return 2
    capacity = Capacity(tokens=tuple(options.tokens)) if options.tokens else Capacity()
    try:
        environment = Environment.capture(ROOT, threads=os.cpu_count() or 1, record=not options.dry_run)
        with tempfile.TemporaryDirectory() as folder:
            targets = options.target or ["sm_86", "sm_89", "sm_120"]
            rows: list[Row] = []
            for precision in options.precision or ["as-is", "fp16", "bf16", *QUANTIZED]:
                wanted = [
                    (target, attention)
                    for target, attention in product(targets, options.attention or ["padded", "plugin"])
                    if exists(precision, [target], attention, options.backend)
                ]
                if not wanted:
                    continue
                bundle = options.bundle or _blocks(Path(folder), precision)
                for target, attention in wanted:
                    made = measure(
                        bundle,
                        options.bundle.stem if options.bundle else "blocks",
                        target,
                        precision,
                        environment,
                        backend=options.backend,
                        attention=attention,
                        capacity=capacity,
                        rounds=options.rounds,
                    )
                    print(*(f"{r.case:48} {r.metric:12} {r.p50:10.4g} {r.unit}" for r in made), sep="\n", flush=True)
                    rows += made
        if not options.dry_run:
            print(f"rows appended to {environment.append(f'{BENCH}.csv', rows)}", file=sys.stderr)
    except FramertError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _blocks(folder: Path, precision: str) -> Path:
    """Return models/blocks as a bundle: the committed one, or one exported in a quantized precision."""
    if precision in QUANTIZED:
        return quantized(folder, precision)
    with tarfile.open(BLOCKS) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        archive.extractall(folder)
    return next(one for one in folder.iterdir() if one.stem not in QUANTIZED)


if __name__ == "__main__":
    sys.exit(main())
