"""The measurement model D∘F: an observation model followed by defenses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from exhume.errors import InvalidInput
from exhume.keys import fold
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan
from exhume.problem.law import Law
from exhume.problem.observation import Candidate, Observation, ObservationModel
from exhume.problem.task import Task

__all__ = ["Mechanism"]


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
        stages = [defense.stage.value for defense in self.defenses]
        if stages != sorted(stages):
            order = ", ".join(type(d).__name__ for d in self.defenses)
            msg = (
                f"the defenses [{order}] are not in the order of their stages "
                f"(data, model, example, update, aggregate); reorder them"
            )
            raise InvalidInput(msg)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> tuple[Plan, ...]:
        """Calibrate every defense on the model and public data."""
        return tuple(
            defense.calibrate(task, public, fold(key, "calibrate", i))
            for i, defense in enumerate(self.defenses)
        )

    def release(
        self, update: Mapping[str, Tensor], plans: tuple[Plan, ...], key: int
    ) -> dict[str, Tensor]:
        """Apply every defense to an exact update (the half that needs no model)."""
        released = dict(update)
        for i, (defense, plan) in enumerate(zip(self.defenses, plans, strict=True)):
            released = defense.apply(released, plan, fold(key, "apply", i))
        return released

    def sample(
        self, task: Task, batch: Batch, key: int, public: Batch | None = None
    ) -> Observation:
        """Run the mechanism once on private data.

        Args:
            task: model, loss, mode.
            batch: the private S.
            key: all randomness of the run.
            public: public data for calibration.
        """
        plans = self.calibrate(task, public, key)
        inputs = batch.inputs.to(task.dtype)
        exact = self.observation.forward(task, Candidate(inputs, batch.targets))
        statistics = {
            name: (mean.detach(), var.detach())
            for name, (mean, var) in task.batch_statistics(inputs).items()
        }
        values = self.release({n: t.detach() for n, t in exact.items()}, plans, key)
        return Observation(values, statistics, plans, key)

    def law(
        self, plans: tuple[Plan, ...], observed: Mapping[str, Tensor] | None = None
    ) -> Law:
        """Return p(O | S) for calibrated plans.

        Args:
            plans: one plan per defense.
            observed: the release, if there is one; its zeros show what a defense
                removed unless a later one adds noise or removes more.
        """
        law = Law()
        for i, (defense, plan) in enumerate(zip(self.defenses, plans, strict=True)):
            seen = all(later.preserves_zeros for later in self.defenses[i + 1 :])
            law = defense.push(law, plan, observed if seen else None)
        return law
