"""All kernels of some models for some targets, compiled by several processes."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import util
from typing import Literal

from framert.kernels.aot.compiler import Compiled, check_environment, compile_kernel, compiling, kernel_hash
from framert.kernels.aot.ops import OPS, collect, quantized_kind
from framert.kernels.aot.targets import Target
from framert.kernels.specialization import ModelShape, Specialization
from framert.runtime.errors import ConfigError

KINDS = ("int8", "int4", "fp8")
PER_PROCESS = 6  # kernels that are worth a process, which takes seconds to start


@dataclass(frozen=True, slots=True)
class Job:
    """One kernel by name: kernels themselves do not travel between processes."""

    op: str
    name: str
    shape: ModelShape
    dtype: Literal["bf16", "fp16"]
    target: Target


def plan(
    shapes: Sequence[ModelShape],
    targets: Sequence[Target],
    dtype: Literal["bf16", "fp16"] = "bf16",
    quantized: Sequence[str] | None = None,
) -> list[Job]:
    """Return what is to be compiled, in a fixed order.

    Args:
        quantized: kinds of quantized kernels wanted; None is all that a target has.
    Raises: ConfigError for an unknown kind, or one that a target lacks; BackendError where nothing can be compiled.
    """
    for kind in quantized or ():
        if kind not in KINDS:
            raise ConfigError(f"unknown kind of quantized kernels {kind!r}; choose from {', '.join(KINDS)}")
        if lacking := [target.name for target in targets if kind not in target.quantized]:
            raise ConfigError(
                f"{kind} kernels need compute capability 8.9 or newer, which {', '.join(lacking)} is not; "
                f"it has {', '.join(next(t for t in targets if t.name == lacking[0]).quantized)}"
            )
    check_environment()
    jobs = []
    for target in targets:
        for shape in shapes:
            for op in OPS:
                for item in collect(op, shape, dtype, target.capability):
                    own = quantized_kind(item)
                    if own is None or quantized is None or own in quantized:
                        jobs.append(Job(op, item.name, shape, dtype, target))
    return jobs


def compile_all(
    jobs: Sequence[Job], *, processes: int | None = None, done: Callable[[Compiled], None] = lambda _: None
) -> list[Compiled]:
    """Compile every job, in the order given. Nothing is cached.

    Args:
        processes: how many to compile in; None is one per core. 1 compiles here.
        done: called with each kernel as it is ready.
    Raises: BackendError if one does not compile.
    """
    check_environment()
    cores = os.cpu_count() or 1
    count = min(cores if processes is None else processes, max(1, len(jobs) // PER_PROCESS))
    if count <= 1:
        results = []
        with compiling():
            for job in jobs:
                results.append(_run(job))
                done(results[-1])
        return results
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start) as pool:
        futures = {pool.submit(_run, job): index for index, job in enumerate(jobs)}
        ready: dict[int, Compiled] = {}
        try:
            for future in as_completed(futures):
                ready[futures[future]] = future.result()
                done(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for what runs: without that Python 3.11 hangs at its end
            raise
    return [ready[index] for index in range(len(jobs))]


def hash_of(job: Job) -> str:
    """Return the hash a job's kernel will have, without compiling it."""
    return kernel_hash(_specialization(job), job.target)


_stack = ExitStack()  # of a worker process: holds its temporary cache until it ends


def _start() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _stack.enter_context(compiling())
    util.Finalize(None, _stack.close, exitpriority=1)  # worker processes run no other exit handlers


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, killed say: nobody else would tell it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    _stack.close()  # the temporary cache
    os._exit(1)


def _run(job: Job) -> Compiled:
    return compile_kernel(_specialization(job), job.target, op=job.op, model=job.shape.name)


def _specialization(job: Job) -> Specialization:
    found = {item.name: item for item in collect(job.op, job.shape, job.dtype, job.target.capability)}
    return found[job.name]
