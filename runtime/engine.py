"""The one loop behind everything: pick, build tables, call the denoiser once, retire."""

import threading
import time
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as List
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from PIL.Image import Image

from framert.runtime import result, sequence
from framert.runtime.backends.base import Backend, Limited
from framert.runtime.bundle import Bundle
from framert.runtime.components import Components, clocked
from framert.runtime.config import DEFAULT_PACK_TOKENS, EngineConfig
from framert.runtime.errors import BackendError, CancelledError, ConfigError, FramertError, TaskError
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

    @property
    def running(self) -> Sequence:
        assert self.state is not None
        return self.state


@dataclass(slots=True, eq=False)
class _Worker:
    """A background thread and the word that ends it; each thread has its own."""

    thread: threading.Thread | None = None
    stopping: bool = False


class Engine:
    """Runs many requests together: at different steps, sizes, tasks, solvers and guidance, in shared calls.

    Usable from several threads. Whoever waits for a result drives the loop, unless ``start`` gave it a thread. Two
    locks: one for the queue, held for moments, so that ``submit`` never waits for the model; one for the step.

    Args:
        bundle: an opened bundle. backend: runs its graphs. components: the graphs around the denoiser.
        config: limits.
    """

    def __init__(self, bundle: Bundle, backend: Backend, components: Components, config: EngineConfig) -> None:
        self._manifest = bundle.manifest
        self._config = config
        self._components = components
        denoiser = backend.denoiser()
        self._limits = backend.limits if isinstance(backend, Limited) else None
        self._store = ConditioningStore(components, denoiser, bundle.manifest, self._limits)
        self._pack = Pack(denoiser, bundle.manifest)
        self._scheduler: Scheduler[_Entry] = Scheduler(config.max_tokens or DEFAULT_PACK_TOKENS)
        self._queue = threading.Condition(threading.Lock())  # guards the scheduler and the worker
        self._worker: _Worker | None = None
        self._stepping = threading.Lock()  # guards everything below
        self._owner: int | None = None  # the thread inside step()
        self._running: list[_Entry] = []
        self._interrupt: BaseException | None = None

    def submit(self, request: Request) -> Ticket:
        """Check a request and queue it.

        Raises: TaskError, ConfigError, ImageError or ShapeError at once; BackendError if it is larger than what the
            bundle's engines were built for.
        """
        if not isinstance(request, Request):
            raise TaskError(f"submit() was given a {type(request).__name__}; give a framert.Request(task=..., ...)")
        check_callback(request.on_step)
        job = prepare(request, self._manifest)
        if request.noise is not None:  # the caller may reuse the buffer
            job = replace(job, request=replace(request, noise=np.array(request.noise, np.float32)))
        if job.reuse > 1 and not self._store.reuses:
            raise ConfigError(f"reuse is {job.reuse}, which this backend cannot; load with backend='triton'")
        limit = self._config.max_tokens
        if limit is not None and job.tokens > limit:
            raise ConfigError(
                f"this request needs {job.tokens} tokens per call, this engine takes {limit}; "
                "give a smaller size or fewer frames, or make the engine with a larger max_tokens"
            )
        if self._limits is not None:
            width, height = job.size
            self._limits.check_size(height, width, encodes=bool(request.images))
            self._limits.check_call(*_call_sizes([job]))
        ticket = Ticket(self._drive)
        with self._queue:
            self._scheduler.add(_Entry(job, ticket, time.perf_counter()))
            self._queue.notify_all()
        return ticket

    def step(self) -> bool:
        """Run one denoiser call for everything that is ready; return whether work is left.

        A request that fails gives its error to its own ticket; the others go on.
        Raises: FramertError when called from inside an ``on_step``; an interrupt, once all tickets are in order.
        """
        self._refuse_reentry()
        with self._stepping:
            self._owner = threading.get_ident()
            try:
                self._drop_cancelled()
                self._admit()
                if self._running:
                    self._call(list(self._running))
                if not self._running:
                    self._pack.release()
            finally:
                self._owner = None
            interrupt, self._interrupt = self._interrupt, None
            if interrupt is not None:
                raise interrupt
            with self._queue:
                return bool(self._running or len(self._scheduler))

    def reap(self) -> None:
        """Give back at once what cancelled requests hold; without it the next step does."""
        if self._owner != threading.get_ident() and self._stepping.acquire(blocking=False):
            try:
                self._drop_cancelled()
                if not self._running:
                    self._pack.release()
            finally:
                self._stepping.release()

    def warm_up(self, tokens: Iterable[int]) -> None:
        """Run calls of so many model tokens on nothing, so that the first real ones find everything ready.

        A backend that compiles or captures per size does so now. Other requests wait meanwhile.

        Args:
            tokens: model tokens of the calls to come: guidance branches * frames * (width / 16) * (height / 16) of a
                request alone, 16 being the bundle's ``manifest.model.multiple``; their sum for requests that share.
        Raises: ConfigError for a number below 1 or above the engine's max_tokens; what the backend raises.
        """
        counts = list(tokens)
        limit = self._config.max_tokens
        for count in counts:
            if isinstance(count, bool) or not isinstance(count, int) or count < 1 or count > (limit or count):
                most = "" if limit is None else f" up to {limit}"
                raise ConfigError(f"warm_up was given {count!r} tokens; give whole numbers from 1{most}")
        self._refuse_reentry()
        with self._stepping:
            self._store.prepare()
            for count in counts:
                self._pack.warm_up(count, self._manifest.model.token_width)

    def start(self) -> None:
        """Step in a background thread until ``stop``, for applications that only submit and wait."""
        with self._queue:
            if self._worker is None:
                worker = self._worker = _Worker()
                worker.thread = threading.Thread(target=self._loop, args=(worker,), name="framert-engine", daemon=True)
                worker.thread.start()

    def stop(self) -> None:
        """End the background thread after its current call; unfinished requests stay and can be driven again."""
        with self._queue:
            worker, self._worker = self._worker, None
            if worker is None:
                return
            worker.stopping = True
            self._queue.notify_all()
        if worker.thread is not None and worker.thread is not threading.current_thread():
            worker.thread.join()

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _loop(self, worker: _Worker) -> None:
        while True:
            with self._queue:
                while not worker.stopping and not self._running and not len(self._scheduler):
                    self._queue.wait()
                if worker.stopping:
                    return
            try:
                self.step()
            except Exception as error:  # ours, since a request's own errors go to its ticket: nobody may wait for ever
                self._fail_all(error)
            except BaseException:  # a callback raised SystemExit or the like; its ticket has it
                continue

    def _drive(self, ticket: Ticket, timeout: float | None) -> None:
        self._refuse_reentry()
        end = None if timeout is None else time.monotonic() + timeout
        while not ticket.done and (end is None or time.monotonic() < end):
            if self._worker is not None:
                ticket.wait(0.1 if end is None else max(0.0, min(0.1, end - time.monotonic())))
            else:
                self.step()

    def _refuse_reentry(self) -> None:
        if self._owner == threading.get_ident():
            raise FramertError(
                "this engine is inside a step; an on_step may submit and cancel, wait for results outside of it"
            )

    def _drop_cancelled(self) -> None:
        with self._queue:
            dropped = [entry for entry in self._scheduler.items() if entry.ticket.cancelled]
            for entry in dropped:
                self._scheduler.remove(entry)
        dropped += [entry for entry in self._running if entry.ticket.cancelled]
        for entry in dropped:
            self._leave(entry)
            entry.ticket.drop()

    def _admit(self) -> None:
        while (entry := self._next()) is not None:
            with self._failing(entry):
                entry.state = sequence.start(entry.job, self._components, self._store)
                self._running.append(entry)

    def _next(self) -> _Entry | None:
        with self._queue:
            return self._scheduler.next(sum(other.tokens for other in self._running), self._joins)

    def _joins(self, entry: _Entry) -> bool:
        """Return whether the backend takes a request in one call with those under way."""
        try:
            if self._limits is not None:
                self._limits.check_call(*_call_sizes([other.job for other in (*self._running, entry)]))
        except BackendError:
            return False
        return True

    def _call(self, entries: list[_Entry]) -> None:
        clock: dict[str, float] = {}
        try:
            with clocked(clock, "denoiser"):
                self._pack.step([entry.running for entry in entries])
        except Exception as error:  # one member may have broken the call for all
            self._split(entries, error)
            return
        except BaseException as error:  # an interrupt inside the bookkeeping: no member's state can be trusted
            self._pack.release()
            for entry in entries:
                self._fail(entry, error)
            return
        for entry in entries:
            state = entry.running
            state.seconds["denoiser"] = state.seconds.get("denoiser", 0.0) + clock["denoiser"]
            with self._failing(entry):
                self._report(entry, state)
                if state.done:
                    self._finish(entry, state)

    def _split(self, entries: list[_Entry], error: Exception) -> None:
        """After a failed call: a lone request gets the error; of several, each makes this call alone."""
        if len(entries) == 1:
            self._fail(entries[0], error)
            return
        for entry in entries:
            self._call([entry])

    def _report(self, entry: _Entry, state: Sequence) -> None:
        done = state.call
        call = entry.job.evaluations[done - 1]
        on_step = entry.job.request.on_step
        if on_step is None or call.interval is None:
            return

        def preview() -> list[Image]:
            if self._owner != threading.get_ident() or state.call != done or entry not in self._running:
                raise FramertError("preview() was called late; it works inside the on_step call it was given to")
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
        with clocked(state.seconds, "denoiser"):  # a device may still be at work on the calls that were queued
            state.latents = self._pack.latents(state)
        made = result.finish(state, self._components, entry.submitted)
        self._leave(entry)
        entry.ticket.resolve(made)

    @contextmanager
    def _failing(self, entry: _Entry) -> Iterator[None]:
        """Whatever the block raises belongs to this entry's caller."""
        try:
            yield
        except BaseException as error:
            self._fail(entry, error)

    def _fail(self, entry: _Entry, error: BaseException) -> None:
        self._leave(entry)
        if isinstance(error, Exception):
            entry.ticket.fail(error)
            return
        self._interrupt = error  # step() raises it when all tickets are in order
        ended = CancelledError(f"the request was ended by {type(error).__name__} while it ran; submit it again")
        ended.__cause__ = error
        entry.ticket.fail(ended)

    def _fail_all(self, error: Exception) -> None:
        with self._stepping:
            with self._queue:
                waiting = self._scheduler.items()
                for entry in waiting:
                    self._scheduler.remove(entry)
            for entry in [*waiting, *self._running]:
                self._fail(entry, error)
            self._pack.release()

    def _leave(self, entry: _Entry) -> None:
        """Take a request out of the pack, if it is in, and give back its arena rows."""
        if entry in self._running:
            self._running.remove(entry)
            for held in entry.running.held:
                self._store.release(held)


def _call_sizes(jobs: List[Job]) -> tuple[list[int], int]:
    """Return the model tokens of each sequence of a call of these jobs, and its frames."""
    lengths = [job.tokens // len(job.branches) for job in jobs for _ in job.branches]
    return lengths, sum(len(job.branches) * job.frames for job in jobs)


def check_callback(on_step: object) -> None:
    """Raises: ConfigError if ``on_step`` is neither None nor something to call."""
    if on_step is not None and not callable(on_step):
        raise ConfigError(f"on_step is {on_step!r}; give a function of one framert StepInfo, or None")
