"""What a defense is: a stage, a calibration, a release, and the law it induces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from exhume.errors import Inconsistent, InvalidInput
from exhume.member import Member
from exhume.problem.law import Law
from exhume.problem.plan import Plan
from exhume.problem.tree import Tree, check_same_layout
from exhume.registry import registered_name

if TYPE_CHECKING:
    from exhume.problem.batch import Batch
    from exhume.problem.observation import Candidate, ObservationModel
    from exhume.problem.privacy import Guarantee
    from exhume.problem.task import Task

__all__ = ["Aggregation", "Defense", "Plan", "Stage"]


_SUM_OF_PRIVATE = (
    "every client scales its noise by its own private data, and the variance of the "
    "sum as a function of them is not known"
)
_SUM_OF_NOISES = "a sum of several clients' noise is of no simple family"


class Stage(Enum):
    """Where a defense acts, in the order in which the stages run."""

    DATA = 1
    MODEL = 2
    EXAMPLE = 3
    UPDATE = 4
    AGGREGATE = 5


class Defense(Member, ABC):
    """A defense D; leaves are frozen dataclasses of numbers and strings.

    ``calibrate`` may see the model and *public* data; ``apply`` needs the update alone,
    so the same object works in a simulation, in an optimiser and as a filter of a
    federated-learning framework.

    Attributes:
        stage: where it acts.
        variant_bibtex: option → its value → further entries to cite for this choice.
        only: glob patterns of the tensors that it covers (``("*",)`` covers all).
    """

    stage: ClassVar[Stage]
    variant_bibtex: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    only: tuple[str, ...] = ("*",)

    def idle(self) -> Self | None:
        """Return the same defense at a strength that changes nothing, if it has one."""
        return None

    def covered(self, parameters: Mapping[str, Tensor]) -> tuple[str, ...]:
        """List the float tensors among ``parameters`` that the defense touches.

        Raises:
            InvalidInput: ``only`` is empty, or a pattern in it matches nothing.
        """
        if not self.only:
            msg = "`only` is empty, so nothing is defended; ('*',) covers all tensors"
            raise InvalidInput(msg)
        touched = dict.fromkeys(parameters, False)
        for pattern in self.only:
            matches = False
            for name in parameters:
                if fnmatchcase(name, pattern):
                    touched[name] = matches = True
            if not matches:
                msg = (
                    f"the pattern {pattern!r} matches no tensor; the update has "
                    f"{', '.join(parameters)}"
                )
                raise InvalidInput(msg)
        return tuple(
            name
            for name, tensor in parameters.items()
            if touched[name] and tensor.is_floating_point()
        )

    @abstractmethod
    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Fix scales, masks and thresholds before any private data is seen.

        Args:
            task: the model that will be trained.
            public: public examples, or None.
            key: randomness of the plan (a public mask, say).
        """

    def redraw(self, plan: Plan, key: int) -> Plan:
        """Draw anew what a client draws in every step; keep what public data fixed.

        A mask that ``calibrate`` drew at random belongs to one step of a training; the
        scales beside it hold for many. Most plans hold nothing random.

        Args:
            plan: what ``calibrate`` returned.
            key: public randomness of this step.
        """
        del key
        return plan

    def transform_task(self, task: Task, plan: Plan) -> Task:
        """Return the task that the client really trains (model stage)."""
        del plan
        return task

    def transform_model(self, model: ObservationModel, plan: Plan) -> ObservationModel:
        """Return the forward model F after this defense (example stage, aggregates).

        What a deterministic map of the finished update can say belongs to the law; this
        is for what needs the examples, such as clipping each of their gradients.
        """
        del plan
        return model

    def personalise(
        self,
        task: Task,
        model: ObservationModel,
        candidate: Candidate,
        plan: Plan,
        key: int,
    ) -> Plan:
        """Complete the plan on the client, from its private examples.

        The result stays on the client: the attacker is never told it, and a law is made
        from the public plan. Most defenses have nothing to add.

        Args:
            task: after the model stage.
            model: F after the defenses before this one.
            candidate: the private S.
            plan: what ``calibrate`` returned.
            key: private randomness of this release.
        """
        del task, model, candidate, key
        return plan

    def apply(self, update: Mapping[str, Tensor], plan: Plan, key: int) -> Tree:
        """Release an update: new tensors of the same dtypes and shapes.

        Args:
            update: tensors by name; integer tensors pass untouched.
            plan: what ``calibrate`` returned for this model.
            key: randomness of this release; equal keys give equal bits.

        Raises:
            Inconsistent: the plan was made by another defense, for other names or
                shapes, or a tensor that it covers holds integers.
        """
        own = registered_name(type(self))
        if plan.defense != own:
            msg = f"the plan was made by {plan.defense!r}; calibrate {own!r} itself"
            raise Inconsistent(msg)
        expected = {n: torch.empty(s, device="meta") for n, s in plan.shapes.items()}
        check_same_layout(update, expected, what="the update given to the plan")
        whole = [n for n in plan.covers if not update[n].is_floating_point()]
        if whole:
            msg = f"integer tensors cannot be defended: {', '.join(whole)}"
            raise Inconsistent(msg)
        released = self._release({n: update[n] for n in plan.covers}, plan, key)
        return {n: released.get(n, t).clone() for n, t in update.items()}

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        """Transform the covered tensors.

        What acts on the model, on examples or between clients leaves a finished update
        as it is.
        """
        del plan, key
        return covered

    @abstractmethod
    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Return the law after this defense, given the law before it.

        Args:
            law: law of what enters.
            plan: the calibrated plan.
            observed: the final release if every later defense preserves zeros (the
                pattern this one left is then visible to anyone), else None.
        """

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Return what differential privacy can rely on after this defense.

        A clipping returns ``before.clipped(names, norm, unit)``; noise returns
        ``before.plus_noise(variances)``, by coordinate, correlated noise by its
        smallest eigenvalue; a mask from public data ``before.masked(kept)``. A scale
        that comes from the private data returns ``before.void(sentence)``. A map that
        cannot raise the sensitivity of one unit returns ``before.processed()``.

        The default is right for any map of the release alone: free after complete
        noise, of unknown sensitivity before it.
        """
        del plan
        name = registered_name(type(self))
        return before.processed(
            f"{name!r} acts between clipping and noise, and how far one example can "
            f"move its output is not known"
        )

    @property
    def designed_for(self) -> int | None:
        """B of a client's batch that the plan is made for; None if for any."""
        return None

    @property
    def adds_noise(self) -> bool:
        """Whether the release is randomised by additive noise."""
        return False

    @property
    def correlates_noise(self) -> bool:
        """Whether the coordinates of the added noise depend on each other."""
        return False

    @property
    def preserves_zeros(self) -> bool:
        """Whether what leaves is zero exactly where what entered was."""
        return False

    def _plan(
        self,
        task: Task,
        *,
        numbers: Mapping[str, float] | None = None,
        arrays: Mapping[str, Tensor] | None = None,
    ) -> Plan:
        """Make the plan for a task's parameters."""
        parameters = task.parameters()
        return Plan(
            defense=registered_name(type(self)),
            shapes={name: tuple(p.shape) for name, p in parameters.items()},
            covers=self.covered(parameters),
            numbers=numbers or {},
            arrays=arrays or {},
        )


