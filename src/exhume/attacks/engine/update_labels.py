"""What an update tells about labels: the mean gradient behind all local steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.surrogate import interpolated_weights
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.observations.local_training import Optimiser, State
from exhume.observations.update import Update
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.law import Law
from exhume.problem.task import Task
from exhume.problem.tree import Tree, add, norm, scale, subtract

__all__ = ["MeanGradient", "mean_gradient", "total_step"]

# Where on the way from Θ_0 to Θ_T stand-ins are evaluated.
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Length of a residual of unknown scale: below that of any that tells its labels.
_SHORT = 0.02


@dataclass(frozen=True, eq=False)
class MeanGradient:
    """The gradient that, taken in every step, would have led to the same update.

    Attributes:
        values: its tensors by name, up to one factor if ``scaled``.
        law: p(values | S), or None if the attacker does not know it.
        tasks: the task at weights along the way.
        scaled: the values were multiplied by an unknown positive number.
    """

    values: Tree
    law: Law | None
    tasks: tuple[Task, ...]
    scaled: bool


@formula(
    r"\Theta_T = c\,\Theta_0 - \sum_t a_t g_t,\qquad A = \sum_t a_t",
    reference="SGD with momentum and weight decay is linear in its gradients",
)
def total_step(rule: Optimiser, steps: int, rate: float) -> float:
    """Return A, by how much a gradient of 1 in every step moves a weight of 0.

    T η for plain SGD.

    Args:
        rule: of SGD; the clipping of gradients is left out.
        steps: T.
        rate: η.
    """
    plain = Optimiser("sgd", rule.momentum, rule.nesterov, rule.weight_decay)
    one = {"w": torch.ones((), dtype=torch.float64)}
    weight, state = {"w": torch.zeros((), dtype=torch.float64)}, State()
    for _ in range(steps):
        direction, state = plain.direction(weight, one, state)
        weight = {"w": weight["w"] - rate * direction["w"]}
    return -float(weight["w"])


def mean_gradient(problem: Problem, model: Update) -> MeanGradient:
    """Return the mean gradient behind an update, −(O − (c − 1) Θ_0) / A.

    Args:
        problem: with the weights and the batch size.
        model: what the client computes.

    Raises:
        InvalidInput: the update is not linear in the gradients of its steps.
    """
    rule, rate = model.rule, model.rate
    _check(rule, rate)
    task: Task = problem.require(Fact.WEIGHTS)
    start = {n: p.detach() for n, p in task.parameters().items()}
    observed = {n: t.to(start[n]) for n, t in problem.observed.items()}
    steps = len(model.batches(problem.require(Fact.BATCH_SIZE)))
    drift = rule.pull(steps, 1.0 if rate is None else rate)
    assert drift is not None  # no Adam
    data = subtract(observed, scale(drift - 1, start)) if drift != 1 else observed
    if rate is None:
        factor = -float(norm(data)) / _SHORT or -1.0
    else:
        factor = -total_step(rule, steps, rate)
    law = None if problem.law is UNKNOWN else problem.law.scaled(1 / factor)
    return MeanGradient(
        values=scale(1 / factor, data),
        law=law,
        tasks=tuple(_along(task, start, observed)),
        scaled=rate is None or rule.clip > 0,
    )


def _check(rule: Optimiser, rate: float | None) -> None:
    if rule.name != "sgd":
        msg = (
            f"the client trained with {rule.name!r}, which divides every entry by its "
            f"own size, so labels cannot be counted; give them (threat model "
            f"'labels-known')"
        )
        raise InvalidInput(msg)
    if rate is None and rule.weight_decay:
        msg = (
            "with weight decay and an unknown step size the part of the update that "
            "tells labels cannot be told from the decay; give the labels (threat "
            "model 'labels-known') or the step size"
        )
        raise InvalidInput(msg)


def _along(task: Task, start: Tree, update: Mapping[str, Tensor]) -> list[Task]:
    """Return the task at points of the segment from Θ_0 to Θ_T."""
    end, found = add(start, update), []
    for share in _SHARES:
        model = copy.deepcopy(task.model)
        weights = interpolated_weights(start, end, share)
        model.load_state_dict(weights, strict=False)
        found.append(task.with_model(model))
    return found
