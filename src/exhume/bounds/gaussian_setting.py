"""What the Bayesian Cramér–Rao bounds share: draws of the prior, and assumptions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.keys import fold
from exhume.problem.bound import NotApplicable
from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = ["PriorSetting", "assumptions", "fit_detail", "prior_setting"]


@dataclass(frozen=True, eq=False)
class PriorSetting:
    """A prior of the private batch, with its draws.

    Attributes:
        density: of one example.
        shape: of the batch, [B, *event].
        key: randomness of the draws.
        device: where the draws lie.
    """

    density: Density
    shape: torch.Size
    key: int
    device: torch.device

    @property
    def size(self) -> int:
        """B."""
        return self.shape[0]

    def batches(self, count: int) -> list[Tensor]:
        """Return the first draws, each of shape [B, *event], float64."""
        keys = [fold(self.key, "bound", draw) for draw in range(count)]
        return [self.sample(1, key)[0] for key in keys]

    def sample(self, count: int, key: int) -> Tensor:
        """Return other draws, shape [count, B, *event], float64."""
        drawn = self.density.sample(count * self.size, key)
        drawn = drawn.to(device=self.device, dtype=torch.float64)
        return drawn.reshape(count, self.size, *drawn.shape[1:])

    def information(self) -> Tensor:
        """Return J_P of one example, shape [d, d], float64."""
        return self.density.information().to(device=self.device, dtype=torch.float64)


def prior_setting(
    world: World, prior: Density | None, key: int
) -> PriorSetting | NotApplicable:
    """Return the prior with its draws, or why there is no average.

    Args:
        world: gives batch size, device and, if ``prior`` is None, the prior.
        prior: density of one example.
        key: randomness of the draws.
    """
    opaque = world.mechanism.observation.opaque
    if opaque is not None:
        return NotApplicable(opaque)
    density = world.prior if prior is None else prior
    if density is None:
        return NotApplicable("no prior is given, so there is no average error")
    missing = {"information", "sample"} - density.supports
    if missing:
        return NotApplicable(
            f"the prior {density.name!r} has no {' and no '.join(sorted(missing))};"
            f" the prior 'gaussian' has"
        )
    shape = world.batch.inputs.shape
    return PriorSetting(density, shape, key, world.task.device)


def assumptions(density: Density, batch_size: int) -> tuple[str, ...]:
    """Say under which assumptions a Bayesian Cramér–Rao bound holds.

    Args:
        density: the prior.
        batch_size: B.
    """
    sentences = [
        f"The data follow the prior {density.name!r}: among densities of a given "
        f"covariance the Gaussian has the least information, so an attacker with a "
        f"sharper prior of real data may fall below.",
        "It bounds the mean over draws of data from the prior and over the noise, not "
        "the error on one fixed batch; draws may leave the range of real data.",
        "The labels, the weights and the defense are known to the attacker, and "
        "nothing else of the batch is (no BatchNorm statistics).",
        "The mean of the release is a continuous function of the data and "
        "differentiable almost everywhere (checked between draws of the prior).",
    ]
    if batch_size > 1:
        sentences.append(
            "It bounds the error in the order of the batch; an error over the best "
            "matching, which uses the truth, may be smaller."
        )
    return tuple(sentences)


def fit_detail(density: Density) -> dict[str, float]:
    """Return the check of the prior on held-out examples as a detail, if it was made.

    Args:
        density: the prior.
    """
    return {} if density.fit_check is None else {"prior_fit": density.fit_check}
