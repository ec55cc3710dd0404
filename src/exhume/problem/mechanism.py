"""The measurement model D∘F: an observation model followed by defenses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.keys import fold
from exhume.problem.aggregate import Aggregate
from exhume.problem.batch import Batch
from exhume.problem.defense import Aggregation, Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.privacy import Guarantee
from exhume.problem.release import Observation
from exhume.problem.task import Task
from exhume.problem.tree import Tree, detached
from exhume.registry import registered_name

__all__ = ["Induced", "Mechanism"]


@dataclass(frozen=True, eq=False)
class Induced:
    """What a mechanism with calibrated plans amounts to: O = h(F(S)) + n.

    Attributes:
        task: after the defenses of the model stage.
        model: F, after those that need the examples or several clients.
        law: h and the noise.
    """

    task: Task
    model: ObservationModel
    law: Law


@dataclass(frozen=True)
class Mechanism:
    """A randomised mechanism: F, then each defense in order.

    Attributes:
        observation: the forward model F.
        defenses: D = Dₙ ∘ … ∘ D₁, in the order in which they act.

    Raises:
        InvalidInput: something is not of its kind, or the defenses are not sorted by
            stage.
    """

    observation: ObservationModel
    defenses: tuple[Defense, ...] = field(default=())

    def __post_init__(self) -> None:
        given = self.defenses
        defenses = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not isinstance(self.observation, ObservationModel) or not all(
            isinstance(defense, Defense) for defense in defenses
        ):
            msg = (
                f"a mechanism is an observation model and a list of defenses, got "
                f"{self.observation!r} and {given!r}; for example "
                f"Mechanism(Gradient(), [GaussianNoise(std=0.01)])"
            )
            raise InvalidInput(msg)
        object.__setattr__(self, "defenses", defenses)
        kind, stage, aggregations = self.observation.kind, 0, 0
        for defense in self.defenses:
            if defense.stage.value < stage:
                order = ", ".join(type(d).__name__ for d in self.defenses)
                msg = (
                    f"the defenses [{order}] are not in the order of their stages "
                    f"(data, model, example, update, aggregate); reorder them"
                )
                raise InvalidInput(msg)
            stage = defense.stage.value
            aggregations += isinstance(defense, Aggregation)
            inside = _acts_inside(defense) or defense.stage is Stage.EXAMPLE
            if inside and kind != "gradient":
                msg = (
                    f"{registered_name(type(defense))!r} changes how one gradient is "
                    f"computed, and the client shares {kind}; use a defense of the "
                    f"whole update, or options of the observation"
                )
                raise InvalidInput(msg)
        if aggregations > 1:
            msg = "a mechanism aggregates clients at most once; remove one aggregation"
            raise InvalidInput(msg)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> tuple[Plan, ...]:
        """Calibrate every defense on public data and the model it will meet.

        Raises:
            InvalidInput: correlated noise stands beside a defense after which its
                covariance has no cheap inverse.
        """
        plans, correlated = [], False
        for i, defense in enumerate(self.defenses):
            plan = defense.calibrate(task, public, fold(key, "calibrate", i))
            task = defense.transform_task(task, plan)
            plans.append(plan)
            correlated |= defense.correlates_noise
        if correlated and len(plans) > 1:
            # What the law of a release would raise, before there is a release.
            shapes = plans[-1].shapes.items()
            ones = {name: torch.ones(shape) for name, shape in shapes}
            self._laws(tuple(plans), ones)
        return tuple(plans)

    def redraw(self, plans: tuple[Plan, ...], key: int) -> tuple[Plan, ...]:
        """Return the plans of another step of a training: new masks, the same scales.

        Args:
            plans: of :meth:`calibrate`.
            key: public randomness of the step.
        """
        return tuple(
            defense.redraw(plan, fold(key, "redraw", i))
            for i, (defense, plan) in enumerate(zip(self.defenses, plans, strict=True))
        )

    def check_batch(self, batch: Batch) -> None:
        """Raise unless every defense is made for batches of a client's size.

        Args:
            batch: the private S, of all clients together.

        Raises:
            InvalidInput: a defense is made for batches of another size.
        """
        for defense in self.defenses:
            if defense.designed_for is None:
                continue
            own = len(batch)
            if self.aggregation is not None:
                parts = self.aggregation.split(Candidate(batch.inputs, batch.targets))
                own = len(parts[0].inputs)
            if defense.designed_for != own:
                msg = (
                    f"{registered_name(type(defense))!r} is made for batches of "
                    f"{defense.designed_for}, but the private batch of a client has "
                    f"{_examples(own)}; set its option batch_size to {own}"
                )
                raise InvalidInput(msg)

    def release(
        self, update: Mapping[str, Tensor], plans: tuple[Plan, ...], key: int
    ) -> dict[str, Tensor]:
        """Apply every defense to an exact update (the half that needs no model)."""
        released = dict(update)
        for i, (defense, plan) in enumerate(zip(self.defenses, plans, strict=True)):
            released = defense.apply(released, plan, fold(key, "apply", i))
        return released

    def sample(
        self,
        task: Task,
        batch: Batch,
        key: int,
        public: Batch | None = None,
        plans: tuple[Plan, ...] | None = None,
        exact: tuple[Tree, ...] | None = None,
    ) -> Observation:
        """Run the mechanism once on private data.

        Args:
            task: model, loss, mode.
            batch: the private S.
            key: all randomness of the run.
            public: public data for calibration.
            plans: calibrated plans, if there are any already.
            exact: F(S) of each client, if :meth:`exact` has computed it for this run.

        Raises:
            InvalidInput: a defense is made for batches of another size.
        """
        self.check_batch(batch)
        if plans is None:
            plans = self.calibrate(task, public, key)
        values = self.values(task, batch, key, plans, exact)
        task, _ = self.transformed(task, plans)
        statistics = {
            name: (mean.detach(), var.detach())
            for name, (mean, var) in task.batch_statistics(
                batch.inputs.to(task.dtype)
            ).items()
        }
        return Observation(values, statistics, plans, key)

    def transformed(
        self, task: Task, plans: tuple[Plan, ...]
    ) -> tuple[Task, ObservationModel]:
        """Return the task and F of one client after every defense, as is public."""
        model = self.observation
        for defense, plan in zip(self.defenses, plans, strict=True):
            task = defense.transform_task(task, plan)
            model = defense.transform_model(model, plan)
        return task, model

    def values(
        self,
        task: Task,
        batch: Batch,
        key: int,
        plans: tuple[Plan, ...],
        exact: tuple[Tree, ...] | None = None,
    ) -> Tree:
        """Return what :meth:`sample` releases, and nothing else of the observation."""
        if exact is None:
            exact = self.exact(task, batch, key, plans)
        own = self.defenses if self.aggregation is None else self.defenses[:-1]
        client = Mechanism(self.observation, own)
        updates = []
        for (part, secret), update in zip(
            self._clients(task, batch, key), exact, strict=True
        ):
            _, _, personal = self._personalise(len(own), task, part, plans, secret)
            updates.append(client.release(update, personal, secret))
        if self.aggregation is None:
            return updates[0]
        return self.aggregation.combine(updates, plans[-1], fold(key, "combine"))

    def exact(
        self, task: Task, batch: Batch, key: int, plans: tuple[Plan, ...]
    ) -> tuple[Tree, ...]:
        """Return F(S) of each client; there is one client without an aggregation.

        It depends on the first :attr:`shaping` defenses and on the aggregation, so that
        mechanisms which differ in the others share it.

        Args:
            task: model, loss, mode.
            batch: the private S, of all clients together.
            key: all randomness of the run.
            plans: calibrated plans.

        Raises:
            InvalidInput: a defense is made for batches of another size.
        """
        self.check_batch(batch)
        updates = []
        for part, secret in self._clients(task, batch, key):
            seen, model, _ = self._personalise(self.shaping, task, part, plans, secret)
            update = model.forward(seen, part)
            updates.append(detached(update))
        return tuple(updates)

    @property
    def aggregation(self) -> Aggregation | None:
        """What combines several clients, or None if there is one client."""
        last = self.defenses[-1] if self.defenses else None
        return last if isinstance(last, Aggregation) else None

    @property
    def shaping(self) -> int:
        """How many of the first defenses F(S) depends on: later ones need it alone."""
        count = 0
        for i, defense in enumerate(self.defenses, 1):
            replaces = type(defense).transform_task is not Defense.transform_task
            if replaces or _acts_inside(defense):
                count = i
        return count

    def _clients(
        self, task: Task, batch: Batch, key: int
    ) -> list[tuple[Candidate, int]]:
        """Cut the batch into the parts of the clients; each has a key of its own."""
        whole = Candidate(batch.inputs.to(task.dtype), batch.targets)
        if self.aggregation is None:
            return [(whole, key)]
        parts = self.aggregation.split(whole)
        return [(part, fold(key, "client", k)) for k, part in enumerate(parts)]

    def _personalise(
        self, count: int, task: Task, own: Candidate, plans: tuple[Plan, ...], key: int
    ) -> tuple[Task, ObservationModel, tuple[Plan, ...]]:
        """Return the task, F and plans of a client after the first defenses."""
        model, personal = self.observation, []
        for i, (defense, public_plan) in enumerate(
            zip(self.defenses[:count], plans[:count], strict=True)
        ):
            secret = fold(key, "personalise", i)
            plan = defense.personalise(task, model, own, public_plan, secret)
            task = defense.transform_task(task, plan)
            model = defense.transform_model(model, plan)
            personal.append(plan)
        return task, model, tuple(personal)

    def induced(
        self,
        task: Task,
        plans: tuple[Plan, ...],
        observed: Mapping[str, Tensor] | None = None,
    ) -> Induced:
        """Return the task, forward model and law that calibrated plans amount to.

        Args:
            task: before any defense.
            plans: one plan per defense.
            observed: the release, if there is one; its zeros show what a defense
                removed unless a later one adds noise or removes more.
        """
        laws = self._laws(plans, observed)
        model = self.observation
        for defense, plan, law in zip(self.defenses, plans, laws, strict=False):
            task = defense.transform_task(task, plan)
            if isinstance(defense, Aggregation):
                model = Aggregate(model, law.mean, defense)
            model = defense.transform_model(model, plan)
        return Induced(task, model, laws[-1])

    def law(
        self, plans: tuple[Plan, ...], observed: Mapping[str, Tensor] | None = None
    ) -> Law:
        """Return the law alone, see :meth:`induced`; it does not depend on the task."""
        return self._laws(plans, observed)[-1]

    def guarantee(self, plans: tuple[Plan, ...]) -> Guarantee:
        """Return what differential privacy can rely on: sensitivity, noise, unit."""
        # The last plan knows every tensor that is released: models may grow.
        found = Guarantee(plans[-1].shapes) if plans else Guarantee()
        for defense, plan in zip(self.defenses, plans, strict=True):
            found = defense.account(found, plan)
        return found

    def _laws(
        self, plans: tuple[Plan, ...], observed: Mapping[str, Tensor] | None
    ) -> list[Law]:
        """Return the law before every defense, and that of the release."""
        laws = [Law()]
        for i, (defense, plan) in enumerate(zip(self.defenses, plans, strict=True)):
            seen = all(later.preserves_zeros for later in self.defenses[i + 1 :])
            laws.append(defense.push(laws[-1], plan, observed if seen else None))
        return laws


def _acts_inside(defense: Defense) -> bool:
    """Say whether a defense changes how the update is computed."""
    return type(defense).transform_model is not Defense.transform_model


def _examples(count: int) -> str:
    return f"{count} example" if count == 1 else f"{count} examples"
