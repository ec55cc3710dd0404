"""Reconstruct inside of the span of the inputs, which the first layer shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from exhume.attacks.engine.centre import centre, placeholder_targets
from exhume.attacks.engine.dense_layers import Entry, entry
from exhume.attacks.engine.input_span import (
    InputSpan,
    decayed_change,
    input_span,
    pull_of_decay,
)
from exhume.attacks.engine.inside_span import Inside
from exhume.config import build
from exhume.errors import InvalidInput
from exhume.observations.update import Update
from exhume.problem.attack import Attack
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import ObservationKind, ObservationModel
from exhume.problem.reconstruction import Outcome, Reconstruction, Stopwatch
from exhume.problem.task import Task

__all__ = ["Subspace"]

_NO_ENTRY = (
    "No trained linear layer reads the input itself (a convolution or a fixed layer "
    "comes first), so its change does not show the span of the inputs."
)
_NOTHING = "The first layer did not change, so it shows no span."
_ADAPTIVE = (
    "Adam divides every weight by its own scale, which bends the row space: the span "
    "of the inputs is not exact, and neither is what was found in it."
)


@dataclass(frozen=True, kw_only=True)
class Subspace(Attack):
    """Find the span of the inputs in ΔW₁, then run another attack inside of it.

    Every step of SGD, with momentum or not, adds δᵀX to the weights of a linear first
    layer, so the rows of ΔW₁ = W₁(T) − c W₁(0) are combinations of the inputs, after
    any number of steps and epochs; c is what weight decay alone makes of a weight of 1.
    B inputs of dimension d become B coefficient vectors of dimension B, which is much
    less where B < d. The inner attack sees a network that reads coefficients.

    Under declared noise only directions above its edge are kept.

    Attributes:
        inner: name of the attack that reconstructs inside of the span.
        options: of the inner attack.
        rank: of the span; 0 reads it off the singular values and the batch size.

    Raises:
        InvalidInput: an option is out of range, or the inner attack is this one.
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
        self._inner()

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (
            cls(options={"iterations": 2, "polish": 2, "newton": 1, "rounds": 0}),
            cls(options={"iterations": 60, "polish": 25, "newton": 10, "rounds": 0}),
        )

    def _inner(self) -> Attack:
        return build("attack", {"name": self.inner, **self.options})

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Read the span, attack the coefficients, and put the inputs together."""
        watch = Stopwatch()
        task: Task = problem.require(Fact.WEIGHTS)
        found = entry(task, problem.spec)
        if found is None:
            return _out_of_reach(problem, _NO_ENTRY, watch)
        if not bool(problem.observed[found.layer.weight].any()):
            return _out_of_reach(problem, _NOTHING, watch)
        span, pull, notes = self._span(problem, task, found)
        inside = Inside(span.basis.to(found.gain), found)
        cleaned = _without_decay(problem, task, pull)
        guess = self._inner()(inside.problem(cleaned, task), key)
        inputs = problem.spec.clamp(inside.inputs(guess.inputs, task, problem.spec))
        at_answer = self.objective(problem, inputs, guess.targets)
        return replace(
            guess,
            inputs=inputs,
            objective=None if guess.objective is None else at_answer,
            cost=watch.cost() if not guess.cost.evaluations else _cost(watch, guess),
            notes=(*notes, *guess.notes),
        )

    def objective(
        self, problem: Problem, inputs: Tensor, targets: Tensor
    ) -> float | None:
        """Return the objective of the inner attack, without the constraint."""
        return self._inner().objective(problem, inputs, targets)

    def _span(
        self, problem: Problem, task: Task, found: Entry
    ) -> tuple[InputSpan, float, tuple[str, ...]]:
        count: int = self.rank or problem.require(Fact.BATCH_SIZE)
        name = found.layer.weight
        start, change = task.parameters()[name].detach(), problem.observed[name]
        model: ObservationModel = problem.require(Fact.LOCAL_SCHEDULE)
        notes: list[str] = []
        pull = 1.0
        if isinstance(model, Update) and model.optimiser != "sgd":
            notes.append(_ADAPTIVE)
        elif isinstance(model, Update) and model.weight_decay:
            pull, note = _pull(model, start, change, count, problem)
            change = decayed_change(change, start.to(change), pull)
            notes.append(note)
        span = input_span(change, count, _noise(problem, name))
        return span, pull, (*notes, _told(span, problem.spec.dimension))


def _pull(
    model: Update, start: Tensor, change: Tensor, rank: int, problem: Problem
) -> tuple[float, str]:
    """Return c by the schedule, else by the singular values, and how it was found."""
    steps = len(model.batches(problem.require(Fact.BATCH_SIZE)))
    known = None if model.rate is None else model.rule.pull(steps, model.rate)
    if known is not None:
        return known, f"Weight decay made {known:.4f} of the first weights."
    if rank >= min(change.shape):
        return 1.0, "Weight decay could not be told from the data."
    found = pull_of_decay(change, start.to(change), rank)
    return found, f"Weight decay made {found:.4f} of the first weights, by their rank."


def _without_decay(problem: Problem, task: Task, pull: float) -> Problem:
    """Return the problem of a client whose weights decay did not touch, Θ_T − c Θ_0."""
    model: ObservationModel = problem.require(Fact.LOCAL_SCHEDULE)
    if pull == 1.0 or not isinstance(model, Update):
        return problem
    observed = {
        name: decayed_change(problem.observed[name], p.detach(), pull)
        for name, p in task.parameters().items()
    }
    plain = replace(model, weight_decay=0.0)
    return replace(problem, observed=observed, observation_model=plain)


def _noise(problem: Problem, name: str) -> float:
    """Return the largest declared standard deviation on a tensor."""
    law = problem.law
    if law is UNKNOWN or name not in law.variance:
        return 0.0
    return float(law.variance[name].max()) ** 0.5


def _told(span: InputSpan, dimension: int) -> str:
    left = f"{span.gap:.3g}" if span.gap < float("inf") else "infinite"
    return (
        f"The first layer shows a span of {len(span.basis)} of {dimension} dimensions; "
        f"the gap of its singular values is {left}."
    )


def _cost(watch: Stopwatch, guess: Reconstruction):  # noqa: ANN202
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
