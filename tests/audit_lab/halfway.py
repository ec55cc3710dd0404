"""Exact, and then half-way to the prior mean: nearer than a guess, never recovered."""

from dataclasses import dataclass, replace
from typing import ClassVar

import exhume
from exhume.problem.attack import Attack
from exhume.problem.knowledge import Fact


@dataclass(frozen=True, kw_only=True)
class Halfway(Attack):
    needs: ClassVar = frozenset({Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE})
    uses: ClassVar = frozenset({Fact.LABELS, Fact.DEFENSE, Fact.PRIOR})
    inverts: ClassVar = frozenset({"gradient"})

    def run(self, problem, key):
        found = exhume.attack("analytic-linear").run(problem, key)
        mean = problem.require(Fact.PRIOR).mean().to(found.inputs)
        half = (found.inputs + mean.reshape(found.inputs.shape[1:])) / 2
        return replace(found, inputs=half)
