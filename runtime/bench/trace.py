"""Open-loop load: requests that arrive when they arrive, whether or not the earlier ones are done.

A closed loop asks less of a slow server, and so hides its delays. Here every latency counts from the moment at which
the request was due.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from framert.runtime.bench.workload import Kind, Size
from framert.runtime.engine import Engine
from framert.runtime.errors import ConfigError
from framert.runtime.families import DEFAULT, find_task
from framert.runtime.request import Request
from framert.runtime.result import Result

MAX_ARRIVALS = 100_000
DEFAULT_SECONDS = 30.0
FORM = (
    "poisson:rate=2,mix=text_to_image@64x64*3+image_to_depth,seconds=30,deadline=5,seed=0 "
    "(rate in requests per second, or as a share of what could be served one after another, such as 80%; "
    "all but rate may be left out)"
)


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of a mix and its weight; size None is every size of the call."""

    task: str
    size: Size | None
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """An open-loop load. rate: requests per second, or with ``relative`` a share of what one after another would take.

    mix: empty is every kind of the call, equally. seconds: length of the window in which requests arrive.
    deadline: seconds after which a request no longer counts as good; None is three times what its kind takes alone.
    """

    text: str
    rate: float
    relative: bool
    mix: tuple[Part, ...] = ()
    seconds: float = DEFAULT_SECONDS
    deadline: float | None = None
    seed: int = 0
    family: str = DEFAULT

    @classmethod
    def parse(cls, text: str, family: str = DEFAULT) -> "Trace":
        """Read a trace of a family's tasks as FORM shows it. Raises: ConfigError that shows FORM."""
        name, _, rest = text.partition(":")
        pairs = [pair.partition("=") for pair in rest.split(",")]
        values = {key.strip(): value.strip() for key, _, value in pairs}
        known = {"rate", "mix", "seconds", "deadline", "seed"}
        if name != "poisson" or "rate" not in values or set(values) - known or len(values) != len(pairs):
            raise ConfigError(f"the trace is {text!r}; give {FORM}")
        rate, mix = values["rate"], values.get("mix", "all")
        try:
            trace = cls(
                text=text,
                rate=float(rate.removesuffix("%")) / (100 if rate.endswith("%") else 1),
                relative=rate.endswith("%"),
                mix=() if mix == "all" else tuple(_part(part, family) for part in mix.split("+")),
                seconds=float(values.get("seconds", DEFAULT_SECONDS)),
                deadline=float(values["deadline"]) if "deadline" in values else None,
                seed=int(values.get("seed", 0)),
                family=family,
            )
        except ValueError as error:
            raise ConfigError(f"the trace {text!r} holds something that is no number; give {FORM}") from error
        limits = (trace.rate, trace.seconds, *([] if trace.deadline is None else [trace.deadline]))
        if not all(0 < value < float("inf") for value in limits) or trace.seed < 0:
            raise ConfigError(f"the trace {text!r} holds a number that is not above 0; give {FORM}")
        return trace

    def kinds(self, sizes: Sequence[Size], steps: int | None, every: Sequence[Kind]) -> list[tuple[Kind, float]]:
        """Return the kinds of the mix with their weights.

        Args:
            sizes: for parts that name none. steps: of every request. every: the kinds of a mix that is left out.
        """
        if not self.mix:
            return [(kind, 1.0) for kind in every]
        return [
            (Kind(part.task, size, steps, self.family), part.weight)
            for part in self.mix
            for size in ([part.size] if part.size else sizes)
        ]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that is due ``at`` seconds after the start; ``number`` counts those of its kind."""

    at: float
    kind: Kind
    number: int


@dataclass(frozen=True, slots=True)
class Served:
    """What became of an arrival. latency: seconds from when it was due to when its result was there."""

    arrival: Arrival
    latency: float
    result: Result


def arrivals(rate: float, seconds: float, mix: Sequence[tuple[Kind, float]], seed: int) -> list[Arrival]:
    """Return Poisson arrivals within ``seconds``, at least one, their kinds drawn by weight.

    Raises: ConfigError if that is more than MAX_ARRIVALS.
    """
    if rate * seconds > MAX_ARRIVALS:
        raise ConfigError(f"{rate:g} requests/s for {seconds:g} s are too many; give at most {MAX_ARRIVALS} in all")
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / rate, int(rate * seconds + 10 * (rate * seconds) ** 0.5) + 10)
    times = [at for at in np.cumsum(gaps).tolist() if at < seconds] or [0.0]
    weights = np.array([weight for _, weight in mix])
    drawn = random.choice(len(mix), len(times), p=weights / weights.sum()).tolist()
    counts = [0] * len(mix)
    found = []
    for at, index in zip(times, drawn, strict=True):
        found.append(Arrival(at, mix[index][0], counts[index]))
        counts[index] += 1
    return found


def serve(
    engine: Engine,
    due: Sequence[Arrival],
    make: Callable[[Arrival], Request],
    *,
    on_arrival: Callable[[int], None] | None = None,
) -> list[Served]:
    """Submit every arrival when it is due to an engine with a thread of its own, and wait for all results.

    Args:
        make: the request of an arrival, made before the clock starts.
        on_arrival: called after each submission with the number submitted.
    Raises: the first failed request's error.
    """
    requests = [make(arrival) for arrival in due]
    tickets = []
    with engine:
        start = time.perf_counter()
        for arrival, request in zip(due, requests, strict=True):
            time.sleep(max(0.0, start + arrival.at - time.perf_counter()))
            ticket = engine.submit(request)
            tickets.append((arrival, time.perf_counter() - start, ticket))
            if on_arrival:
                on_arrival(len(tickets))
        results = [ticket.result() for _, _, ticket in tickets]
    return [
        Served(arrival, submitted - arrival.at + result.timings["total"], result)
        for (arrival, submitted, _), result in zip(tickets, results, strict=True)
    ]


def _part(text: str, family: str) -> Part:
    """``text_to_image@64x64*3`` -> its task, size and weight. Raises: TaskError, ConfigError, ValueError."""
    kind, _, weight = text.partition("*")
    task, at, size = kind.partition("@")
    find_task(task, family)
    number = float(weight or 1)
    if not 0 < number < float("inf"):
        raise ValueError(weight)
    sides = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    if at and sides is None:
        raise ConfigError(f"the trace's part {text!r} has a wrong size; give TASK@WIDTHxHEIGHT*WEIGHT")
    return Part(task, (int(sides[1]), int(sides[2])) if sides else None, number)
