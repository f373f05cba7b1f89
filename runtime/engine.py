"""The one loop behind everything: pick, build tables, call the denoiser once, retire."""

import threading
import time
from dataclasses import dataclass

import numpy as np
from PIL.Image import Image

from framert.runtime import result, sequence
from framert.runtime.backends.base import Backend
from framert.runtime.bundle import Bundle
from framert.runtime.components import Components, clocked
from framert.runtime.config import DEFAULT_PACK_TOKENS, EngineConfig
from framert.runtime.errors import ConfigError
from framert.runtime.images import to_picture
from framert.runtime.job import Job, prepare
from framert.runtime.pack import Pack
from framert.runtime.request import Request, StepInfo
from framert.runtime.scheduler import Scheduler
from framert.runtime.sequence import Sequence
from framert.runtime.store import ConditioningStore
from framert.runtime.ticket import Ticket

PREVIEW_SIDE = 16  # latent pixels: previews are decoded at most this large


@dataclass(slots=True, eq=False)
class _Entry:
    """A submitted request on its way: waiting while ``state`` is None."""

    job: Job
    ticket: Ticket
    submitted: float
    state: Sequence | None = None

    @property
    def tokens(self) -> int:
        return self.job.tokens


class Engine:
    """Runs many requests together: at different steps, sizes, tasks, solvers and guidance, in shared calls.

    Usable from several threads. Whoever waits for a result drives the loop, unless ``start`` gave it a thread.

    Args:
        bundle: an opened bundle. backend: runs its graphs. components: the graphs around the denoiser.
        config: limits.
    """

    def __init__(self, bundle: Bundle, backend: Backend, components: Components, config: EngineConfig) -> None:
        self._manifest = bundle.manifest
        self._config = config
        self._components = components
        denoiser = backend.denoiser()
        self._store = ConditioningStore(components, denoiser)
        self._pack = Pack(denoiser, bundle.manifest.guidance_branches)
        self._scheduler: Scheduler[_Entry] = Scheduler(config.max_tokens or DEFAULT_PACK_TOKENS)
        self._running: list[_Entry] = []
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._stopping = False

    def submit(self, request: Request) -> Ticket:
        """Check a request and queue it. Raises: TaskError, ConfigError, ImageError or ShapeError at once."""
        job = prepare(request, self._manifest)
        limit = self._config.max_tokens
        if limit is not None and job.tokens > limit:
            raise ConfigError(
                f"this request needs {job.tokens} tokens per call, this engine takes {limit}; "
                "give a smaller size or fewer frames, or make the engine with a larger max_tokens"
            )
        ticket = Ticket(self._drive)
        with self._work:
            self._scheduler.add(_Entry(job, ticket, time.perf_counter()))
            self._work.notify_all()
        return ticket

    def step(self) -> bool:
        """Run one denoiser call for everything that is ready; return whether work is left.

        A request that fails gives its error to its own ticket; the others go on.
        """
        with self._lock:
            self._drop_cancelled()
            self._admit()
            if self._running:
                self._call(list(self._running))
            return bool(self._running or len(self._scheduler))

    def start(self) -> None:
        """Step in a background thread until ``stop``, for applications that only submit and wait."""
        with self._lock:
            if self._thread is None:
                self._stopping = False
                self._thread = threading.Thread(target=self._loop, name="framert-engine", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the background thread after its current call; unfinished requests stay and can be driven again."""
        with self._work:
            thread, self._thread, self._stopping = self._thread, None, True
            self._work.notify_all()
        if thread is not None:
            thread.join()

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _loop(self) -> None:
        while True:
            with self._work:
                while not self._stopping and not self._running and not len(self._scheduler):
                    self._work.wait()
                if self._stopping:
                    return
            self.step()

    def _drive(self, ticket: Ticket, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while not ticket.done and (end is None or time.monotonic() < end):
            if self._thread is not None:
                ticket.wait(0.1 if end is None else max(0.0, min(0.1, end - time.monotonic())))
            else:
                self.step()

    def _drop_cancelled(self) -> None:
        for entry in [entry for entry in self._scheduler.items() if entry.ticket.cancelled]:
            self._scheduler.remove(entry)
            entry.ticket.drop()
        for entry in [entry for entry in self._running if entry.ticket.cancelled]:
            self._leave(entry)
            entry.ticket.drop()

    def _admit(self) -> None:
        while (entry := self._scheduler.next(sum(other.tokens for other in self._running))) is not None:
            try:
                entry.state = sequence.start(entry.job, self._components, self._store)
            except Exception as error:  # whatever it is belongs to this request's caller
                entry.ticket.fail(error)
            else:
                self._running.append(entry)

    def _call(self, entries: list[_Entry]) -> None:
        clock: dict[str, float] = {}
        try:
            with clocked(clock, "denoiser"):
                self._pack.step([_state(entry) for entry in entries])
        except Exception as error:  # one member may have broken the call for all
            self._split(entries, error)
            return
        for entry in entries:
            state = _state(entry)
            state.seconds["denoiser"] = state.seconds.get("denoiser", 0.0) + clock["denoiser"]
            try:
                self._report(entry, state)
                if state.done:
                    self._finish(entry, state)
            except Exception as error:
                self._leave(entry)
                entry.ticket.fail(error)

    def _split(self, entries: list[_Entry], error: Exception) -> None:
        """After a failed call: a lone request gets the error; of several, each makes this call alone."""
        if len(entries) == 1:
            self._leave(entries[0])
            entries[0].ticket.fail(error)
            return
        for entry in entries:
            self._call([entry])

    def _report(self, entry: _Entry, state: Sequence) -> None:
        call = entry.job.evaluations[state.call - 1]
        on_step = entry.job.request.on_step
        if on_step is None or call.interval is None:
            return

        def preview() -> list[Image]:
            with self._lock:
                return self._preview(state, call.after)

        on_step(StepInfo(call.interval + 1, entry.job.schedule.steps, call.after, preview))

    def _preview(self, state: Sequence, sigma: float) -> list[Image]:
        tokens = self._pack.latents(state) - np.float32(sigma) * self._pack.velocity(state)
        kinds = zip(state.job.composition.kinds, state.job.composition.mask, strict=True)
        pictures = [kind != "rays" for kind, generate in kinds if generate]
        stride = -(-max(state.job.shape[2:]) // PREVIEW_SIDE)
        return [
            to_picture(self._components.decode(frame[:, ::stride, ::stride], {}))
            for frame, wanted in zip(state.generated(tokens), pictures, strict=True)
            if wanted
        ]

    def _finish(self, entry: _Entry, state: Sequence) -> None:
        state.latents = self._pack.latents(state)
        self._leave(entry)
        entry.ticket.resolve(result.finish(state, self._components, entry.submitted))

    def _leave(self, entry: _Entry) -> None:
        """Take a running request out of the pack and give back its arena rows."""
        if entry in self._running:
            self._running.remove(entry)
            for held in _state(entry).held:
                self._store.release(held)


def _state(entry: _Entry) -> Sequence:
    assert entry.state is not None
    return entry.state
