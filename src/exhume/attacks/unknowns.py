"""What an attack looks for: inputs through a relaxation, labels, hidden randomness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from exhume.attacks.engine.labels import label_note, recover_labels
from exhume.config import build
from exhume.errors import InvalidInput, MissingKnowledge
from exhume.formula import formula
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import Candidate
from exhume.problem.relaxation import Relaxation, Units
from exhume.problem.task import Task

__all__ = [
    "InferredLabels",
    "Point",
    "RelaxationChoice",
    "Unknowns",
    "box_penalty",
    "fit_relaxation",
    "resolve_targets",
]

#: what to do about labels that are not known
InferredLabels = Literal["idlg", "bias-corrected", "joint"]
#: a registered name, ``{"name": …, **options}``, or an object
RelaxationChoice = str | Mapping[str, Any] | Relaxation
#: values of all unknowns: leaf by leaf, or one flat vector
Point = Tensor | Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Unknowns:
    """What an attack varies, as leaves (first order) or one flat vector (second order).

    The leaves are the variable z [B, k] of the inputs, the label variable [B, K] if the
    labels are sought, and the client's own randomness. B may differ from point to
    point where nothing is hidden.

    Attributes:
        relaxation: x = g(z).
        spec: of one example.
        targets: known or inferred targets; None if they are sought, or not needed.
        outputs: K numbers of the label variable of one example; 0 if none is sought.
        classes: sought targets are classes: the softmax of the variable enters the
            loss. Otherwise the variable is the real target itself.
        hidden: shape of every nuisance variable that only the client knows, by name;
            standard normal a priori.
    """

    relaxation: Relaxation
    spec: EventSpec
    targets: Tensor | None = None
    outputs: int = 0
    classes: bool = True
    hidden: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        task: Task,
        spec: EventSpec,
        relaxation: Relaxation,
        targets: Tensor | None,
        hidden: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Unknowns:
        """Return what is looked for in a task: also the labels, if none are given."""
        hidden = {} if hidden is None else hidden
        if targets is not None:
            return cls(relaxation, spec, targets, hidden=hidden)
        like = next(iter(task.parameters().values()))
        outputs = task.output_size(like.new_zeros(1, *spec.shape))
        classes = task.criterion.softmax
        return cls(relaxation, spec, None, outputs, classes, hidden)

    def leaves(self, z: Tensor, random: torch.Generator | None = None) -> list[Tensor]:
        """Return a start: z, labels from N(0, 1), and the randomness at its mean.

        Args:
            z: of the inputs, shape [B, k].
            random: source of the labels, on the CPU; needed where they are sought.
        """
        labels = []
        if self.outputs:
            assert random is not None, "labels are drawn from a generator"
            shape = (len(z), self.outputs)
            draw = torch.randn(shape, generator=random, dtype=torch.float64)
            labels = [draw.to(z)]
        return [z, *labels, *(z.new_zeros(shape) for shape in self.hidden.values())]

    def flat(self, leaves: Sequence[Tensor]) -> Tensor:
        """Return the leaves as one vector; :meth:`split` undoes it."""
        return torch.cat([leaf.reshape(-1) for leaf in leaves])

    def split(self, point: Point) -> list[Tensor]:
        """Return the leaves of a point, views of it where it is a flat vector."""
        if not isinstance(point, Tensor):
            return list(point)
        count = (len(point) - self.hidden_size) // (self.relaxation.size + self.outputs)
        shapes = [(count, self.relaxation.size), *self.hidden.values()]
        if self.outputs:
            shapes.insert(1, (count, self.outputs))
        parts = point.split([math.prod(shape) for shape in shapes])
        return [part.reshape(s) for part, s in zip(parts, shapes, strict=True)]

    def numbers(self, count: int) -> int:
        """Return the number q of reals in a point with B examples."""
        return count * (self.relaxation.size + self.outputs) + self.hidden_size

    @property
    def hidden_size(self) -> int:
        """The number of reals of the client's own randomness, the tail of a vector."""
        return sum(math.prod(shape) for shape in self.hidden.values())

    def inputs(self, point: Point) -> Tensor:
        """Return x of a point, shape [B, *event], differentiable."""
        return self.relaxation.decode(self.split(point)[0])

    def candidate(self, point: Point) -> Candidate:
        """Return what the objective is evaluated at, differentiable in the point.

        Sought classes are probabilities [B, K]; real targets are [B, K], or [B] for one
        output.
        """
        z, *others = self.split(point)
        targets = self.targets
        if targets is None:
            free = others.pop(0)
            targets = free.softmax(dim=-1) if self.classes else _real(free)
        hidden = dict(zip(self.hidden, others, strict=True))
        return Candidate(self.relaxation.decode(z), targets, hidden)

    def answer(self, point: Point) -> Candidate:
        """Return what is answered: inputs in their range, sought classes as indices."""
        leaves = [leaf.detach() for leaf in self.split(point)]
        found = self.candidate(leaves)
        targets = found.targets
        if self.targets is None and self.classes:
            targets = leaves[1].argmax(dim=-1)
        return replace(found, inputs=self.harden(found.inputs), targets=targets)

    def harden(self, inputs: Tensor) -> Tensor:
        """Return the nearest inputs that are examples of the event."""
        return self.spec.harden(inputs)

    def outside(self, inputs: Tensor) -> Tensor:
        """Return how far inputs leave the range of their event, see box_penalty."""
        return box_penalty(inputs, self.spec.low, self.spec.high)

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest feasible point of a flat vector."""
        z, *others = self.split(point)
        return self.flat([self.relaxation.project(z), *others])


@formula(
    r"\sum (x - h)_+^2 + \sum (\ell - x)_+^2",
    reference="Haim et al. (NeurIPS 2022), eq. 7; Loo et al. (ICLR 2024), their code",
)
def box_penalty(inputs: Tensor, low: float | None, high: float | None) -> Tensor:
    """Return how far inputs leave their range, summed squares.

    Args:
        inputs: x, shape [M, *event].
        low: ℓ, or None without a range.
        high: h.
    """
    if low is None or high is None:
        return inputs.new_zeros(())
    above, below = torch.relu(inputs - high), torch.relu(low - inputs)
    return above.square().sum() + below.square().sum()


def _real(free: Tensor) -> Tensor:
    return free.squeeze(-1) if free.shape[-1] == 1 else free


def fit_relaxation(
    choice: RelaxationChoice, problem: Problem, units: Units
) -> Relaxation:
    """Return the relaxation that an option of an attack chooses.

    Args:
        choice: an object, or a registered name with or without options.
        problem: what the attacker sees.
        units: in which the steps of the attack are of ordinary size.

    Raises:
        InvalidInput: the relaxation is one of other examples.
    """
    if not isinstance(choice, Relaxation):
        return build("relaxation", choice).fit(problem, units)
    task: Task = problem.require(Fact.WEIGHTS)
    like = next(iter(task.parameters().values()))
    shape = tuple(choice.decode(like.new_zeros(1, choice.size)).shape[1:])
    if shape != problem.spec.shape:
        msg = (
            f"the relaxation decodes to examples of shape {list(shape)}, and the "
            f"examples of this problem have shape {list(problem.spec.shape)}"
        )
        raise InvalidInput(msg)
    return choice


def resolve_targets(
    problem: Problem, strategies: tuple[InferredLabels, ...], batch_size: int
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return known or inferred targets, or None to optimise them; and notes.

    Args:
        problem: what the attacker sees.
        strategies: tried in order where the labels are not known.
        batch_size: B.
    """
    if problem.targets is not UNKNOWN:
        targets = problem.targets
        if targets.is_floating_point():
            targets = targets.to(problem.require(Fact.WEIGHTS).dtype)
        return targets, ()
    notes: list[str] = []
    for strategy in strategies:
        if strategy == "joint":
            break
        try:
            targets = recover_labels(problem, strategy, batch_size)
        except (InvalidInput, MissingKnowledge) as error:
            notes.append(f"The labels could not be inferred ({strategy}): {error}.")
            continue
        return targets, (*notes, label_note(problem, strategy))
    return None, (*notes, "The labels were optimised together with the inputs.")
