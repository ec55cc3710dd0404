"""Examples that differ from epoch to epoch, tied by what no order can change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from exhume.attacks.engine.start import initial
from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.prior import Density
from exhume.problem.task import Task

__all__ = [
    "Invariant",
    "OrderInvariance",
    "PerCopy",
    "fuse_epochs",
    "order_invariance",
    "random_kernel",
    "starts_of_copies",
]

#: what of a set of examples does not depend on their order
Invariant = Literal["mean", "convolution"]

# Features of the random convolution.
_CHANNELS = 32


@formula(
    r"\frac{1}{E^2} \sum_{a,b=1}^{E} \frac1d \lVert g(X_a) - g(X_b) \rVert_2^2"
    r",\qquad g(X) = \frac1B \sum_i \psi(x_i)",
    reference="Dimitrov, Balunović, Konstantinov and Vechev, TMLR 2022, section 4",
)
def order_invariance(features: Tensor) -> Tensor:
    """Return how much the means over sets of examples differ, ≥ 0.

    Args:
        features: ψ(x), shape [E, B, ...]; the order within a set does not matter.

    Returns:
        scalar: twice the variance of the means, averaged over the d coordinates.
    """
    means = features.mean(dim=1).flatten(1)
    return 2 * (means - means.mean(dim=0)).square().mean()


@dataclass(frozen=True, eq=False)
class OrderInvariance(Density):
    """−log p = w · order_invariance(ψ(X)) for copies of a batch, one after the other.

    Attributes:
        weight: w.
        size: B, examples of one copy; a single copy costs nothing.
        kernel: ψ is a random convolution with a rectifier if given, shape
            [channels, C, 3, 3]; else the examples themselves.
    """

    name: ClassVar[str] = "order-invariance"
    weight: float
    size: int
    kernel: Tensor | None = None

    def energy(self, inputs: Tensor) -> Tensor:
        """Return the weighted prior of copies [E·B, *event], a scalar."""
        seen = inputs
        if self.kernel is not None:
            seen = torch.nn.functional.conv2d(inputs, self.kernel.to(inputs), padding=1)
            seen = seen.relu()
        copies = seen.reshape(-1, self.size, *seen.shape[1:])
        return self.weight * order_invariance(copies)


@dataclass(frozen=True, eq=False)
class PerCopy(Density):
    """The mean over the copies of a batch of another density's energy.

    Attributes:
        of: the density, of one batch.
        size: B, examples of one copy.
    """

    name: ClassVar[str] = "per-copy"
    of: Density
    size: int

    def energy(self, inputs: Tensor) -> Tensor:
        """Return the energy of the copies over their number, a scalar."""
        return self.of.energy(inputs) * self.size / len(inputs)


def random_kernel(channels: int, key: int) -> Tensor:
    """Return a random 3 × 3 convolution for images of some channels."""
    draw = torch.randn(
        (_CHANNELS, channels, 3, 3),
        generator=generator(key, "kernel"),
        dtype=torch.float64,
    )
    return draw / (9 * channels) ** 0.5


def starts_of_copies(
    problem: Problem,
    kind: str,
    copies: int,
    given: Tensor | None,
    random: torch.Generator,
) -> Tensor:
    """Return starts of all copies, one after the other, [copies · B, *event].

    Args:
        problem: what the attacker sees.
        kind: of start; each copy draws its own, except of ``surrogate``.
        copies: how many.
        given: an explicit start of all copies, shape [B, *event], or None.
        random: source of randomness, on the CPU.
    """
    size: int = problem.require(Fact.BATCH_SIZE)
    task: Task = problem.require(Fact.WEIGHTS)
    draws = 1 if kind == "surrogate" else copies
    if given is not None:
        found = [given] * copies
    else:
        drawn = [initial(problem, kind, size, random) for _ in range(draws)]
        found = drawn * (copies // draws)
    return torch.cat(found).to(device=task.device, dtype=task.dtype)


def fuse_epochs(copies: Tensor, targets: Tensor) -> Tensor:
    """Match the examples of all copies to those of the first one, and average them.

    Args:
        copies: x, shape [E, B, *event].
        targets: labels of one copy; examples with different ones are never matched.

    Returns:
        shape [B, *event].

    References:
        H. W. Kuhn, The Hungarian method for the assignment problem, 1955.
    """
    from scipy.optimize import linear_sum_assignment

    first = copies[0].flatten(1)
    rows = targets.reshape(len(targets), -1)
    different = (rows[:, None] != rows[None]).any(dim=2)
    total = copies[0].clone()
    for other in copies[1:]:
        cost = torch.cdist(first.double(), other.flatten(1).double()).square()
        forbidden = 1 + cost.sum()
        cost = torch.where(different, forbidden, cost)
        _, order = linear_sum_assignment(cost.cpu().numpy())
        total += other[torch.from_numpy(order).to(other.device)]
    return total / len(copies)
