"""Chance level: the prior mean (or the middle of the range), whatever was observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from exhume.attacks.engine.start import centre, placeholder_targets
from exhume.problem.attack import Attack
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.observation import ObservationKind
from exhume.problem.reconstruction import Outcome, Reconstruction, Stopwatch

__all__ = ["PriorMean"]


@dataclass(frozen=True, kw_only=True)
class PriorMean(Attack):
    """Answer E x for every example: the best guess without the observation.

    An attack that does no better has learned nothing from the update.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.BATCH_SIZE})
    uses: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.PRIOR, Fact.LABELS, Fact.PUBLIC_DATA}
    )
    inverts: ClassVar[frozenset[ObservationKind]] = frozenset(
        {"gradient", "update", "fine-tuning", "weights"}
    )
    baseline: ClassVar[bool] = True

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Repeat the prior mean B times; the key is not used."""
        del key
        watch = Stopwatch()
        batch_size = problem.require(Fact.BATCH_SIZE)
        targets, sentence = placeholder_targets(problem, batch_size)
        inputs = centre(problem).expand(batch_size, *problem.spec.shape).clone()
        return Reconstruction(
            inputs=inputs,
            targets=targets,
            objective=None,
            outcome=Outcome.CLOSED_FORM,
            cost=watch.cost(),
            notes=(sentence,),
        )
