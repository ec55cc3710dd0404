"""One job after the other, in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

from exhume.runs.executor import Executor, Job, Result, Spec, work

__all__ = ["Serial"]


@dataclass(frozen=True, kw_only=True)
class Serial(Executor):
    """Run in this process, where a debugger and a profiler see everything."""

    @property
    def parallel(self) -> int:
        """One."""
        return 1

    def map(
        self, job: Job[Spec, Result], queue: deque[Spec]
    ) -> Generator[Result, None, None]:
        """Run the specs in the order of the queue."""
        while queue:
            yield work(job, queue.popleft())
