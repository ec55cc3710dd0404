"""A training to the end, as far as the evaluator can see; counts how often it runs."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from exhume.errors import InvalidInput
from exhume.observations.gradient import Gradient
from exhume.problem.observation import Candidate, ObservationKind
from exhume.problem.task import Task
from exhume.problem.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Trains(Gradient):
    """Shares a gradient, and writes one line to a file whenever it does."""

    log: str
    most: int = 100
    dies: bool = False

    kind: ClassVar[ObservationKind] = "fine-tuning"
    opaque: ClassVar[str | None] = "This is a training to the end."

    def forward(self, task: Task, candidate: Candidate) -> Tree:
        with Path(self.log).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        if self.dies:
            os._exit(9)
        if len(candidate.inputs) > self.most:
            msg = f"training diverged on {len(candidate.inputs)} examples"
            raise InvalidInput(msg)
        return super().forward(task, candidate)
