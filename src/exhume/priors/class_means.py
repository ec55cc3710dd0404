"""Means of classes: a prior given the labels, and its tests on held-out examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.formula import formula
from exhume.problem.batch import Batch
from exhume.problem.prior import Density

__all__ = [
    "ClassMeans",
    "GivenLabels",
    "class_means_p_value",
    "distances_p_value",
    "held_out_p_values",
]

_FEWEST = 2  # examples of a class, from which its mean has an error
_FEWEST_ON_AVERAGE = 5


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """The mean of every class; one class alone where labels are none.

    Attributes:
        labels: of the classes, shape [K], sorted.
        means: shape [K, *event], float64.
        counts: number of examples, shape [K].
    """

    labels: Tensor
    means: Tensor
    counts: Tensor

    @classmethod
    def of(cls, public: Batch) -> ClassMeans:
        """Average the examples of every class, or all where that is too few of them."""
        inputs, targets = public.inputs.detach().double(), public.targets.cpu()
        if targets.is_floating_point() or targets.dim() > 1:
            targets = torch.zeros(len(public), dtype=torch.int64)
        labels, counts = targets.unique(return_counts=True)
        few = len(public) < _FEWEST_ON_AVERAGE * len(labels)
        if few or int(counts.min()) < _FEWEST:
            labels, counts = torch.zeros(1).long(), torch.tensor([len(public)])
            targets = torch.zeros_like(targets)
        means = [inputs[(targets == k).to(inputs.device)].mean(dim=0) for k in labels]
        return cls(labels, torch.stack(means), counts)

    def rows(self, targets: Tensor) -> Tensor | None:
        """Return the index of every target's class, or None if one is unknown."""
        if len(self.labels) == 1:
            return torch.zeros(len(targets), dtype=torch.int64)
        if targets.is_floating_point() or targets.dim() > 1:
            return None
        same = targets.cpu().unsqueeze(1) == self.labels
        return same.long().argmax(dim=1) if bool(same.any(dim=1).all()) else None

    def residuals(self, batch: Batch, rows: Tensor) -> Tensor:
        """Return x − μ_y, shape [n, *event], float64."""
        return batch.inputs.detach().double() - self.means[rows]


@dataclass(frozen=True, eq=False)
class GivenLabels(Density):
    """A density of examples whose labels are known: μ_y plus what varies in a class.

    Attributes:
        means: μ_y of every example of the batch, shape [B, *event].
        within: of x − μ_y.
        fit_check: of the density that it was made from.
        p_values: of the same.
    """

    name: ClassVar[str] = "gaussian"
    supports: ClassVar[frozenset[str]] = frozenset({"sample", "information"})
    means: Tensor
    within: Density
    fit_check: float | None = None
    p_values: tuple[float, float] | None = None

    def energy(self, inputs: Tensor) -> Tensor:
        """Return −log p(x | y) summed over the batch, up to a constant."""
        means = self.means.to(device=inputs.device, dtype=inputs.dtype)
        return self.within.energy(inputs - means)

    def sample(self, count: int, key: int) -> Tensor:
        """Draw whole batches one after the other, shape [count, *event]."""
        drawn = self.within.sample(count, key)
        means = self.means.to(drawn)
        times = -(-count // len(means))
        return drawn + means.repeat(times, *[1] * (means.dim() - 1))[:count]

    def information(self) -> Tensor:
        """Return J_P of one example, the same for every class."""
        return self.within.information()


@formula(
    r"\frac{n - d + 1}{n d (1 + 1 / n_y)}\, r^\top S^{-1} r \sim F_{d, n - d + 1}",
    reference="Hotelling 1931; Kolmogorov-Smirnov test of all held-out examples",
)
def distances_p_value(
    distances: Tensor, counts: Tensor, dimension: int, freedom: int
) -> float:
    """Test whether distances of held-out examples are those of a Gaussian.

    Args:
        distances: rᵀ S⁻¹ r, shape [N].
        counts: n_y, examples that made the mean of each one's class, shape [N].
        dimension: d.
        freedom: n, degrees of freedom of S; where there are no more than d, which no
            test allows for, the distances are compared with χ² of d.

    Returns:
        The probability of a larger deviation.
    """
    from scipy.stats import chi2, f, kstest

    plain = (distances / (1 + 1 / counts)).cpu().numpy()
    rest = freedom - dimension + 1
    if rest > 0:
        uniform = f.cdf(plain * rest / (freedom * dimension), dimension, rest)
    else:
        uniform = chi2.cdf(plain, dimension)
    return float(kstest(uniform, "uniform").pvalue)


@formula(
    r"\sum_k \big( \tfrac1{m_k} + \tfrac1{n_k} \big)^{-1} \bar r_k^\top \Sigma^{-1} "
    r"\bar r_k \sim \chi^2_{K d}",
    reference="Hotelling 1931; one-way MANOVA with means from other examples",
)
def class_means_p_value(
    distances: Tensor, held_out: Tensor, fitted: Tensor, dimension: int, freedom: int
) -> float:
    """Test whether the means of held-out classes are the fitted ones.

    Args:
        distances: r̄ᵀ S⁻¹ r̄ of the mean residual of every class, shape [K].
        held_out: m, examples of every class that were held out, shape [K].
        fitted: n, examples that made its mean, shape [K].
        dimension: d.
        freedom: degrees of freedom of S, whose inverse is too large by the share of d
            among them.

    Returns:
        The probability of a larger deviation.
    """
    from scipy.stats import chi2

    rest = freedom - dimension - 1
    unbiased = rest / freedom if rest > 0 else 1.0
    statistic = float((distances / (1 / held_out + 1 / fitted)).sum()) * unbiased
    return float(chi2.sf(statistic, len(distances) * dimension))


def held_out_p_values(
    means: ClassMeans,
    weigh: Callable[[Tensor], Tensor],
    held_out: Batch,
    freedom: int,
) -> tuple[float, float] | None:
    """Test a Gaussian with means of classes on examples that did not make it.

    Args:
        means: of the classes.
        weigh: r ↦ S⁻¹ r for rows, within classes.
        held_out: the examples.
        freedom: degrees of freedom of S.

    Returns:
        The p-values of the distances and of the means; None if a class has no mean.
    """
    rows = means.rows(held_out.targets)
    if rows is None:
        return None
    residuals = means.residuals(held_out, rows).flatten(1)
    seen = rows.unique()
    centres = torch.stack([residuals[rows == k].mean(dim=0) for k in seen])
    distances, between = ((r * weigh(r)).sum(dim=1).cpu() for r in (residuals, centres))
    dimension = residuals.shape[1]
    numbers = torch.stack([(rows == k).sum() for k in seen])
    return (
        distances_p_value(distances, means.counts[rows], dimension, freedom),
        class_means_p_value(between, numbers, means.counts[seen], dimension, freedom),
    )
