"""Training on real data through a mechanism: the server sees what is released."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold, generator
from exhume.problem.batch import Batch
from exhume.problem.mechanism import Mechanism
from exhume.problem.task import Task
from exhume.problem.tree import Tree, detached

__all__ = [
    "Optimiser",
    "Order",
    "Schedule",
    "accuracy",
    "falling_rate",
    "finite",
    "mean_loss",
    "train",
]

Optimiser = Literal["adam", "sgd", "nesterov"]
Order = Literal["shuffled", "fixed"]
Schedule = Literal["falling", "constant"]

# Whether a training has diverged is looked up this often: the rest of it is lost time.
_LOOK_EVERY = 50
_AT_ONCE = 2048
_MOMENTUM = 0.9
_OTHER_MODEL = (
    "a defense gives the model other parameters, and training through the mechanism "
    "knows only those of the task; compare it by an audit, at strengths of your own"
)


@formula(
    r"\eta_t = \eta_0 \, (1 - t / T)",
    reference="Bottou, Curtis and Nocedal, SIAM Review 2018, section 4.2 (decreasing)",
)
def falling_rate(first: float, step: int, steps: int) -> float:
    """Return the learning rate of a step; it falls linearly and ends at η₀/T.

    It averages the noise of the last steps out, which a constant rate leaves in the
    weights.

    Args:
        first: η₀ > 0.
        step: t in [0, T).
        steps: T.
    """
    return first * (1 - step / steps)


def train(
    task: Task,
    mechanism: Mechanism,
    data: Batch,
    public: Batch | None,
    *,
    steps: int,
    batch_size: int,
    optimiser: Optimiser,
    learning_rate: float,
    recalibrate: int,
    key: int,
    schedule: Schedule = "falling",
    order: Order = "shuffled",
) -> Task:
    """Train a copy of a task on what a mechanism releases.

    In each step one client computes its update on the next batch, the mechanism
    releases it under fresh masks, and the server steps. ``adam`` is FedAdam (Reddi et
    al., ICLR 2021), which no scale of the update moves: a mere scaling costs nothing.

    Args:
        task: model and loss; it is not changed.
        mechanism: D∘F.
        data: training examples; batches are drawn without replacement, epoch by epoch.
        public: for calibration.
        steps: T.
        batch_size: B.
        optimiser: ``adam``, ``sgd``, or ``nesterov``, sgd with momentum 0.9.
        learning_rate: η₀.
        recalibrate: steps between two calibrations; 0 calibrates once, at the start.
        key: of batches, plans and noise; equal keys give equal bits.
        schedule: of the rate: ``falling``, see :func:`falling_rate`, or ``constant``.
        order: of the examples: ``shuffled`` in every epoch, or ``fixed``.

    Raises:
        InvalidInput: a defense changes the parameters of the model.

    Returns:
        the trained copy; some weights are not finite if training diverged.
    """
    trained = task.to(task.dtype)
    weights = trained.parameters()
    server = _server(optimiser, list(weights.values()))
    plans = mechanism.calibrate(trained, public, fold(key, "calibrate", 0))
    batches = _batches(len(data), batch_size, order, fold(key, "batches"))
    for step in range(steps):
        if recalibrate and step and step % recalibrate == 0:
            plans = mechanism.calibrate(trained, public, fold(key, "calibrate", step))
        batch = data.select(next(batches))
        own = mechanism.redraw(plans, fold(key, "masks", step))
        released = mechanism.values(trained, batch, fold(key, "step", step), own)
        _hand_over(released, weights)
        falls = schedule == "falling"
        rate = falling_rate(learning_rate, step, steps) if falls else learning_rate
        _step(server, rate)
        if step % _LOOK_EVERY == 0 and not finite(trained):
            break
    server.zero_grad()
    return trained


def _step(server: torch.optim.Optimizer, rate: float) -> None:
    for group in server.param_groups:
        group["lr"] = rate
    server.step()


def _hand_over(released: Tree, weights: Tree) -> None:
    """Give the optimiser what was released."""
    if released.keys() != weights.keys():
        raise InvalidInput(_OTHER_MODEL)
    for name, weight in weights.items():
        weight.grad = released[name]


def _server(name: Optimiser, weights: list[Tensor]) -> torch.optim.Optimizer:
    # The rate is set in every step.
    if name == "adam":
        return torch.optim.Adam(weights)
    nesterov = name == "nesterov"
    momentum = _MOMENTUM if nesterov else 0.0
    return torch.optim.SGD(weights, lr=1.0, momentum=momentum, nesterov=nesterov)


def _batches(
    examples: int, batch_size: int, order: Order, key: int
) -> Iterator[Tensor]:
    """Yield indices of batches for ever; an incomplete batch joins the next epoch."""
    source = generator(key)
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < batch_size:
            epoch = torch.arange(examples)
            if order == "shuffled":
                epoch = torch.randperm(examples, generator=source)
            waiting = torch.cat([waiting, epoch])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def finite(task: Task) -> bool:
    """Whether every weight is a finite number."""
    return all(bool(weight.isfinite().all()) for weight in task.parameters().values())


def accuracy(task: Task, batch: Batch) -> float:
    """Return the share of right classes in [0, 1]; 0 for weights that diverged."""
    if not finite(task):
        return 0.0
    right = 0
    for inputs, targets in _parts(batch, task):
        outputs = task.predict(inputs, _frozen(task))
        guessed = task.criterion.classes(outputs)
        right += int((guessed == targets).sum())
    return right / len(batch)


def mean_loss(task: Task, batch: Batch, at_once: int = _AT_ONCE) -> float:
    """Return the mean loss over a batch; infinite for weights that diverged.

    Args:
        task: model, loss and mode.
        batch: examples.
        at_once: examples that are evaluated together; in train mode they share the
            statistics of BatchNorm.
    """
    if not finite(task):
        return float("inf")
    total = 0.0
    for inputs, targets in _parts(batch, task, at_once):
        value = task.loss_value(inputs, targets, _frozen(task))
        total += float(value) * len(inputs)
    return total / len(batch)


def _frozen(task: Task) -> dict[str, Tensor]:
    return detached(task.parameters())


def _parts(
    batch: Batch, task: Task, at_once: int = _AT_ONCE
) -> Iterator[tuple[Tensor, Tensor]]:
    inputs = batch.inputs.to(task.dtype)
    return zip(inputs.split(at_once), batch.targets.split(at_once), strict=True)
