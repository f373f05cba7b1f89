"""Benchmark rows: what was measured, on what, and at which commit. A row is written by a program, never by hand."""

import csv
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np

from framert.runtime import cpu
from framert.runtime.errors import ConfigError

RESULTS = "benchmarks/results"  # relative to the checkout; the one place that may differ from the commit

# Column of a row -> names under which the package is distributed.
_DISTRIBUTIONS = {
    "torch": ("torch",),
    "triton": ("triton",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a results file.

    impl: the side measured; "A/B" for a metric that ends in ``_ratio``, which is A's divided by B's, pair by pair.
    p20..p99: quantiles of ``n`` samples, in ``unit``. torch..tensorrt: installed versions, empty where absent.
    """

    bench: str
    impl: str
    case: str
    metric: str
    unit: str
    p20: float
    p50: float
    p80: float
    p99: float
    n: int
    threads: int
    device: str
    torch: str
    triton: str
    onnxruntime: str
    openvino: str
    tensorrt: str
    commit: str
    date: str

    def __post_init__(self) -> None:
        if self.metric.endswith("_ratio") != ("/" in self.impl):
            raise ConfigError(
                f"metric {self.metric!r} of impl {self.impl!r}: a ratio's metric ends in _ratio and its impl names "
                "both sides as A/B; nothing else does either"
            )


COLUMNS = tuple(field.name for field in fields(Row))
_CONVERT: dict[str, Callable[[str], Any]] = {field.name: cast(type, field.type) for field in fields(Row)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What every row of one run shares. date: when the run began, UTC, which also names the run."""

    root: Path | None
    threads: int
    device: str
    versions: dict[str, str]
    commit: str
    date: str

    @classmethod
    def capture(
        cls, root: Path | None, *, threads: int, device: str | None = None, record: bool = True
    ) -> "Environment":
        """Describe this machine, its packages and the checkout at ``root``.

        Args:
            root: None where framert is installed without one: its rows have no commit to name.
            threads: threads given to every side.
            device: names the accelerator; None names this machine's CPU.
            record: False for rows that are looked at and not kept: the checkout may be dirty, and none is appended.
        Raises: ConfigError if ``threads`` is below 1, or ``record`` and ``root`` is not a clean checkout, see
            ``clean_commit``.
        """
        if threads < 1:
            raise ConfigError(f"threads is {threads}; give a whole number of at least 1")
        if record and root is None:
            raise ConfigError(
                "rows name the commit they were measured at, and this framert is installed without its repository; "
                "leave out -o (figures are printed, --json has them all), or install a clone with pip install -e"
            )
        return cls(
            root=root,
            threads=threads,
            device=device or cpu_name(),
            versions={column: _version(names) for column, names in _DISTRIBUTIONS.items()},
            commit=clean_commit(root) if record and root is not None else "",
            date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def row(self, *, bench: str, impl: str, case: str, metric: str, unit: str, samples: Sequence[float]) -> Row:
        """Return the row of some samples measured in this environment."""
        p20, p50, p80, p99 = quantiles(samples)
        return Row(
            bench=bench, impl=impl, case=case, metric=metric, unit=unit,
            p20=p20, p50=p50, p80=p80, p99=p99, n=len(samples),
            threads=self.threads, device=self.device, **self.versions, commit=self.commit, date=self.date,
        )  # fmt: skip

    def append(self, name: str, rows: Iterable[Row]) -> Path:
        """Append rows to benchmarks/results/``name`` (or to a path of any other folder) and return that path.

        Raises: ConfigError if the checkout is no longer the clean commit that was measured, the rows are not to be
            kept, or the file there has other columns.
        """
        if not self.commit or self.root is None:
            raise ConfigError("these rows were measured with record=False; measure again from a clean checkout")
        if (now := clean_commit(self.root)) != self.commit:
            raise ConfigError(f"the checkout moved from {self.commit} to {now} during the run; run it again")
        path = Path(name)
        path = path if path.is_absolute() else self.root / RESULTS / path
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists() or not path.stat().st_size
        if not new:
            read(path)
        with path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in asdict(row).items()} for row in rows)
        return path


def quantiles(samples: Sequence[float]) -> tuple[float, float, float, float]:
    """Return p20, p50, p80 and p99, interpolated linearly between samples.

    Raises: ConfigError if there is no sample, or one is not finite.
    """
    values = np.asarray(samples, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ConfigError(f"quantiles need finite samples, got {list(samples)}")
    p20, p50, p80, p99 = (float(value) for value in np.quantile(values, [0.2, 0.5, 0.8, 0.99]))
    return p20, p50, p80, p99


def read(path: Path) -> list[Row]:
    """Return the rows of a results file, oldest first.

    Raises: ConfigError if the file has other columns or a damaged line.
    """
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(f"{path} has the columns {reader.fieldnames}, not {','.join(COLUMNS)}; move it away")
        try:
            return [Row(**{name: convert(line[name]) for name, convert in _CONVERT.items()}) for line in reader]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path} has a damaged line ({error}); restore it from git") from error


def latest(rows: Iterable[Row], bench: str) -> list[Row]:
    """Return the rows of ``bench``'s last run: all that share the newest date."""
    mine = [row for row in rows if row.bench == bench]
    newest = max((row.date for row in mine), default="")
    return [row for row in mine if row.date == newest]


def newest(rows: Iterable[Row], bench: str) -> list[Row]:
    """Return, of ``bench``'s rows, the newest of each impl, case and metric: a run may measure one side."""
    found: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row.impl, row.case, row.metric)
        if row.bench == bench and (key not in found or row.date >= found[key].date):
            found[key] = row
    return list(found.values())


def clean_commit(root: Path) -> str:
    """Return the short commit of the checkout at ``root``.

    Raises: ConfigError if it is not a git checkout, or differs from its commit outside benchmarks/results: a row
        would then name code that nobody else can see.
    """
    changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", ".", f":(exclude){RESULTS}")
    if changed:
        names = ", ".join(line[3:] for line in changed.splitlines()[:5])
        raise ConfigError(f"{root} differs from its commit ({names}); commit or stash it, or measure a fresh clone")
    return _git(root, "rev-parse", "--short=12", "HEAD").strip()


def checkout() -> Path | None:
    """Return the folder of the repository this framert runs from; None where it was installed without one."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / ".git").exists() and (root / RESULTS).is_dir() else None


def cpu_name() -> str:
    """Return the CPU's model and the logical cores this process may use, such as "AMD EPYC (2 cores)"."""
    return f"{cpu.cpu_name()} ({cpu.cpu_cores()} cores)"


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, encoding="utf-8"
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"{root} is not a git checkout, and a row names its commit; clone the repository") from error
    return done.stdout


def _version(names: Sequence[str]) -> str:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
