"""The evaluator's side: the truth lives here and nowhere else."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field

from exhume.errors import InvalidInput
from exhume.problem.batch import Batch
from exhume.problem.defense import Plan
from exhume.problem.mechanism import Mechanism
from exhume.problem.prior import Density
from exhume.problem.release import Observation
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["World"]


@dataclass(frozen=True, eq=False)
class World:
    """Task, private batch and mechanism, with what is public around them.

    Attributes:
        task: model, loss, mode.
        batch: the private S.
        mechanism: D∘F.
        public: public examples, disjoint from the batch, or None.
        prior: a density fitted to public data, or None.

    Raises:
        InvalidInput: a private example is among the public ones, or a label is not one
            of the model's classes.
    """

    task: Task
    batch: Batch
    mechanism: Mechanism
    public: Batch | None = None
    prior: Density | None = None
    _plans: dict[int, tuple[Plan, ...]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        self._check_labels()
        if self.public is None:
            return
        if self.public.spec.shape != self.batch.spec.shape:
            msg = (
                f"public examples have shape {list(self.public.spec.shape)}, private "
                f"ones {list(self.batch.spec.shape)}; use data of one shape"
            )
            raise InvalidInput(msg)
        if bool(self.public.found_in(self.batch).any()):
            msg = (
                "a private example is also among the public ones, which would hand the "
                "answer to the attacker; split the data first"
            )
            raise InvalidInput(msg)

    def _check_labels(self) -> None:
        labels = self.batch.targets
        loss = self.task.criterion
        if labels.is_floating_point() or loss.real:
            return
        outputs = self.task.output_size(self.batch.inputs.to(self.task.dtype))
        classes = loss.class_count(outputs)
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= classes:
            msg = (
                f"labels lie in [{least}, {most}], but the model has {outputs} "
                f"output{'s' * (outputs > 1)} and the loss is {loss.name!r}; "
                f"expected 0 to {classes - 1}"
            )
            raise InvalidInput(msg)

    def observe(
        self, key: int = 0, *, exact: tuple[Tree, ...] | None = None
    ) -> Observation:
        """Run the mechanism once; equal keys give equal bits.

        Args:
            key: all randomness of the run.
            exact: F(S) of each client, if :meth:`exact` has computed it for this key.
        """
        plans = self.plans(key)
        return self.mechanism.sample(
            self.task, self.batch, key, plans=plans, exact=exact
        )

    def exact(self, key: int = 0) -> tuple[Tree, ...]:
        """Return F(S) of each client, see :meth:`Mechanism.exact`."""
        return self.mechanism.exact(self.task, self.batch, key, self.plans(key))

    def plans(self, key: int) -> tuple[Plan, ...]:
        """Return the plans of ``observe(key)``; they are made once, on public data.

        Raises:
            InvalidInput: a defense is made for batches of another size.
        """
        self.mechanism.check_batch(self.batch)
        if key not in self._plans:
            plans = self.mechanism.calibrate(self.task, self.public, key)
            self._plans[key] = plans
        return self._plans[key]

    def with_plans(self, key: int, plans: tuple[Plan, ...]) -> World:
        """Return a world whose defenses have these plans in ``observe(key)``.

        Args:
            key: of the run.
            plans: one per defense, as the mechanism calibrates them.
        """
        world = copy(self)  # nothing else changes, so nothing is checked again
        object.__setattr__(world, "_plans", {**self._plans, key: plans})
        return world
