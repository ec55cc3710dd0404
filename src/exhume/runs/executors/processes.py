"""Worker processes on this machine, one job in each at a time."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Self

from exhume.errors import InvalidInput
from exhume.runs.executor import THREAD_VARIABLES, Executor, Job, Result, Spec, work

__all__ = ["Processes"]

_NO_GUARD = (
    "worker processes end at once; if this is a script, put its last lines under "
    '`if __name__ == "__main__":`, or use executor="serial"'
)


@dataclass(frozen=True, kw_only=True)
class Processes(Executor):
    """Run in worker processes; the order of the results is that of completion.

    A spec that kills its worker is tried once more on its own, and becomes a failed
    result if it does so again. The workers end with this process, however it ends.

    Attributes:
        workers: number of processes; 0 takes one per core.
    """

    workers: int = 0

    def __post_init__(self) -> None:
        if self.workers < 0:
            msg = f"workers is {self.workers}; it must be at least 0"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return two processes."""
        return (cls(workers=2),)

    @property
    def parallel(self) -> int:
        """The number of processes: as asked, or one per usable core for 0."""
        import joblib

        return self.workers or joblib.cpu_count()

    def map(
        self, job: Job[Spec, Result], queue: deque[Spec]
    ) -> Generator[Result, None, None]:
        """Run the specs in as many processes as there are workers.

        Raises:
            InvalidInput: no worker process can start.
        """
        workers = self.parallel
        suspects: list[Spec] = []
        succeeded = False
        while queue or suspects:
            while queue:
                with _pool(workers) as pool:
                    for spec, result in _together(pool, job, queue, workers):
                        if result is None:
                            suspects.append(spec)
                        else:
                            succeeded = True
                            yield result
                if suspects and not succeeded:
                    _probe()
            # What ran when a worker died is tried alone: guilt is certain then.
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
                running[pool.submit(work, job, waiting[0])] = waiting[0]
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
        result = _outcome(pool.submit(work, job, spec), job, spec)
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
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()


def _end_with(watched: Connection) -> None:
    watched.poll(None)
    os._exit(1)
