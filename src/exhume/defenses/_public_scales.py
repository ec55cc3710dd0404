"""What the optimal defenses read off public data: utility costs and sensitivities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from exhume.defenses.gaussian_noise import check_std
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold, generator
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.sensitivity import squared_sensitivities
from exhume.problem.task import Task
from exhume.problem.tree import Tree, add, flatten, leaves, scale, unflatten

__all__ = [
    "PRIVATE_SCALES",
    "UtilityMetric",
    "check_noise_options",
    "check_scale_options",
    "mean_squared_sensitivities",
    "metric_columns",
    "metric_diagonal",
    "public_batches",
    "sampled_label_gradient",
]

_STORED = 2**29  # bytes of columns of H
_FEWEST = 8  # columns, however long
UtilityMetric = Literal["u2", "power", "curvature"]

PRIVATE_SCALES = (
    "the scales of this defense come from the private batch, so what is released tells "
    "about the batch through them as well, at any noise level; use "
    "scale_source='public'"
)


def check_noise_options(std: float, ridge: float) -> None:
    """Raise unless the strength and the ridge of an optimal noise are in range.

    Raises:
        InvalidInput: names the option, its value and what was expected.
    """
    check_std(std)
    if not (math.isfinite(ridge) and ridge > 0):
        msg = f"ridge is {ridge}; expected a finite number above 0, e.g. 1e-3"
        raise InvalidInput(msg)


def check_scale_options(scale_source: str, counts: Mapping[str, int]) -> None:
    """Raise unless the source of the scales and all counts are in range.

    Raises:
        InvalidInput: names the option, its value and what was expected.
    """
    if scale_source not in ("public", "private"):
        msg = f"scale_source is {scale_source!r}; expected 'public' or 'private'"
        raise InvalidInput(msg)
    for name, count in counts.items():
        if count < 1:
            msg = f"{name} is {count}; expected at least 1"
            raise InvalidInput(msg)


def public_batches(
    name: str, public: Batch | None, size: int, count: int, key: int
) -> list[Batch]:
    """Draw public batches shaped like a private one, without repetition if possible.

    Args:
        name: of the defense, for the message.
        public: public examples.
        size: B, of a private batch.
        count: how many batches at most.
        key: randomness of the choice.

    Raises:
        InvalidInput: there are no public examples, or fewer than one batch.
    """
    if public is None or len(public) < size:
        have = "none" if public is None else str(len(public))
        msg = (
            f"{name!r} takes its scales from public data and needs at least {size} "
            f"public example(s), but there are {have}; give the World public examples"
        )
        raise InvalidInput(msg)
    order = torch.randperm(len(public), generator=generator(key, "public-batches"))
    chunks = order.split(size)[:count]
    return [public.select(chunk) for chunk in chunks if len(chunk) == size]


def mean_squared_sensitivities(
    task: Task, batches: Sequence[Batch], probes: int, key: int
) -> Tree:
    """Return a² = E_x ‖∇_x g_i‖² of every coordinate, averaged over public batches.

    Args:
        task: model, loss, mode.
        batches: shaped like a private batch each.
        probes: random directions per batch.
        key: their randomness.
    """
    total: Tree | None = None
    for index, batch in enumerate(batches):
        one = squared_sensitivities(
            task,
            Gradient(),
            batch.inputs,
            batch.targets,
            probes=probes,
            key=fold(key, "sensitivities", index),
        )
        total = one if total is None else add(total, one)
    assert total is not None  # at least one batch
    return scale(1 / len(batches), total)


@formula(
    r"H = \tfrac1N \textstyle\sum_n h_n h_n^\top:\quad h_n = g(x_n) \text{ (U2)},\ "
    r"\nabla_\Theta \log p(\hat y_n | x_n),\ \hat y_n \sim p \text{ (curvature)}",
    reference="Chen, Gursoy and Lei 2024 (U2); Martens, JMLR 2020 (Gauss-Newton)",
)
def metric_columns(
    task: Task,
    batches: Sequence[Batch],
    metric: UtilityMetric,
    key: int,
    names: Sequence[str],
) -> Tensor | None:
    """Return columns h_n/√N of the utility metric H, shape [P, N]; None for H = I.

    They are float64 if that takes 512 MB at most. Else they are float32, and only so
    many batches count as fit in 512 MB, but at least 8: 134 for a million parameters.

    The utility cost of noise with covariance S is tr(S H): the noise power for H = I,
    the variance of the first-order change of the loss along the step for U2, and the
    expected second-order loss increase (twice) for the Gauss–Newton curvature.

    Args:
        task: model, loss, mode.
        batches: public, shaped like a private batch.
        metric: which H.
        key: randomness of sampled labels.
        names: tensors that count, in order.
    """
    if metric == "power":
        return None
    parameters = task.parameters()
    rows = sum(parameters[name].numel() for name in names)
    dtype = torch.float64
    if len(batches) * rows * dtype.itemsize > _STORED:
        dtype = torch.float32
        batches = batches[: max(_STORED // (rows * dtype.itemsize), _FEWEST)]
    columns = torch.empty(len(batches), rows, dtype=dtype, device=task.device)
    for index, (own, batch) in enumerate(zip(columns, batches, strict=True)):
        if metric == "u2":
            gradient = task.gradient(_inputs(task, batch), batch.targets)
        else:
            gradient = sampled_label_gradient(task, batch, fold(key, "labels", index))
        own.copy_(flatten({name: gradient[name].detach() for name in names}))
    return columns.T.div_(len(batches) ** 0.5)


def metric_diagonal(columns: Tensor | None, like: Tree) -> Tree:
    """Return h_i² = H_ii by name.

    Args:
        columns: of :func:`metric_columns`, None for H = I.
        like: tensors of the layout of one column.
    """
    if columns is None:
        return {n: torch.ones_like(t, dtype=torch.float64) for n, t in like.items()}
    return unflatten(columns.double().square().sum(dim=1), like)


def sampled_label_gradient(task: Task, batch: Batch, key: int) -> Tree:
    """Return a vector h with E[h hᵀ] = the Gauss–Newton matrix of the mean loss.

    For cross-entropy it is √B times the gradient of the mean loss with labels drawn
    from the model itself, and so for the logistic loss; for the squared error over
    K outputs, that of Σ ±√(2/K) f.

    Args:
        task: model, loss, mode.
        batch: its labels are not used.
        key: randomness of labels or signs.
    """
    source = generator(key, "sampled-labels")
    parameters = leaves(task.parameters())
    outputs = task.predict(_inputs(task, batch), parameters)
    value = task.criterion.random_score(outputs, source)
    grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    root = len(batch) ** -0.5
    return {
        name: torch.zeros_like(p) if g is None else root * g
        for (name, p), g in zip(parameters.items(), grads, strict=True)
    }


def _inputs(task: Task, batch: Batch) -> Tensor:
    return batch.inputs.to(device=task.device, dtype=task.dtype)
