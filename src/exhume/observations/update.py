"""The change of the weights after local training, O = Θ_T − Θ_0."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.observations.local_training import Optimiser, OptimiserName, State
from exhume.problem.observation import Candidate, ObservationKind, ObservationModel
from exhume.problem.task import Task
from exhume.problem.tree import Tree, detached, subtract

__all__ = ["Update"]

# From so many steps on, the graph of a step is computed again on the way back.
_MANY_STEPS = 8
# Stands for the order of the batch itself, where an order is named by its key.
_GIVEN = -1


@dataclass(frozen=True, kw_only=True)
class Update(ObservationModel):
    """The update of a client, F(S) = Θ_T − Θ_0 after E epochs over its examples.

    Θ_{t+1} = Θ_t − η · direction(∇L(Θ_t; S_t)), T = E ⌈B/b⌉ steps; its sign is that of
    a *step*, so one step of plain SGD gives −η ∇L. Simulated step by step and
    differentiable in the examples; from eight steps on, a step is computed again
    on the way back, so that memory grows with the weights and not with the network.

    Without ``rate`` the limit of small steps is meant, in units of η: all gradients are
    taken at Θ_0. Directions are right then, the length is not. A candidate may carry
    its own guess of η, the nuisance variable ``rate``.

    Attributes:
        epochs: E ≥ 1 passes over the examples.
        batch_size: b examples per step; 0 takes all of them. A last, smaller batch
            counts.
        rate: η > 0; None where it is not known.
        optimiser: ``sgd``, ``adam`` or ``adamw``.
        momentum: of SGD, in [0, 1).
        nesterov: Nesterov's form of it.
        weight_decay: ≥ 0; joins the gradient, except in ``adamw``.
        clip: largest norm of the gradient of one step; 0 for none.
        epsilon: ε > 0 of Adam.
        order: ``shuffled`` anew in every epoch by a key, ``given`` (the order of the
            batch, in every epoch), or ``unknown``: every k-th example of the batch, so
            that sorted labels are spread evenly over k steps.
        order_key: of ``shuffled``.

    Raises:
        InvalidInput: an option is out of range.
    """

    epochs: int = 1
    batch_size: int = 0
    rate: float | None = 0.1
    optimiser: OptimiserName = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip: float = 0.0
    epsilon: float = 1e-8
    order: Literal["shuffled", "given", "unknown"] = "shuffled"
    order_key: int = 0

    kind: ClassVar[ObservationKind] = "update"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 0)):
            if getattr(self, name) < least:
                msg = f"{name} is {getattr(self, name)}; it must be at least {least}"
                raise InvalidInput(msg)
        if self.rate is not None and not 0 < self.rate < math.inf:
            msg = f"rate is {self.rate}; expected a learning rate above 0"
            raise InvalidInput(msg)
        for name, most in (
            ("momentum", 1.0),
            ("weight_decay", math.inf),
            ("clip", math.inf),
        ):
            if not 0 <= getattr(self, name) < most:
                below = f" and below {most:g}" if most < math.inf else ""
                msg = f"{name} is {getattr(self, name)}; expected at least 0{below}"
                raise InvalidInput(msg)
        if not 0 < self.epsilon < math.inf:
            msg = f"epsilon is {self.epsilon}; expected a positive number"
            raise InvalidInput(msg)
        if self.optimiser != "sgd" and (self.momentum or self.nesterov):
            msg = f"momentum belongs to sgd, the optimiser is {self.optimiser!r}"
            raise InvalidInput(msg)

    @property
    def rule(self) -> Optimiser:
        """The optimiser of the local steps."""
        return Optimiser(
            self.optimiser,
            self.momentum,
            self.nesterov,
            self.weight_decay,
            self.clip,
            self.epsilon,
        )

    def batches(self, examples: int) -> list[Tensor]:
        """Return the examples of every step, T index tensors in order.

        Args:
            examples: B, how many the client has.
        """
        size = self.batch_size or examples
        steps = math.ceil(examples / size)
        if self.order == "unknown":
            every = torch.arange(examples)
            return [every[k::steps] for k in range(steps)] * self.epochs
        return [
            part for e in range(self.epochs) for part in self._order(examples, e, size)
        ]

    def _order(self, examples: int, epoch: int, size: int) -> tuple[Tensor, ...]:
        if self.order == "given":
            return torch.arange(examples).split(size)
        local = generator(self.order_key, "order", epoch)
        return torch.randperm(examples, generator=local).split(size)

    def forward(self, task: Task, candidate: Candidate) -> Tree:
        """Return Θ_T − Θ_0 (autograd route)."""
        unknowns = (candidate.inputs, candidate.targets, *candidate.nuisance.values())
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in unknowns)
        path = self.path(task, candidate, graph=graph)
        return subtract(path[-1], path[0])

    def path(
        self,
        task: Task,
        candidate: Candidate,
        *,
        graph: bool,
        batches: Sequence[Tensor] | None = None,
    ) -> list[Tree]:
        """Return Θ_0 … Θ_T as the client takes them.

        Args:
            task: with Θ_0.
            candidate: the examples, in the order of the batch; its nuisance variable
                ``rate`` stands in for η where that is not known.
            graph: keep it differentiable in the examples.
            batches: the examples of every step; None for those of the schedule.
        """
        rate = candidate.nuisance.get("rate") if self.rate is None else self.rate
        theta = {
            n: p.detach().requires_grad_(graph) for n, p in task.parameters().items()
        }
        start, state, path = theta, State(), [theta]
        batches = self.batches(len(candidate.inputs)) if batches is None else batches
        saves = graph and len(batches) >= _MANY_STEPS
        for index in batches:
            where = start if rate is None else theta
            own = (candidate.inputs[index], candidate.targets[index])
            if saves:
                step = checkpoint(
                    self._step, task, *own, where, state, use_reentrant=False
                )
            else:
                step = self._step(task, *own, where, state)
            direction, state = step
            theta = _moved(theta, direction, rate, graph=graph)
            path.append(theta)
        return path

    def _step(
        self, task: Task, inputs: Tensor, targets: Tensor, theta: Tree, state: State
    ) -> tuple[Tree, State]:
        gradient = task.gradient(inputs, targets, theta)
        return self.rule.direction(theta, gradient, state)

    def forward_func(self, task: Task, candidate: Candidate) -> Tree:
        """Return Θ_T − Θ_0 (``torch.func`` route)."""
        start = detached(task.parameters())
        return self.forward_at(task, candidate, start)

    def forward_at(
        self, task: Task, candidate: Candidate, parameters: Mapping[str, Tensor]
    ) -> Tree:
        """Return Θ_T − Θ_0 from other weights Θ_0 (``torch.func`` route)."""
        theta, state = dict(parameters), State()
        rate = candidate.nuisance.get("rate") if self.rate is None else self.rate
        for index in self.batches(len(candidate.inputs)):
            where = dict(parameters) if rate is None else theta
            own = Candidate(candidate.inputs[index], candidate.targets[index])
            gradient = Gradient().forward_at(task, own, where)
            direction, state = self.rule.direction(where, gradient, state)
            theta = _moved(theta, direction, rate, graph=True)
        return subtract(theta, dict(parameters))

    @property
    def known_rate(self) -> float | None:
        """Step size η of the client."""
        return self.rate

    @property
    def known_order(self) -> int | None:
        """Key of the order in which the client visits its examples, or −1 (given)."""
        if self.order == "unknown":
            return None
        return _GIVEN if self.order == "given" else self.order_key

    def informed(self, rate: float | None, order: int | None) -> Update:
        """Return the model of someone who knows η and the order, or not (None).

        Args:
            rate: η.
            order: as :attr:`known_order` gives it.
        """
        if order is None:
            return replace(self, rate=rate, order="unknown", order_key=0)
        if order == _GIVEN:
            return replace(self, rate=rate, order="given", order_key=0)
        return replace(self, rate=rate, order="shuffled", order_key=order)

    def single_step(
        self, examples: int | None = None
    ) -> tuple[float, ObservationModel] | None:
        """Return (−η, the gradient) for one full-batch step of SGD, else None.

        Args:
            examples: B if it is known: a batch as large is the whole.
        """
        whole = self.batch_size == 0
        if examples is not None:
            whole = whole or self.batch_size >= examples
        alone = self.epochs == 1 and whole
        plain = self.optimiser == "sgd" and not self.weight_decay and not self.clip
        if not (alone and plain) or self.rate is None:
            return None
        ahead = 1 + self.momentum if self.nesterov else 1.0
        return -self.rate * ahead, Gradient()


def _moved(
    theta: Tree, direction: Tree, rate: float | Tensor | None, *, graph: bool
) -> Tree:
    """Return Θ − η · direction; a step size of 1 where it is not known."""
    size = 1.0 if rate is None else rate
    moved = {name: p - size * direction[name] for name, p in theta.items()}
    return moved if graph else detached(moved)
