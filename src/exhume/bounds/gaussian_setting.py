"""What the Bayesian Cramér–Rao bounds share: draws of the prior, and assumptions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.keys import fold
from exhume.priors.class_means import GivenLabels
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.bound import NotApplicable
from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = [
    "SIGNIFICANT",
    "PriorSetting",
    "assumptions",
    "fit_detail",
    "given_labels",
    "prior_setting",
]

#: p-value below which held-out public examples contradict a prior
SIGNIFICANT = 0.01


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
    known = given_labels(density, world)
    return PriorSetting(
        density if known is None else known, shape, key, world.task.device
    )


def given_labels(density: Density | None, world: World) -> GivenLabels | None:
    """Return p(x | y) of a world's batch where the prior knows its classes, or None."""
    if not isinstance(density, GaussianDensity):
        return None
    return density.given(world.batch.targets)


def _p_values(density: Density) -> tuple[float, float] | None:
    """Return the p-values of what a bound uses; None if it was not tested."""
    if isinstance(density, GivenLabels):
        return density.p_values
    # With means of classes, these were tested, and not the Gaussian of all classes.
    if isinstance(density, GaussianDensity) and density.classes is None:
        return density.p_values
    return None


def _prior_assumption(density: Density) -> str:
    """Say what the data have to follow, and whether public examples do."""
    if not isinstance(density, (GaussianDensity, GivenLabels)):
        return f"The data follow the prior {density.name!r}."
    means = "the means of their classes and one covariance"
    kind = means if isinstance(density, GivenLabels) else "one mean for all classes"
    sharper = (
        "among densities of a given covariance the Gaussian has the least information, "
        "so an attacker with a sharper prior of real data may fall below."
    )
    tested = _p_values(density)
    if tested is None:
        return f"The data follow the prior 'gaussian', with {kind}: {sharper}"
    distances, centres = tested
    if min(tested) >= SIGNIFICANT:
        return (
            f"The data follow the fitted Gaussian, with {kind}, as held-out public "
            f"examples do not contradict (p = {distances:.2g} of their distances, "
            f"{centres:.2g} of the means of classes)."
        )
    return (
        f"It holds for data that follow the fitted Gaussian, with {kind}, and "
        f"held-out public examples do not (p = {distances:.1g} of their distances, "
        f"{centres:.1g} of the means of classes): {sharper}"
    )


def assumptions(density: Density, batch_size: int) -> tuple[str, ...]:
    """Say under which assumptions a Bayesian Cramér–Rao bound holds.

    Args:
        density: the prior.
        batch_size: B.
    """
    sentences = [
        _prior_assumption(density),
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
    """Return the checks of the prior on held-out examples as details, if made.

    Args:
        density: the prior.
    """
    found = {} if density.fit_check is None else {"prior_fit": density.fit_check}
    tested = _p_values(density)
    if tested is not None:
        found["prior_p_value"] = min(tested)
        found["prior_has_class_means"] = float(isinstance(density, GivenLabels))
    return found
