"""Trials as jobs of an executor."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence

from exhume.runs.executors import Executor, Job, map_jobs, worker_count
from exhume.runs.records import TrialResult, TrialSpec

__all__ = ["TRIAL", "map_trials"]


def _run(spec: TrialSpec) -> TrialResult:
    from exhume.trials.trial import run_trial

    return run_trial(spec)


def _failed(spec: TrialSpec, reason: str) -> TrialResult:
    return TrialResult(spec=spec, status="failed", reason=reason)


TRIAL = Job(_run, _failed)


def map_trials(
    specs: Sequence[TrialSpec],
    *,
    executor: Executor = "processes",
    workers: int = 0,
) -> Generator[TrialResult, None, None]:
    """Run trials and yield each result as soon as it is there, see :func:`map_jobs`.

    Args:
        specs: what to run.
        executor: ``serial`` or ``processes``.
        workers: number of processes; 0 takes one per core.

    Raises:
        InvalidInput: the executor is not known, or no worker process can start.
    """
    workers = min(worker_count(workers), len(specs)) or 1
    return map_jobs(TRIAL, deque(specs), executor=executor, workers=workers)
