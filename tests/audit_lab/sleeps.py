"""Takes its time."""

import time
from dataclasses import dataclass

from audit_lab._base import Guess
from exhume.problem.knowledge import Problem
from exhume.problem.reconstruction import Reconstruction


@dataclass(frozen=True, kw_only=True)
class Sleeps(Guess):
    seconds: float = 0.3

    def run(self, problem: Problem, key: int) -> Reconstruction:
        time.sleep(self.seconds)
        return super().run(problem, key)
