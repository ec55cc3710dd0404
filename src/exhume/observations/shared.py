"""What a client shared, with all that an auditor must know of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from exhume.errors import InvalidInput
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.consistency import check_weights, weights_sha256
from exhume.problem.defense import Defense, Plan
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Problem, Unknown, or_unknown
from exhume.problem.law import Law
from exhume.problem.losses import Loss
from exhume.problem.mechanism import Mechanism
from exhume.problem.observation import ObservationModel
from exhume.problem.prior import Density
from exhume.problem.task import Normalisation, Task
from exhume.problem.threat import sorted_targets
from exhume.problem.tree import Tree

__all__ = ["SharedObservation", "share"]

Statistics = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False, kw_only=True)
class SharedObservation:
    """What a client shared, as it shared it; a plain file of tensors lacks the rest.

    Attributes:
        values: the released tensors O by name.
        observation: F, as far as it is known; an update without ``rate`` leaves the
            step size open, one in ``unknown`` order the order.
        frozen: parameters that the client did not train.
        spec: shape, kind and range of one example; None if nobody said.
        loss: the training loss, or its name.
        mode: ``eval`` or ``train``; None if nobody said.
        normalise: fixed map applied to inputs first, or None.
        reference: parameters at which O was computed; empty if withheld.
        buffers: the model's buffers at that moment; empty if withheld.
        reference_sha256: hash of both, or None.
        batch_size: B.
        targets: labels, sorted.
        batch_statistics: BatchNorm layer → (mean, variance) of the client's batch.
        defenses: the stack D, in order.
        plans: one calibrated plan per defense.
    """

    values: Tree
    observation: ObservationModel = field(default_factory=Gradient)
    frozen: tuple[str, ...] = ()
    spec: EventSpec | None = None
    loss: str | Loss = "cross-entropy"
    mode: Literal["eval", "train"] | None = None
    normalise: Normalisation | None = None
    reference: Tree = field(default_factory=dict)
    buffers: Tree = field(default_factory=dict)
    reference_sha256: str | None = None
    batch_size: int | Unknown = UNKNOWN
    targets: Tensor | Unknown = UNKNOWN
    batch_statistics: Statistics | Unknown = UNKNOWN
    defenses: tuple[Defense, ...] | Unknown = UNKNOWN
    plans: tuple[Plan, ...] = ()

    @property
    def law(self) -> Law | Unknown:
        """The law that the defenses induce, if they are known."""
        if self.defenses is UNKNOWN:
            return UNKNOWN
        return Mechanism(self.observation, self.defenses).law(self.plans, self.values)

    def problem(
        self,
        model: nn.Module,
        *,
        public: Batch | Unknown = UNKNOWN,
        prior: Density | Unknown = UNKNOWN,
    ) -> Problem:
        """Put observation, model and public knowledge together for an attack.

        Args:
            model: the client's network; a copy of it gets the reference weights if
                there are some.
            public: public examples.
            prior: density of one example.

        Raises:
            InvalidInput: the event or the mode is not set.
            Inconsistent: the reference weights do not fit the model.
        """
        if self.spec is None:
            msg = (
                "the observation does not say what one example looks like; set spec "
                "(--shape)"
            )
            raise InvalidInput(msg)
        task = self.task(model)
        forward, law = self.observation, self.law
        if self.defenses is not UNKNOWN:
            mechanism = Mechanism(forward, self.defenses)
            induced = mechanism.induced(task, self.plans, self.values)
            task, forward, law = induced.task, induced.model, induced.law
        observed = {n: t.to(task.device) for n, t in self.values.items()}
        # Half precision is computed with in the model's own; the check still sees it.
        if all(t.is_floating_point() for t in observed.values()):
            observed = {n: t.to(task.dtype) for n, t in observed.items()}
        return Problem(
            observed=observed,
            spec=self.spec,
            task=task,
            targets=self.targets,
            batch_size=self.batch_size,
            batch_statistics=self.batch_statistics,
            observation_model=forward.informed(None, None),
            learning_rate=or_unknown(forward.known_rate),
            batch_order=or_unknown(forward.known_order),
            law=law,
            prior=prior,
            public=public,
        )

    def task(self, model: nn.Module) -> Task:
        """Return the client's task: the model at the reference weights, loss, mode."""
        if self.mode is None:
            msg = (
                "the observation does not say whether the model ran in eval or train "
                "mode, which BatchNorm depends on; set mode (--mode)"
            )
            raise InvalidInput(msg)
        if self.reference:
            check_weights(self.reference, model)
            dtype = next(iter(self.reference.values())).dtype
            model = copy.deepcopy(model).to(dtype)
            model.load_state_dict({**self.reference, **self.buffers}, strict=False)
        elif self.frozen:
            model = copy.deepcopy(model)
        for name, parameter in model.named_parameters():
            if name in self.frozen:
                parameter.requires_grad_(False)
        return Task(model, self.loss, self.mode, self.normalise)


def share(
    values: Mapping[str, Tensor],
    task: Task,
    spec: EventSpec,
    *,
    batch_size: int | Unknown = UNKNOWN,
    targets: Tensor | Unknown = UNKNOWN,
    batch_statistics: Statistics | Unknown = UNKNOWN,
    mechanism: Mechanism | Unknown = UNKNOWN,
    plans: tuple[Plan, ...] = (),
    reference: bool = True,
) -> SharedObservation:
    """Describe a gradient for ``observations.file.save``; the rest is withheld.

    Args:
        values: the released tensors O by name.
        task: model, loss and mode with which it was computed.
        spec: shape, kind and range of one example.
        batch_size: B.
        targets: labels; their order is forgotten.
        batch_statistics: BatchNorm statistics of the batch.
        mechanism: observation model and defenses that made O.
        plans: their calibrated plans.
        reference: give the weights too, not their hash alone.
    """
    return SharedObservation(
        values=dict(values),
        observation=Gradient() if mechanism is UNKNOWN else mechanism.observation,
        spec=spec,
        loss=task.loss,
        mode=task.mode,
        normalise=task.normalise,
        reference=dict(task.model.named_parameters()) if reference else {},
        buffers=dict(task.model.named_buffers()) if reference else {},
        reference_sha256=weights_sha256(task),
        batch_size=batch_size,
        targets=UNKNOWN if targets is UNKNOWN else sorted_targets(targets),
        batch_statistics=batch_statistics,
        defenses=UNKNOWN if mechanism is UNKNOWN else mechanism.defenses,
        plans=plans,
    )
