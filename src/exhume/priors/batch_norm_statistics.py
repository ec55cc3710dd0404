"""BatchNorm statistics: features should have the mean and variance the model stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.batch import Batch
from exhume.problem.prior import Density, Prior
from exhume.problem.task import Task

__all__ = [
    "BatchNormStatistics",
    "BatchNormStatisticsDensity",
    "batch_norm_discrepancy",
]

#: BatchNorm layer → (mean [C], variance [C])
Statistics = Mapping[str, tuple[Tensor, Tensor]]


@formula(
    r"\sum_l \| \mu_l(x) - \hat\mu_l \|^2 + \| \sigma_l^2(x) - \hat\sigma_l^2 \|^2",
    reference="Yin et al. 2020 (DeepInversion), Eq. 4, with squared norms",
)
def batch_norm_discrepancy(statistics: Statistics, targets: Statistics) -> Tensor:
    """Compare feature statistics of a batch with target ones, a scalar.

    Args:
        statistics: of the candidate batch, one entry per layer.
        targets: what they should be, for the same layers or more.
    """
    terms = [
        (mean - targets[name][0].to(mean)).square().sum()
        + (variance - targets[name][1].to(variance)).square().sum()
        for name, (mean, variance) in statistics.items()
        if name in targets
    ]
    return torch.stack(terms).sum()


@dataclass(frozen=True, eq=False)
class BatchNormStatisticsDensity(Density):
    """p(x) ∝ exp(−w R(x)) on whole batches: the examples are coupled.

    Attributes:
        task: the model whose BatchNorm layers are compared, in its own mode.
        targets: layer → (mean, variance): the running statistics, or those of the
            client's batch where an attacker has them.
        weight: w.
    """

    name: ClassVar[str] = "batch-norm-statistics"
    supports: ClassVar[frozenset[str]] = frozenset({"curvature"})
    task: Task
    targets: Statistics
    weight: float = 1.0

    def energy(self, inputs: Tensor) -> Tensor:
        """Return w R(x) of the batch, a scalar of the inputs' type."""
        statistics = self.task.batch_statistics(inputs.to(self.task.dtype))
        value = batch_norm_discrepancy(statistics, self.targets)
        return self.weight * value.to(inputs.dtype)

    def curvature(self, inputs: Tensor, direction: Tensor) -> Tensor:
        """Return 2 w JᵀJ t with J the derivative of the statistics (Gauss-Newton)."""

        def statistics(x: Tensor) -> list[Tensor]:
            found = self.task.batch_statistics(x)
            return [t for name in found if name in self.targets for t in found[name]]

        x = inputs.detach().to(self.task.dtype)
        along = torch.func.jvp(statistics, (x,), (direction.to(x.dtype),))[1]
        pull = torch.func.vjp(statistics, x)[1]
        return (2 * self.weight * pull(along)[0]).to(direction.dtype)


@dataclass(frozen=True, kw_only=True)
class BatchNormStatistics(Prior):
    """Match the running statistics that BatchNorm layers gathered in training.

    Attributes:
        weight: w, positive.

    Raises:
        InvalidInput: the weight is not positive.
    """

    bibtex: ClassVar[str] = """
@inproceedings{yin2020dreaming,
  title = {Dreaming to Distill: Data-Free Knowledge Transfer via {DeepInversion}},
  author = {Yin, Hongxu and Molchanov, Pavlo and Alvarez, Jose M. and Li, Zhizhong and
            Mallya, Arun and Hoiem, Derek and Jha, Niraj K. and Kautz, Jan},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2020}
}
@inproceedings{yin2021see,
  title = {See Through Gradients: Image Batch Recovery via {GradInversion}},
  author = {Yin, Hongxu and Mallya, Arun and Vahdat, Arash and Alvarez, Jose M. and
            Kautz, Jan and Molchanov, Pavlo},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2021}
}
"""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            msg = f"weight is {self.weight}; expected a positive number"
            raise InvalidInput(msg)

    def fit(self, public: Batch, task: Task) -> BatchNormStatisticsDensity:
        """Take the running statistics of the task's model.

        Args:
            public: not used.
            task: a model with BatchNorm layers that keep running statistics.

        Raises:
            InvalidInput: the model has none.
        """
        del public
        if not task.running_statistics:
            msg = (
                "the model has no BatchNorm layer with running statistics; use the "
                "prior 'gaussian' or 'total-variation'"
            )
            raise InvalidInput(msg)
        return BatchNormStatisticsDensity(task, task.running_statistics, self.weight)
