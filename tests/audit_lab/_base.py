"""An answer that depends on the observation, the key and nothing else."""

from __future__ import annotations

from typing import ClassVar

import torch

from exhume.keys import generator
from exhume.problem.attack import Attack
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.reconstruction import Outcome, Reconstruction, Stopwatch


class Guess(Attack):
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.BATCH_SIZE, Fact.LABELS})

    def run(self, problem: Problem, key: int) -> Reconstruction:
        shape = (problem.require(Fact.BATCH_SIZE), *problem.spec.shape)
        noise = torch.rand(shape, generator=generator(key, "guess"))
        scale = sum(float(t.square().sum()) for t in problem.observed.values())
        return Reconstruction(
            inputs=problem.spec.clamp(noise / (1 + scale)),
            targets=problem.require(Fact.LABELS),
            objective=None,
            outcome=Outcome.CLOSED_FORM,
            cost=Stopwatch().cost(),
        )
