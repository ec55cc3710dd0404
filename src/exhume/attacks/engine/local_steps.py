"""The objective of simulated local training: its step size and order may be open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from exhume.attacks.engine.batch_order import exchanged
from exhume.attacks.engine.objective import Objective
from exhume.attacks.engine.scalar_search import minimise_scalar
from exhume.formula import formula
from exhume.observations.update import Update
from exhume.problem.observation import Candidate
from exhume.problem.tree import Tree, norm, subtract

__all__ = ["LocalSteps", "local_steps", "schedule_notes", "small_step_rate"]

# log η moves by this much where the variable of the solver moves by one.
_PACE = 0.2
# Factor by which η may differ from the one of small steps.
_FACTOR = 30.0


@formula(
    r"\eta \approx \frac{\lVert O \rVert_2}{\lVert \sum_t d_t(\Theta_0) \rVert_2}",
    reference="limit of small steps: all gradients are taken at the initial weights",
)
def small_step_rate(update: Tree, observed: Tree) -> float:
    """Return the step size that gives an update the observed length.

    Args:
        update: Θ_T − Θ_0 in units of η, all gradients taken at Θ_0.
        observed: O, same layout.

    Returns:
        η > 0; 1 where one of the two is zero or not finite.
    """
    rate = float(norm(observed)) / max(float(norm(update)), 1e-30)
    return rate if 0 < rate < math.inf else 1.0


@dataclass(frozen=True, eq=False)
class LocalSteps(Objective):
    """The objective of an ``Update`` that is simulated step by step.

    Where the step size is not known, log η is one unknown more; at given inputs it is
    searched around the one that explains the length of O. Where the order of the
    examples is not known, it is searched at given inputs by exchanges between the
    steps of an epoch, from the model's guess for sorted labels on. So the objective
    remains a function of the candidate. Inputs [copies · B, *event] let every epoch
    have its own copy of the examples; a batch [B, *event] stands for equal copies.

    Attributes:
        size: B.
        batches: the examples of every step, among all copies.
        copies: how many.
        open_order: the batches are a guess.
        exchanges: simulations at most for one search of the order; 0 keeps the guess.
    """

    size: int = 0
    batches: Sequence[Tensor] = field(default_factory=tuple)
    copies: int = 1
    open_order: bool = False
    exchanges: int = 0

    @property
    def client(self) -> Update:
        """The observation model."""
        assert isinstance(self.model, Update)
        return self.model

    @property
    def searches(self) -> bool:
        """Whether the order is open and searched."""
        return self.open_order and self.exchanges > 0

    def settle(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return log η if it is unknown, in the units of the solver."""
        if self.client.rate is not None:
            return ()
        with torch.no_grad():
            small = self._train(inputs, targets, {})
            middle = math.log(small_step_rate(small, self.discrepancy.observed))

            def at(log_rate: float) -> float:
                unknown = inputs.new_tensor(log_rate / _PACE)
                return float(self(inputs, targets, (unknown,)))

            width = math.log(_FACTOR)
            found = minimise_scalar(at, middle - width, middle + width)
        return (inputs.new_tensor(found / _PACE),)

    def rate(self, unknowns: Sequence[Tensor]) -> Tensor:
        """Return η of the further unknowns, a scalar."""
        return (_PACE * unknowns[0]).exp()

    def simulate(
        self, inputs: Tensor, targets: Tensor, unknowns: Sequence[Tensor]
    ) -> Tree:
        """Return the update of a client with these examples."""
        nuisance = {"rate": self.rate(unknowns)} if unknowns else {}
        return self._train(inputs, targets, nuisance)

    def value(self, inputs: Tensor, targets: Tensor) -> float:
        """Return the objective of a candidate, its order searched where it is open."""
        if not self.open_order:
            return super().value(inputs, targets)
        rows = targets.reshape(len(targets), -1).tolist()
        order = torch.tensor(sorted(range(len(rows)), key=rows.__getitem__))
        inputs, targets = inputs[order], targets[order]
        return self.ordered(inputs, targets).value(inputs, targets)

    def ordered(self, inputs: Tensor, targets: Tensor) -> LocalSteps:
        """Return the objective with the best order that exchanges find, now fixed.

        Args:
            inputs: x, shape [B, *event].
            targets: y.
        """
        fixed, inputs = replace(self, open_order=False), inputs.to(self.task.dtype)
        if not self.exchanges:
            return fixed
        with torch.no_grad():
            unknowns = fixed.settle(inputs, targets)

            def value(batches: Sequence[Tensor]) -> float:
                own = replace(fixed, batches=batches)
                return float(own(inputs, targets, unknowns))

            epochs = self.client.epochs
            found = exchanged(value, list(self.batches), epochs, self.exchanges)
        return replace(fixed, batches=found)

    def _train(
        self, inputs: Tensor, targets: Tensor, nuisance: Mapping[str, Tensor]
    ) -> Tree:
        if len(inputs) == self.size:
            inputs = inputs.repeat(self.copies, *[1] * (inputs.dim() - 1))
        if len(targets) == self.size:
            targets = targets.repeat(self.copies, *[1] * (targets.dim() - 1))
        free = (inputs, targets, *nuisance.values())
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in free)
        path = self.client.path(
            self.task,
            Candidate(inputs, targets, nuisance),
            graph=graph,
            batches=self.batches,
        )
        return subtract(path[-1], path[0])


def local_steps(
    plain: Objective, size: int, *, copies: int = 1, exchanges: int = 0
) -> Objective:
    """Return the objective with what is open about local steps, if there are any.

    Args:
        plain: the objective of the observation model as it is.
        size: B.
        copies: of the examples, which neighbouring epochs share; at most E count.
        exchanges: simulations at most for one search of the order. It is not open
            where it is known or where an epoch has one step.
    """
    model = plain.model
    if not isinstance(model, Update):
        return plain
    copies = min(copies, model.epochs)
    batches = model.batches(size)
    steps = len(batches) // model.epochs
    own = [
        index + size * (t // steps * copies // model.epochs)
        for t, index in enumerate(batches)
    ]
    return LocalSteps(
        plain.task,
        model,
        plain.discrepancy,
        plain.weight,
        plain.priors,
        size=size,
        batches=own,
        copies=copies,
        open_order=model.known_order is None and steps > 1,
        exchanges=exchanges,
    )


def schedule_notes(
    objective: Objective, inputs: Tensor, targets: Tensor
) -> tuple[str, ...]:
    """Say what stands in for facts of the local training that are not known.

    Args:
        objective: of the attack.
        inputs: its answer, shape [B, *event].
        targets: the labels of the answer.
    """
    if not isinstance(objective, LocalSteps):
        return ()
    notes: tuple[str, ...] = ()
    if objective.open_order:
        search = "improved by exchanges" if objective.exchanges else "kept"
        notes = (
            f"The order of the examples is not known; a guess, sorted labels spread "
            f"over the steps of every epoch, was {search}.",
        )
    unknowns = objective.settle(inputs, targets)
    if not unknowns:
        return notes
    rate = float(objective.rate(unknowns))
    sentence = f"The step size is not known; {rate:.3g} explains the answer best."
    return (*notes, sentence)
