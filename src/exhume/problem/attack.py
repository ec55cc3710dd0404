"""What an attack is: a function of the problem alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any, ClassVar, Self, final

from torch import Tensor

from exhume.errors import InvalidInput, Unsuited
from exhume.member import Member
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import ObservationKind
from exhume.problem.reconstruction import Reconstruction
from exhume.problem.tree import check_finite, check_same_layout

__all__ = ["Attack", "check_options"]

_KINDS: dict[ObservationKind, str] = {
    "gradient": "a gradient",
    "update": "the change of the weights over several steps, or steps of another kind "
    "than plain SGD",
    "fine-tuning": "the change of the weights after a training to the end",
    "weights": "trained weights",
}
_SHORT: dict[ObservationKind, str] = {
    "gradient": "a gradient",
    "update": "an update",
    "fine-tuning": "a change by a whole training",
    "weights": "trained weights",
}


class Attack(Member, ABC):
    """A reconstructor A(O, knowledge); leaves are frozen dataclasses of numbers.

    An attack gets the facts it declares and no others, so it cannot touch what it did
    not ask for. The truth is not reachable from a :class:`Problem`.

    Attributes:
        needs: facts without which it cannot run.
        uses: facts that it uses where they are given.
        events: kinds of examples that it can reconstruct; empty for every kind.
        inverts: kinds of observations that it can invert. One that inverts gradients
            gets the gradient behind an update of one plain step.
        baseline: a chance level that every table shows, not an attack.
        recognises: it answers with public examples: what it finds is recognised among
            them, not reconstructed.
        small_world: fields of a trial (``model``, ``observation``, ``defenses``,
            ``prior``) that make the small world which its examples suit; without them
            a smooth network shares the first of ``inverts``, a gradient if it can.
    """

    needs: ClassVar[frozenset[Fact]]
    uses: ClassVar[frozenset[Fact]] = frozenset()
    events: ClassVar[frozenset[str]] = frozenset()
    inverts: ClassVar[frozenset[ObservationKind]] = frozenset({"gradient"})
    baseline: ClassVar[bool] = False
    recognises: ClassVar[bool] = False
    small_world: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near an easy truth.

        The conformance suites try the first on everything, and hold the last against
        the chance level. One instance stands for both.
        """
        return (cls(),)

    @final
    def __call__(self, problem: Problem, key: int = 0) -> Reconstruction:
        """Run the attack; what it found becomes examples of the event.

        Args:
            problem: what the attacker sees.
            key: all randomness of the run; equal keys give equal bits.

        Raises:
            MissingKnowledge: the problem lacks a fact that the attack needs.
            Unsuited: it reconstructs examples, or inverts observations, of other kinds.
            Inconsistent: the observation holds NaN or infinity, or its tensors are not
                those of the model.
        """
        for fact in sorted(self.needs, key=attrgetter("name")):
            problem.require(fact)
        check_finite(problem.observed, what="the observation")
        if problem.task is not UNKNOWN:
            parameters = problem.task.parameters()
            check_same_layout(problem.observed, parameters, what="the observation")
        found = self.run(self._suited(problem), key)
        return replace(found, inputs=problem.spec.harden(found.inputs))

    def _suited(self, problem: Problem) -> Problem:
        """Return what the attack may see, as a kind of observation that it inverts."""
        if self.events and problem.spec.kind not in self.events:
            kinds = " or ".join(sorted(self.events))
            msg = (
                f"this attack reconstructs examples of kind {kinds}, and these are of "
                f"kind {problem.spec.kind}; choose another attack"
            )
            raise Unsuited(msg)
        own = problem.restricted(self.needs | self.uses)
        model = problem.observation_model
        if model is UNKNOWN or model.kind in self.inverts:
            return own
        view = None
        if model.kind == "update" and "gradient" in self.inverts:
            view = problem.as_gradient()
        if view is None:
            kinds = " or ".join(_SHORT[kind] for kind in sorted(self.inverts))
            msg = (
                f"this attack inverts {kinds}, and what was observed is "
                f"{_KINDS[model.kind]}; see `exhume list attacks` for one that does"
            )
            raise Unsuited(msg)
        return view.restricted(self.needs | self.uses)

    @abstractmethod
    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Reconstruct; called with the declared facts only."""

    def objective(
        self, problem: Problem, inputs: Tensor, targets: Tensor
    ) -> float | None:
        """Return the attack's own objective at a candidate, or None if it has none.

        The evaluator calls it at the truth, after the attack has ended, to tell an
        under-optimised attack from an unidentifiable problem.

        Args:
            problem: what the attacker sees.
            inputs: x, shape [B, *event].
            targets: y, class indices or real targets.
        """
        del problem, inputs, targets
        return None


def check_options(
    *,
    at_least_one: Mapping[str, int],
    positive: Mapping[str, float | None],
    not_negative: Mapping[str, float] | None = None,
) -> None:
    """Raise unless every option is in its range (None stands for no limit).

    Raises:
        InvalidInput: names the option, its value and what was expected.
    """
    for name, count in at_least_one.items():
        if count < 1:
            msg = f"{name} is {count}; it must be at least 1"
            raise InvalidInput(msg)
    for name, number in positive.items():
        if number is not None and not 0 < number < math.inf:
            msg = f"{name} is {number}; it must be a positive number"
            raise InvalidInput(msg)
    for name, number in (not_negative or {}).items():
        if not 0 <= number < math.inf:
            msg = f"{name} is {number}; it must be zero or a positive number"
            raise InvalidInput(msg)
