"""What ``framert bench`` measures of a bundle: start, latency alone, throughput packed, an open-loop trace; and beside
each how near the pictures are to a reference's. Every figure becomes a row.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from framert.runtime.bench import quality
from framert.runtime.bench.alternate import alternate, rate_ratios
from framert.runtime.bench.energy import EnergyMeter
from framert.runtime.bench.memory import peak_resident, reset_peak
from framert.runtime.bench.plan import Plan, identity
from framert.runtime.bench.rows import Environment, Row
from framert.runtime.bench.trace import Served, Trace, arrivals, serve
from framert.runtime.bench.workload import Kind, request
from framert.runtime.engine import Engine
from framert.runtime.job import prepare
from framert.runtime.pipeline import Pipeline
from framert.runtime.request import StepInfo
from framert.runtime.result import Result

BENCH = "serve"
PATIENCE = 3.0  # a trace's deadline, in times of what the request takes alone
COMPARED = 2  # results of each kind and mode that are kept for the comparison: the warm-up's, with seeds 0 and 1
FIRST, TIMED, PACKED, ALONE = (1_000_000 * part for part in range(1, 5))  # where the seeds of the others start

Opener = Callable[[], Pipeline]
Say = Callable[[str], None]
Mode = tuple[str, Kind]  # "alone", "packed" or "trace", and what was asked for


@dataclass(frozen=True, slots=True)
class Report:
    """The rows of one run. failures: a line for each median PSNR below the gate; the speeds are then of no use."""

    rows: list[Row]
    failures: list[str]


@dataclass(slots=True)
class _Run:
    """One bundle under measurement."""

    plan: Plan
    pipe: Pipeline
    environment: Environment
    meter: EnergyMeter
    say: Say
    rows: list[Row] = field(default_factory=list)
    kept: dict[tuple[Mode, int], Result] = field(default_factory=dict)

    def add(self, case: str, metric: str, unit: str, samples: Sequence[float], impl: str | None = None) -> None:
        """Note a row; one of no samples is left out."""
        if samples:
            case = f"{case}; {identity(self.pipe.manifest)}"
            made = self.environment.row(
                bench=BENCH, impl=impl or self.pipe.side, case=case, metric=metric, unit=unit, samples=samples
            )
            self.rows.append(made)

    def keep(self, mode: str, kind: Kind, number: int, result: Result) -> None:
        if number < COMPARED:
            self.kept[(mode, kind), number] = result


def measure(
    open_bundle: Opener, open_reference: Opener | None, plan: Plan, environment: Environment, say: Say
) -> Report:
    """Measure a bundle and compare its pictures with a reference's.

    Args:
        open_bundle: opens what is measured; its time is measured too.
        open_reference: opens what pictures are compared with, run alone, after everything was timed; None compares
            the bundle's own packed pictures with those it makes alone.
        say: takes lines of progress.
    Raises: FramertError if a request fails or does not fit the bundle; nothing was timed then.
    """
    pipe, loaded = _start(open_bundle, plan, say)
    with EnergyMeter() as meter:
        run = _Run(plan, pipe, environment, meter, say)
        for metric, seconds in loaded.items():
            run.add("start", metric, "s", [seconds])
        alone = _latency(run)
        _throughput(run)
        if (peak := peak_resident()) is not None:
            run.add(
                f"load, alone and packed: {', '.join(map(str, plan.all_kinds))}", "peak_resident", "MiB", [peak / 2**20]
            )
        if plan.trace is not None:
            _trace(run, plan.trace, alone)
    run.add("files", "bundle_size", "MB", [sum(file.size for file in pipe.manifest.files.values()) / 1e6])
    return Report(run.rows, _compare(run, open_reference))


def _start(open_bundle: Opener, plan: Plan, say: Say) -> tuple[Pipeline, dict[str, float]]:
    """Open the bundle, check every request, and run the first one to its first step."""
    reset_peak()
    say("loading")
    begin = time.perf_counter()
    pipe = open_bundle()
    loaded = time.perf_counter() - begin
    for kind in plan.all_kinds:
        prepare(request(kind, FIRST), pipe.manifest)
    steps: list[float] = []
    begin = time.perf_counter()

    def on_step(_: StepInfo) -> None:
        steps.append(time.perf_counter() - begin)

    pipe.engine().submit(replace(request(plan.kinds[0], FIRST), on_step=on_step)).result()
    return pipe, {"load": loaded, "load_to_first_step": loaded + steps[0]}


def _latency(run: _Run) -> dict[Kind, float]:
    """Time each kind alone, one request at a time; return the medians."""
    engine = run.pipe.engine()
    joules: dict[Kind, list[float]] = {kind: [] for kind in run.plan.all_kinds}
    calls = dict.fromkeys(run.plan.all_kinds, 0)

    def one(kind: Kind) -> Callable[[], None]:
        def call() -> None:
            number = calls[kind]
            seed = number if number < COMPARED else TIMED + number
            before = run.meter.read()
            result = engine.submit(request(kind, seed)).result()
            if number >= COMPARED and before is not None:
                joules[kind].append((run.meter.read() or 0.0) - before)
            run.keep("alone", kind, number, result)
            calls[kind] += 1

        return call

    rounds = run.plan.rounds
    seconds = alternate(
        {str(kind): one(kind) for kind in run.plan.all_kinds},
        rounds=rounds,
        warmup=COMPARED,
        on_round=lambda done: run.say(f"latency: round {done} of {rounds}"),
    )
    for kind in run.plan.all_kinds:
        run.add(f"alone: {kind}", "latency", "s", seconds[str(kind)])
        run.add(f"alone: {kind}", "energy", "J/request", joules[kind])
    return {kind: float(np.median(seconds[str(kind)])) for kind in run.plan.all_kinds}


def _throughput(run: _Run) -> None:
    """Time the kinds of the call in turn, all at once and one after another."""
    engine, kinds, together = run.pipe.engine(), run.plan.kinds, run.plan.together
    asked = [(kinds[index % len(kinds)], index // len(kinds)) for index in range(together)]
    each = -(-together // len(kinds))
    joules: list[float] = []
    turns = {"packed": 0, "alone": 0}  # the first of each is the warm-up

    def packed() -> None:
        turn = turns["packed"]
        first = PACKED + turn * each if turn else 0
        before = run.meter.read()
        tickets = [engine.submit(request(kind, first + number)) for kind, number in asked]
        results = [ticket.result() for ticket in tickets]
        if turn and before is not None:
            joules.append(((run.meter.read() or 0.0) - before) / together)
        if not turn:
            for (kind, number), result in zip(asked, results, strict=True):
                run.keep("packed", kind, number, result)
        turns["packed"] += 1

    def alone() -> None:
        first = ALONE + turns["alone"] * each
        for kind, number in asked:
            engine.submit(request(kind, first + number)).result()
        turns["alone"] += 1

    rounds = run.plan.rounds
    seconds = alternate(
        {"packed": packed, "alone": alone},
        rounds=rounds,
        warmup=1,
        on_round=lambda done: run.say(f"throughput: round {done} of {rounds}"),
    )
    case = f"{together} requests of {', '.join(map(str, kinds))}"
    for side, times in seconds.items():
        run.add(f"{side}: {case}", "throughput", "requests/s", [together / each_time for each_time in times])
    run.add(f"packed: {case}", "energy", "J/request", joules)
    ratios = rate_ratios(seconds, "packed", "alone")
    run.add(case, "rate_ratio", "x", ratios, f"{run.pipe.side} packed/{run.pipe.side} alone")


def _trace(run: _Run, trace: Trace, alone: dict[Kind, float]) -> None:
    """Serve the trace and note latency, goodput and what was offered. alone: seconds of each kind by itself."""
    mix = run.plan.mix
    mean = sum(weight * alone[kind] for kind, weight in mix) / sum(weight for _, weight in mix)
    due = arrivals(trace.rate / mean if trace.relative else trace.rate, trace.seconds, mix, trace.seed)
    run.say(f"trace: {len(due)} requests in {trace.seconds:g} s")

    def submitted(done: int) -> None:
        if done % 10 == 0:
            run.say(f"trace: {done} of {len(due)} submitted")

    served = serve(
        run.pipe.engine(),
        due,
        lambda arrival: request(arrival.kind, arrival.number),
        on_arrival=submitted,
    )
    for each in served:
        run.keep("trace", each.arrival.kind, each.arrival.number, each.result)

    def good(each: Served) -> bool:
        return each.latency <= (trace.deadline or PATIENCE * alone[each.arrival.kind])

    met = sum(map(good, served))
    span = max(trace.seconds, max(each.arrival.at + each.latency for each in served))
    limit = f"{trace.deadline:g} s" if trace.deadline else f"{PATIENCE:g} times its latency alone"
    case = f"trace: {trace.text}, deadline {limit}"
    run.add(case, "latency", "s", [each.latency for each in served])
    run.add(case, "goodput", "requests/s", [met / span])
    run.add(case, "offered", "requests/s", [len(due) / trace.seconds])
    run.add(case, "in_time", "share", [met / len(served)])


def _compare(run: _Run, open_reference: Opener | None) -> list[str]:
    """Note the PSNR of what was kept against the reference; return a line for each median below the gate."""
    wanted = list(dict.fromkeys((kind, number) for (_, kind), number in run.kept))
    if open_reference is None:
        expected = {(kind, number): run.kept.get((("alone", kind), number)) for kind, number in wanted}
        name = "the same bundle alone"
    else:
        reference = open_reference()
        engine: Engine = reference.engine()
        expected = {}
        for done, (kind, number) in enumerate(wanted, 1):
            run.say(f"reference: {done} of {len(wanted)}")
            expected[kind, number] = engine.submit(request(kind, number)).result()
        name = f"{reference.side} of {identity(reference.manifest)}"
    failures = []
    for mode in ("alone", "packed", "trace") if open_reference else ("packed", "trace"):
        for kind in run.plan.all_kinds:
            values = [
                quality.psnr(result, truth)
                for ((made_in, made), number), result in run.kept.items()
                if (made_in, made) == (mode, kind) and (truth := expected[kind, number]) is not None
            ]
            run.add(f"{mode}: {kind}, against {name}", "psnr", "dB", values)
            if values and (median := float(np.median(values))) < run.plan.gate:
                failures.append(f"{mode}: {kind}: PSNR {median:.1f} dB against {name}, {run.plan.gate:g} dB asked for")
    return failures
