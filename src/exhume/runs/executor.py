"""Jobs and executors: what is run, and where. The bits are the same everywhere.

A job is a pure function from plain data to a result that never raises. Every job runs
on one thread, because the order of a sum depends on the number of threads, and because
processes are the faster way to use the cores.
"""

from __future__ import annotations

import os
import platform
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from exhume.errors import ExhumeError, InvalidInput
from exhume.member import Member
from exhume.registry import did_you_mean, find, names

__all__ = [
    "THREAD_VARIABLES",
    "Executor",
    "Job",
    "Result",
    "Spec",
    "check_executor",
    "executor_named",
    "measured",
    "single_threaded",
    "work",
]

#: what numerical libraries read when they are loaded
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

#: plain data with an ``id``
Spec = TypeVar("Spec", bound=Any)
#: a dataclass with ``spec``, ``status``, ``reason``, ``seconds`` and ``versions``
Result = TypeVar("Result", bound=Any)

P = ParamSpec("P")


@dataclass(frozen=True)
class Job(Generic[Spec, Result]):
    """A kind of work, as an executor takes it.

    Attributes:
        run: what a worker calls, see :func:`measured`; at the top level of a module, so
            that it can be pickled.
        result: the kind of its results.
    """

    run: Callable[[Spec], Result]
    result: type[Result]

    def failed(self, spec: Spec, reason: str) -> Result:
        """Make the result of a spec that gave none."""
        return self.result(spec=spec, status="failed", reason=reason)


def measured(
    result: type[Result],
    *,
    not_applicable: tuple[type[ExhumeError], ...] = (),
) -> Callable[
    [Callable[Concatenate[Spec, P], Result]], Callable[Concatenate[Spec, P], Result]
]:
    """Let a function of a spec never raise, and say how long it took, and with what.

    An error becomes a ``failed`` result that says what happened: a defect in one method
    must not end a sweep of hundreds. The user's own code may even call ``sys.exit``.

    Args:
        result: the kind of the function's results.
        not_applicable: errors that say that the question does not arise here.
    """

    def decorate(
        function: Callable[Concatenate[Spec, P], Result],
    ) -> Callable[Concatenate[Spec, P], Result]:
        @wraps(function)
        def run(spec: Spec, *further: P.args, **options: P.kwargs) -> Result:
            started = time.perf_counter()
            try:
                found = function(spec, *further, **options)
            except not_applicable as error:
                found = result(spec=spec, status="not-applicable", reason=str(error))
            except ExhumeError as error:
                found = result(spec=spec, status="failed", reason=str(error))
            except (Exception, SystemExit) as error:
                found = result(spec=spec, status="failed", reason=_sentence(error))
            seconds = time.perf_counter() - started
            return replace(found, seconds=seconds, versions=_versions())

        return run

    return decorate


def _sentence(error: BaseException) -> str:
    """Say what an error of an unexpected kind was, and where it arose."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split()) or "no message"
    where = f"{Path(place.filename).name}, line {place.lineno}"
    return f"{type(error).__name__}: {message} ({where})"


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    """Return the versions of what computes."""
    found = {"exhume": version("exhume"), "torch": version("torch")}
    return {**found, "numpy": version("numpy"), "python": platform.python_version()}


class Executor(Member, ABC):
    """Where jobs run: in this process, in others, on a cluster.

    A member is a frozen dataclass. It runs every job by :func:`work`; an option that is
    called ``workers`` gets what the settings of a run say.
    """

    @property
    @abstractmethod
    def parallel(self) -> int:
        """How many jobs run at the same time, for the estimate of the time left."""

    @abstractmethod
    def map(
        self, job: Job[Spec, Result], queue: deque[Spec]
    ) -> Generator[Result, None, None]:
        """Run what is in a queue and yield each result as soon as it is there.

        The caller may append to the queue between two results: the end is when nothing
        waits and nothing runs. The order of the results is free. A spec that kills its
        worker, again and alone, becomes ``job.failed(spec, reason)``. When the
        generator is closed or interrupted, what still runs is stopped.

        Args:
            job: what to do with a spec; its functions and data can be pickled.
            queue: of specs; it is emptied.

        Raises:
            InvalidInput: nothing can run here at all.
        """


def check_executor(name: str) -> None:
    """Raise unless an executor is registered; a dotted name is looked up when it runs.

    Raises:
        InvalidInput: no executor has the name; the message offers the nearest.
    """
    known = names("executor")
    if "." not in name and name not in known:
        raise InvalidInput(did_you_mean("executor", name, known))


def executor_named(name: str, workers: int = 0) -> Executor:
    """Make an executor.

    Args:
        name: registered, or a module of one's own.
        workers: for executors that have such an option; 0 leaves it to them.

    Raises:
        UnknownName: no executor has the name.
    """
    cls = find("executor", name)
    takes = signature(cls).parameters
    return cls(workers=workers) if "workers" in takes else cls()


def work(job: Job[Spec, Result], spec: Spec) -> Result:
    """Run one job as every executor has to, on one thread."""
    with single_threaded():
        return job.run(spec)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run with one thread in torch and in every numerical library; restore after."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    # Libraries that are first loaded inside read the environment, others are told.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
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
