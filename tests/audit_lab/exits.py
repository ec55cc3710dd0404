"""Ends the program, as scripts do."""

import sys
from dataclasses import dataclass

from audit_lab._base import Guess
from exhume.problem.knowledge import Problem
from exhume.problem.reconstruction import Reconstruction


@dataclass(frozen=True, kw_only=True)
class Exits(Guess):
    def run(self, problem: Problem, key: int) -> Reconstruction:
        sys.exit(3)
