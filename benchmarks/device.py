"""Timing on an accelerator: sides in turn by events on the device, and what the scripts for GPUs share."""

import argparse
import gc
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from framert.runtime.bench.rows import Environment, Row
from framert.runtime.errors import FramertError

ROOT = Path(__file__).resolve().parents[1]
BURST_SECONDS = 2e-3  # short calls are repeated to at least this, so that events can tell them apart

# Sides that may be missing: what is not installed, or not made for a device or a size.
OTHERS = ("sdpa", "flex", "flash", "eager", "compiled", "hoisted", "framert-fp8", "norm_modulate-fp8", "swiglu-fp8",
          "quantize_rows-fp8", "gemm-fp8", "gemm-int8")  # fmt: skip
Side = Callable[[], object]


@dataclass(slots=True)
class Bench:
    """One run of a script. tiny: every path on small sizes, nothing worth keeping. budget: seconds for all of it."""

    name: str
    device: torch.device
    tiny: bool
    rounds: int
    environment: Environment
    budget: float
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    begin: float = field(default_factory=time.perf_counter)

    @property
    def impl(self) -> str:
        """How framert's kernels run here."""
        return "auto" if self.device.type == "cuda" else "reference"

    def left(self) -> float:
        """Return the seconds that are left of the budget."""
        return self.budget - (time.perf_counter() - self.begin)

    def say(self, line: str) -> None:
        print(f"[{time.perf_counter() - self.begin:5.0f} s] {line}", file=sys.stderr, flush=True)

    def add(self, impl: str, case: str, metric: str, unit: str, samples: list[float]) -> None:
        """Note a row and print it."""
        row = self.environment.row(bench=self.name, impl=impl, case=case, metric=metric, unit=unit, samples=samples)
        self.rows.append(row)
        print(f"{case:46} {impl:40} {metric:16} {row.p50:10.4g} {unit:9} ({row.p20:.4g} to {row.p80:.4g})", flush=True)

    def leave_out(self, side: str, case: str, reason: str) -> None:
        """Say why a side is not measured; one of framert's own fails the run."""
        self.say(f"left out: {side} at {case}: {reason}")
        if not side.startswith(OTHERS):
            self.failures.append(f"{side} at {case}: {reason}")

    def build(self, sides: Mapping[str, Callable[[], Side]], case: str) -> dict[str, Side]:
        """Return the sides that can be built and run here; say of the others why not."""
        built: dict[str, Side] = {}
        for name, make in sides.items():
            try:
                side = make()
                side()
                self.wait()
                built[name] = side
            except Exception as error:  # compilers and libraries raise types of their own
                lines = str(error).strip().splitlines() or [type(error).__name__]
                self.leave_out(name, case, lines[0][:160])
                self.free()
        return built

    def seconds(self, sides: Mapping[str, Side], *, captured: bool = False) -> dict[str, list[float]]:
        """Return seconds per call of every side; entry i of each belongs to round i, every other round reversed.

        captured: replay the calls from a CUDA graph, as a step does, or the host's time to launch a short kernel would
            be taken for the kernel's. A side that cannot be captured is left out.
        """
        repeats = {name: self._repeats(side) for name, side in sides.items()}
        bursts = {name: self._repeated(side, repeats[name]) for name, side in sides.items()}
        if captured and self.device.type == "cuda":
            bursts = self.build({name: lambda burst=burst: _graph(burst) for name, burst in bursts.items()}, "a graph")
        found: dict[str, list[float]] = {name: [] for name in bursts}
        for turn in range(self.rounds):
            for name in list(bursts) if turn % 2 == 0 else reversed(list(bursts)):
                found[name].append(self._timed(bursts[name]) / repeats[name])
        return found

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Give back what nobody holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _repeats(self, side: Side) -> int:
        for _ in range(1 if self.tiny else 3):
            once = self._timed(side)
        return 1 if self.tiny else max(1, int(BURST_SECONDS / max(once, 1e-6)))

    @staticmethod
    def _repeated(side: Side, repeats: int) -> Side:
        def burst() -> None:
            for _ in range(repeats):
                side()

        return burst

    def _timed(self, burst: Side) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            burst()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        burst()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000


def _graph(burst: Side) -> Side:
    """Return what replays the burst, which has run before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        burst()
    return graph.replay


def file_of(device: str) -> str:
    """Return the results file of a device: "NVIDIA H200" is "h200.csv"."""
    name = re.sub(r"nvidia|geforce|graphics|device|generation", "", device.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") + ".csv"


def run(name: str, description: str, measure: Callable[[Bench], None], arguments: list[str] | None = None) -> int:
    """Parse the options that both scripts take, measure, and append the rows."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes: runs every path, writes no rows")
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds of each side (default 11)")
    parser.add_argument("--budget", type=float, default=420, help="seconds, beyond which sides are left out (420)")
    parser.add_argument("--dry-run", action="store_true", help="print the figures, write no rows")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device; --device cpu --tiny runs every path without one", file=sys.stderr)
        return 2
    if options.device == "cpu" and not options.tiny:
        print("error: on the CPU these figures say nothing; give --tiny to run every path", file=sys.stderr)
        return 2
    device = torch.device("cpu") if options.device == "cpu" else torch.device("cuda", torch.cuda.current_device())
    model = torch.cuda.get_device_name(device) if options.device == "cuda" else None
    keep = not (options.dry_run or options.tiny)
    try:
        environment = Environment.capture(ROOT, threads=torch.get_num_threads(), device=model, record=keep)
        bench = Bench(name, device, options.tiny, options.rounds, environment, options.budget)
        torch.manual_seed(0)
        with torch.inference_mode():
            measure(bench)
        if keep:
            bench.say(f"rows appended to {environment.append(file_of(environment.device), bench.rows)}")
        for failure in bench.failures:
            print(f"error: {failure}", file=sys.stderr)
        return 1 if bench.failures else 0
    except FramertError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
