"""What a defense is: a stage, a calibration, a release, and the law it induces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from exhume.errors import InvalidInput
from exhume.problem.law import Law
from exhume.problem.tree import Tree, check_same_layout

if TYPE_CHECKING:
    from exhume.problem.batch import Batch
    from exhume.problem.task import Task

__all__ = ["Defense", "Plan", "Stage"]


class Stage(Enum):
    """Where a defense acts, in the order in which the stages run."""

    DATA = 1
    MODEL = 2
    EXAMPLE = 3
    UPDATE = 4
    AGGREGATE = 5


@dataclass(frozen=True, eq=False)
class Plan:
    """What calibration fixes before a release: plain numbers and named tensors.

    Attributes:
        defense: registered name of the defense that made it.
        shapes: name → shape of every tensor that the plan was made for.
        covers: names that the defense touches; the rest is released in clear.
        numbers: scalars, e.g. ``{"std": 0.01}``.
        arrays: tensors by name, e.g. a mask per parameter.
    """

    defense: str
    shapes: Mapping[str, tuple[int, ...]]
    covers: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def in_clear(self) -> tuple[str, ...]:
        """Names that the defense leaves untouched."""
        return tuple(name for name in self.shapes if name not in self.covers)


class Defense(ABC):
    """A defense D; leaves are frozen dataclasses of numbers and strings.

    ``calibrate`` may see the model and *public* data; ``apply`` needs the update alone,
    so the same object works in a simulation, in an optimiser and as a filter of a
    federated-learning framework.

    Attributes:
        stage: where it acts.
        bibtex: the entry to cite, or "".
        only: glob patterns of the tensors that it covers (``("*",)`` covers all).
    """

    stage: ClassVar[Stage]
    bibtex: ClassVar[str] = ""
    only: tuple[str, ...] = ("*",)

    def covered(self, parameters: Mapping[str, Tensor]) -> tuple[str, ...]:
        """List the float tensors among ``parameters`` that the defense touches.

        Raises:
            InvalidInput: a pattern in ``only`` matches nothing.
        """
        for pattern in self.only:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                msg = (
                    f"the pattern {pattern!r} matches no tensor; the update has "
                    f"{', '.join(parameters)}"
                )
                raise InvalidInput(msg)
        return tuple(
            name
            for name, tensor in parameters.items()
            if tensor.is_floating_point()
            and any(fnmatchcase(name, pattern) for pattern in self.only)
        )

    @abstractmethod
    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Fix scales, masks and thresholds before any private data is seen.

        Args:
            task: the model that will be trained.
            public: public examples, or None.
            key: randomness of the plan (a public mask, say).
        """

    def apply(self, update: Mapping[str, Tensor], plan: Plan, key: int) -> Tree:
        """Release an update: new tensors of the same dtypes and shapes.

        Args:
            update: tensors by name; integer tensors pass untouched.
            plan: what ``calibrate`` returned for this model.
            key: randomness of this release; equal keys give equal bits.

        Raises:
            Inconsistent: the plan was made for other names or shapes.
        """
        expected = (
            {
                n: next(iter(update.values())).new_empty(s)
                for n, s in plan.shapes.items()
            }
            if update
            else {}
        )
        check_same_layout(update, expected, what="the update given to the plan")
        released = self._release({n: update[n] for n in plan.covers}, plan, key)
        return {n: released.get(n, t).clone() for n, t in update.items()}

    @abstractmethod
    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        """Transform the covered tensors."""

    @abstractmethod
    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Return the law after this defense, given the law before it.

        Args:
            law: law of what enters.
            plan: the calibrated plan.
            observed: the final release if no later defense adds noise to it (its zero
                pattern is then visible to anyone), else None.
        """

    @property
    def adds_noise(self) -> bool:
        """Whether the release is randomised by additive noise."""
        return False
