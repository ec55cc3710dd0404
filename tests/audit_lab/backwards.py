"""One job after the other, the last one first."""

from dataclasses import dataclass

from exhume.runs.executor import Executor, work


@dataclass(frozen=True, kw_only=True)
class Backwards(Executor):
    @property
    def parallel(self):
        return 1

    def map(self, job, queue):
        while queue:
            yield work(job, queue.pop())