class Aggregation(Defense):
    """A defense that shows the server a combination of several clients' updates.

    The private batch is cut into one part per client; every client runs the defenses
    before this one on its own part, with its own noise.
    """

    stage: ClassVar[Stage] = Stage.AGGREGATE

    @abstractmethod
    def split(self, candidate: Candidate) -> tuple[Candidate, ...]:
        """Cut a batch into the parts of the clients, in order.

        Raises:
            InvalidInput: the batch has fewer examples than there are clients.
        """

    @abstractmethod
    def combine(self, updates: list[Tree], plan: Plan, key: int) -> Tree:
        """Run the protocol on the clients' releases; return what the server learns.

        Args:
            updates: one release per client, in the order of :meth:`split`.
            plan: the calibrated plan.
            key: randomness of the protocol.
        """

    @abstractmethod
    def weights(self) -> tuple[float, ...]:
        """Return w_k of the sum Σ_k w_k O_k, one per client; 0 if it dropped out."""

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Return the law of Σ_k w_k O_k: independent noises add, Σ_k w_k² Σ.

        The maps of ``law`` act on the clients and are part of the forward model.
        """
        del plan, observed
        factor = sum(w**2 for w in self.weights())
        law = replace(
            law,
            maps=(),
            surrogate=None,
            variance={n: factor * v for n, v in law.variance.items()},
            covariance=None
            if law.covariance is None
            else law.covariance.scaled(factor),
        )
        if law.cov_depends_on_data:
            return replace(law, not_gaussian=_SUM_OF_PRIVATE)
        if law.family != "gaussian" and sum(w > 0 for w in self.weights()) > 1:
            return replace(law, not_gaussian=_SUM_OF_NOISES)
        return law
