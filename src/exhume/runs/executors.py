"""Where trials run: in this process, or in worker processes. The bits are the same.

Every trial runs on one thread, because the order of a sum depends on the number of
threads, and because processes are the faster way to use the cores.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Generic, Literal, TypeVar, get_args

from exhume.errors import InvalidInput

__all__ = [
    "Executor",
    "Job",
    "map_jobs",
    "single_threaded",
    "worker_count",
]

Executor = Literal["serial", "processes"]
Spec = TypeVar("Spec")
Result = TypeVar("Result")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_NO_GUARD = (
    "worker processes end at once; if this is a script, put its last lines under "
    '`if __name__ == "__main__":`, or use executor="serial"'
)


@dataclass(frozen=True)
class Job(Generic[Spec, Result]):
    """A kind of work: pure functions of plain data, at the top level of a module.

    Attributes:
        run: what a worker calls, on one thread; it should not raise.
        failed: makes the result of a spec that killed its worker, from the reason.
    """

    run: Callable[[Spec], Result]
    failed: Callable[[Spec, str], Result]


def map_jobs(
    job: Job[Spec, Result],
    queue: deque[Spec],
    *,
    executor: Executor = "processes",
    workers: int = 0,
) -> Generator[Result, None, None]:
    """Run what is in a queue and yield each result as soon as it is there.

    Whoever reads the results may append to the queue: the end is when nothing waits and
    nothing runs. With ``processes`` the order is that of completion. A spec that kills
    its worker is tried once more on its own, and becomes a failed row if it does so
    again. When the iterator is closed or interrupted, what still runs is stopped.

    Args:
        job: what to do with a spec.
        queue: of specs; it is emptied.
        executor: ``serial`` or ``processes``.
        workers: number of processes; 0 takes one per core.

    Raises:
        InvalidInput: the executor is not known, or no worker process can start.
    """
    if executor not in get_args(Executor):
        known = ", ".join(get_args(Executor))
        msg = f"no executor is called {executor!r}; known: {known}"
        raise InvalidInput(msg)
    if executor == "serial":
        return _in_turn(job, queue)
    return _in_processes(job, queue, worker_count(workers))


def worker_count(workers: int) -> int:
    """Return the number of processes: as asked, or one per usable core for 0."""
    import joblib

    return workers or joblib.cpu_count()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run with one thread in torch and in every numerical library; restore after."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    # Libraries that are first loaded inside read the environment, others are told.
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        import torch
        from threadpoolctl import threadpool_limits

        threads = torch.get_num_threads()
        with ExitStack() as undo:
            undo.enter_context(threadpool_limits(1))
            undo.callback(torch.set_num_threads, threads)
            torch.set_num_threads(1)
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _work(job: Job[Spec, Result], spec: Spec) -> Result:
    with single_threaded():
        return job.run(spec)


def _in_turn(
    job: Job[Spec, Result], queue: deque[Spec]
) -> Generator[Result, None, None]:
    while queue:
        yield _work(job, queue.popleft())


def _in_processes(
    job: Job[Spec, Result], waiting: deque[Spec], workers: int
) -> Generator[Result, None, None]:
    suspects: list[Spec] = []
    succeeded = False
    while waiting or suspects:
        while waiting:
            with _pool(workers) as pool:
                for spec, result in _together(pool, job, waiting, workers):
                    if result is None:
                        suspects.append(spec)
                    else:
                        succeeded = True
                        yield result
            if suspects and not succeeded:
                _probe()
        # Whoever was running when a worker died is tried alone: guilt is certain then.
        while suspects:
            with _pool(1) as pool:
                yield from _alone(pool, job, suspects)


def _together(
    pool: ProcessPoolExecutor,
    job: Job[Spec, Result],
    waiting: deque[Spec],
    workers: int,
) -> Iterator[tuple[Spec, Result | None]]:
    """Run until nothing waits or a worker dies; None for what then was running."""
    running: dict[Future[Result], Spec] = {}
    broken = False
    while running or (waiting and not broken):
        # No more than one trial per worker is handed out: a death has few suspects.
        while waiting and not broken and len(running) < workers:
            try:
                running[pool.submit(_work, job, waiting[0])] = waiting[0]
                waiting.popleft()
            except BrokenProcessPool:
                broken = True
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            spec = running.pop(future)
            result = _outcome(future, job, spec)
            broken = broken or result is None
            yield spec, result


def _outcome(
    future: Future[Result], job: Job[Spec, Result], spec: Spec
) -> Result | None:
    """Return what a worker sent, or None if a worker died."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool):
        return None
    return job.failed(spec, f"{type(error).__name__} in the worker process: {error}")


def _alone(
    pool: ProcessPoolExecutor, job: Job[Spec, Result], suspects: list[Spec]
) -> Generator[Result, None, None]:
    """Run suspects one after the other until the worker dies of one, or all ended."""
    while suspects:
        spec = suspects.pop(0)
        result = _outcome(pool.submit(_work, job, spec), job, spec)
        if result is None:
            yield job.failed(
                spec,
                "the worker process died twice in this trial (out of memory, or a "
                "crash in native code); try a smaller problem",
            )
            return
        yield result


def _probe() -> None:
    """Check that a worker process can do anything at all."""
    with _pool(1) as pool:
        if isinstance(pool.submit(os.getpid).exception(), BrokenProcessPool):
            raise InvalidInput(_NO_GUARD)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start worker processes that end with this block, and with this process.

    Python leaves the workers of a killed parent waiting for ever. Here each of them
    watches one end of a pipe: it closes when the parent lets go of the other end, on
    purpose or by dying, and the worker ends in the middle of whatever it does.
    """
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(watched,)
    )
    try:
        yield pool
        pool.shutdown(wait=True)
    finally:
        # Reached early by an error or an interrupt: then the workers end at once.
        held.close()
        pool.shutdown(wait=True, cancel_futures=True)
        watched.close()


def _start_worker(watched: Connection) -> None:
    import signal

    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()


def _end_with(watched: Connection) -> None:
    watched.poll(None)
    os._exit(1)
