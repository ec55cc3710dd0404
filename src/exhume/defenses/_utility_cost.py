"""What noise costs in utility: tr(S H) for a metric H, and noise of a given cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.defenses._blocks import columns_at_once, row_blocks
from exhume.defenses._public_scales import UtilityMetric, metric_columns
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.batch import Batch
from exhume.problem.covariance import Covariance
from exhume.problem.task import Task
from exhume.problem.tree import size, unflatten

__all__ = ["Metric", "matched", "public_metric", "utility_cost"]


@dataclass(frozen=True, eq=False)
class Metric:
    """The utility metric H = C Cᵀ + r I.

    Attributes:
        columns: C, shape [P, n]; n may be 0.
        ridge: r > 0.
    """

    columns: Tensor
    ridge: float

    def diagonal(self) -> Tensor:
        """Return H_ii, shape [P], float64."""
        squares = [
            self.columns[rows].double().square().sum(dim=1)
            for rows in row_blocks(len(self.columns))
        ]
        return torch.cat(squares) + self.ridge

    def trace(self) -> float:
        """Return tr H."""
        return float(self.diagonal().sum())


def public_metric(
    task: Task,
    batches: Sequence[Batch],
    kind: UtilityMetric,
    ridge: float,
    key: int,
    names: Sequence[str],
) -> Metric:
    """Estimate H on public data.

    Args:
        task: model, loss, mode.
        batches: shaped like a private batch each.
        kind: which H.
        ridge: r, as a share of the mean diagonal of C Cᵀ.
        key: randomness of sampled labels.
        names: tensors that count, in order.

    Raises:
        InvalidInput: the public gradients are zero.
    """
    columns = metric_columns(task, batches, kind, key, names)
    if columns is None:
        rows = sum(task.parameters()[name].numel() for name in names)
        none = torch.zeros(rows, 0, dtype=torch.float64, device=task.device)
        return Metric(none, 1.0)
    mean = Metric(columns, 0.0).trace() / len(columns)
    if mean == 0:
        msg = "the public gradients are zero, so noise has no utility cost to match"
        raise InvalidInput(msg)
    return Metric(columns, ridge * mean)


@formula(
    r"\mathrm{tr}(S H)", reference="Chen, Gursoy and Lei 2024 (−U2 for H = E g gᵀ)"
)
def utility_cost(
    covariance: Covariance, metric: Metric, shapes: Mapping[str, Tensor]
) -> float:
    """Return the utility that noise with covariance S costs.

    Args:
        covariance: S.
        metric: H.
        shapes: tensors in the layout of a column of H.
    """
    own = covariance.diagonal()
    cost = metric.ridge * sum(float(v.sum()) for v in own.values())

    def squared(column: Tensor) -> Tensor:
        coloured = covariance.transposed_colour(unflatten(column, shapes))
        return torch.stack([t.square().sum() for t in coloured.values()]).sum()

    rows, count = metric.columns.shape
    if count == 0:
        return cost
    for part in metric.columns.T.split(columns_at_once(rows)):
        cost += float(torch.func.vmap(squared)(part.double()).sum())
    return cost


def matched(
    covariance: Covariance, metric: Metric, shapes: Mapping[str, Tensor], cost: float
) -> Covariance:
    """Scale a covariance to a given utility cost.

    Args:
        covariance: S, up to scale.
        metric: H.
        shapes: tensors in the layout of a column of H.
        cost: tr(S H) > 0 of the result.
    """
    assert size(shapes) == len(metric.columns)
    return covariance.scaled(cost / utility_cost(covariance, metric, shapes))
