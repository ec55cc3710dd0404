"""Reconstruct inside of the span of the inputs, which the first layer shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from exhume.attacks.engine.start import centre, placeholder_targets
from exhume.attacks.relaxations.span import decayed_change, shown_span
from exhume.config import build
from exhume.errors import InvalidInput, Unsuited
from exhume.observations.update import Update
from exhume.problem.attack import Attack
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.observation import ObservationKind, ObservationModel
from exhume.problem.reconstruction import (
    Cost,
    Outcome,
    Reconstruction,
    Stopwatch,
)
from exhume.problem.relaxation import Relaxation
from exhume.problem.task import Task

__all__ = ["Subspace"]


@dataclass(frozen=True, kw_only=True)
class Subspace(Attack):
    """Run another attack with ``relaxation = "span"``, read off ΔW₁.

    Every step of SGD, with momentum or not, adds δᵀX to the weights of a linear first
    layer, so the rows of ΔW₁ = W₁(T) − c W₁(0) are combinations of the inputs, after
    any number of steps and epochs; c is what weight decay alone makes of a weight of 1.
    B inputs of dimension d become B coefficient vectors of dimension B, which is much
    less where B < d. The inner attack varies these coefficients, and what weight decay
    did is taken out of what it sees.

    Under declared noise only directions above its edge are kept.

    Attributes:
        inner: name of the attack that reconstructs inside of the span, one that takes
            a relaxation.
        options: of the inner attack.
        rank: of the span; 0 reads it off the singular values and the batch size.

    Raises:
        InvalidInput: an option is out of range, or the inner attack is this one or one
            that takes no relaxation.
    """

    inner: str = "tangent-kernel"
    options: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 0

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE}
    )
    uses: ClassVar[frozenset[Fact]] = frozenset(
        {
            Fact.LABELS,
            Fact.LEARNING_RATE,
            Fact.BATCH_ORDER,
            Fact.DEFENSE,
            Fact.PRIOR,
            Fact.PUBLIC_DATA,
        }
    )
    inverts: ClassVar[frozenset[ObservationKind]] = frozenset(
        {"gradient", "update", "fine-tuning"}
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        if self.rank < 0:
            msg = f"rank is {self.rank}; expected at least 0"
            raise InvalidInput(msg)
        if self.inner == "subspace":
            msg = "the inner attack of 'subspace' must be another one, 'tangent-kernel'"
            raise InvalidInput(msg)
        if "relaxation" not in {f.name for f in fields(self._inner())}:
            msg = (
                f"inner is {self.inner!r}, which takes no relaxation, so it cannot be "
                f"confined to a span; choose one that does, 'tangent-kernel', say"
            )
            raise InvalidInput(msg)
        if {"relaxation", "parametrisation"} & set(self.options):
            msg = "the relaxation of the inner attack is the span; leave it out"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (
            cls(options={"iterations": 2, "polish": 2, "newton": 1, "rounds": 0}),
            cls(options={"iterations": 60, "polish": 25, "newton": 10, "rounds": 0}),
        )

    def _inner(self, relaxation: Relaxation | None = None) -> Any:
        """Return the inner attack, confined to a relaxation if one is given."""
        found = build("attack", {"name": self.inner, **self.options})
        return found if relaxation is None else replace(found, relaxation=relaxation)

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Read the span, attack the coefficients, and put the inputs together."""
        watch = Stopwatch()
        try:
            shown = shown_span(problem, self.rank)
        except Unsuited as error:
            return _out_of_reach(problem, str(error), watch)
        attack: Attack = self._inner(shown.relaxation)
        guess = attack(_without_decay(problem, shown.decay), key)
        at_answer = self.objective(problem, guess.inputs, guess.targets)
        return replace(
            guess,
            objective=None if guess.objective is None else at_answer,
            cost=watch.cost() if not guess.cost.evaluations else _cost(watch, guess),
            notes=(*shown.notes, *guess.notes),
        )

    def objective(
        self, problem: Problem, inputs: Tensor, targets: Tensor
    ) -> float | None:
        """Return the objective of the inner attack, without the constraint."""
        return self._inner().objective(problem, inputs, targets)


def _without_decay(problem: Problem, decay: float) -> Problem:
    """Return the problem of a client whose weights decay did not touch, Θ_T − c Θ_0."""
    model: ObservationModel = problem.require(Fact.LOCAL_SCHEDULE)
    if decay == 1.0 or not isinstance(model, Update):
        return problem
    task: Task = problem.require(Fact.WEIGHTS)
    observed = {
        name: decayed_change(problem.observed[name], p.detach(), decay)
        for name, p in task.parameters().items()
    }
    plain = replace(model, weight_decay=0.0)
    return replace(problem, observed=observed, observation_model=plain)


def _cost(watch: Stopwatch, guess: Reconstruction) -> Cost:
    watch.count(guess.cost.evaluations)
    return watch.cost()


def _out_of_reach(problem: Problem, why: str, watch: Stopwatch) -> Reconstruction:
    count: int = problem.require(Fact.BATCH_SIZE)
    targets, note = placeholder_targets(problem, count)
    return Reconstruction(
        inputs=centre(problem).expand(count, *problem.spec.shape).clone(),
        targets=targets,
        objective=None,
        outcome=Outcome.NOT_APPLICABLE,
        cost=watch.cost(),
        notes=(why, note),
    )
