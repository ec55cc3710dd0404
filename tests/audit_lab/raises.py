"""Has a defect."""

from dataclasses import dataclass

from audit_lab._base import Guess
from exhume.problem.knowledge import Problem
from exhume.problem.reconstruction import Reconstruction


@dataclass(frozen=True, kw_only=True)
class Raises(Guess):
    def run(self, problem: Problem, key: int) -> Reconstruction:
        return 1 // 0  # type: ignore[return-value]
