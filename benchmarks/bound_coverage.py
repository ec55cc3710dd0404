"""Do the standard errors of the Bayesian bounds cover the truth?

    python benchmarks/bound_coverage.py               # 800 releases, 2, 8 and 32 draws
    python benchmarks/bound_coverage.py --large       # draws as costly as for images

Random releases whose mean information is known in closed form: two to eight unknowns
of a random Gaussian, seen through ridge functions aᵢ φᵢ(wᵢᵀ x) and noise. φ is a sine,
a square, an exponential or a step of a random width, so that everything occurs from
the constant information of a linear map to units that are saturated nearly everywhere.
For each number of draws that is asked for: how many bounds are given, how often their
95 % interval contains the truth, on which side it is missed, why others are refused.
So few unknowns allow hundreds of draws; --large takes few, 8 to 64, as for thousands.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import exhume
from exhume.bounds import held_out
from exhume.bounds.inequalities import bayesian_cramer_rao_bound, trace_bound
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.priors.gaussian import GaussianDensity

BOUNDS = ("bayesian-cramer-rao", "bayesian-trace")
DRAWS = (2, 8, 32)
ROUNDING = 1e-6  # relative; linear releases have no other error


class Ridge(NamedTuple):
    """A function of one variable u, and E φ′(u)² for u ~ N(0, 1)."""

    function: Callable[[Tensor], Tensor]
    power: float


def sine(b: float, shift: float) -> Ridge:
    """Return sin(b u + shift) / b."""
    power = (1 + math.exp(-2 * b**2) * math.cos(2 * shift)) / 2
    return Ridge(lambda u: (b * u + shift).sin() / b, power)


def square(place: float) -> Ridge:
    """Return (u − place)² / 2."""
    return Ridge(lambda u: (u - place) ** 2 / 2, place**2 + 1)


def exponential(rate: float) -> Ridge:
    """Return exp(rate u) / rate."""
    return Ridge(lambda u: (rate * u).exp() / rate, math.exp(2 * rate**2))


def step(place: float, width: float) -> Ridge:
    """Return √width Φ((u − place) / width), a unit that is saturated elsewhere."""
    spread = 1 + width**2 / 2
    density = math.exp(-(place**2) / (2 * spread)) / math.sqrt(2 * math.pi * spread)
    return Ridge(
        lambda u: width**0.5 * torch.special.ndtr((u - place) / width),
        density / (2 * math.sqrt(math.pi)),
    )


class Features(nn.Module):
    """A network whose gradient of the squared error at target -½ is φ(x), exactly."""

    def __init__(self, weight: Tensor, scale: Tensor, ridges: list[Ridge]) -> None:
        super().__init__()
        self.ridges = ridges
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.last = nn.Linear(len(ridges), 1, bias=False).double()
        self.last.weight.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        u = x @ self.weight.T
        parts = [r.function(u[..., i]) for i, r in enumerate(self.ridges)]
        return self.last(self.scale * torch.stack(parts, dim=-1))


def random_ridge(uniform: Callable[[float, float], float]) -> Ridge:
    kind = uniform(0, 5)
    if kind < 1:
        return sine(10 ** uniform(-2, 0.5), uniform(0, 3))
    if kind < 2:
        return square(uniform(-3, 3))
    if kind < 3:
        return exponential(uniform(0.05, 1))
    return step(uniform(-3, 3), 10 ** uniform(-1, 0.3))


def closed_form(key: int) -> tuple[exhume.World, dict[str, float]]:
    """Make a random release, and the truth of each bound."""
    source = generator(key, "bound-coverage")

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=source))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    d = 2 + key % 7
    turn = torch.linalg.qr(normal(d, d)).Q
    variances = 10 ** (2 * torch.rand(d, generator=source, dtype=torch.float64) - 1)
    covariance = (turn * variances) @ turn.T
    density = GaussianDensity.from_covariance(normal(d), covariance)
    mean = density.location
    ridges = [random_ridge(uniform) for _ in range(d + int(uniform(0, d)))]
    weight = normal(len(ridges), d)
    # Every projection has variance 1, so that rare is rare for the prior.
    weight /= ((weight @ covariance) * weight).sum(dim=1, keepdim=True).sqrt()
    scale = 10 ** (0.5 * normal(len(ridges)) + uniform(-0.5, 1))
    power = scale**2 * torch.tensor([r.power for r in ridges], dtype=torch.float64)
    fisher = (weight.T * power) @ weight
    information = density.information()
    truth = {
        BOUNDS[0]: bayesian_cramer_rao_bound(fisher, information),
        BOUNDS[1]: trace_bound(float(fisher.trace()), float(information.trace()), d),
    }
    net = nn.Sequential(Centred(mean), Features(weight, scale, ridges))
    task = exhume.Task(net, loss="mse")
    batch = exhume.Batch(
        torch.zeros(1, d, dtype=torch.float64),
        torch.full((1, 1), -0.5, dtype=torch.float64),
        exhume.EventSpec.vector(d),
    )
    noise = exhume.defense("gaussian-noise", std=1.0)
    mechanism = exhume.Mechanism(Gradient(), [noise])
    return exhume.World(task, batch, mechanism, prior=density), truth


class Centred(nn.Module):
    """x − E x."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean


class Coverage(NamedTuple):
    """What came of a bound at a number of draws.

    Attributes:
        covered: intervals that contain the truth.
        above: intervals that lie above it.
        below: intervals that lie below it.
        beyond: bounds above the truth by more than three standard errors.
        worst: largest ratio of a bound that was given to the truth.
        drawn: mean number of draws that were taken.
        refusals: reason → how often.
    """

    covered: int
    above: int
    below: int
    beyond: int
    worst: float
    drawn: float
    refusals: Counter[str]

    @property
    def given(self) -> int:
        """Number of bounds that were given."""
        return self.covered + self.above + self.below


def coverage(name: str, draws: int, keys: range) -> Coverage:
    """Evaluate a bound on many releases."""
    count: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    worst, drawn = 0.0, 0.0
    for key in keys:
        world, truth = closed_form(key)
        found = exhume.bound(name, draws=draws)(world, key=key)
        if isinstance(found, exhume.NotApplicable):
            refusals[" ".join(found.reason.split()[:4])] += 1
            continue
        slack = ROUNDING * truth[name]
        over = found.total - truth[name]
        reach = 1.96 * found.standard_error + slack
        side = "above" if over > reach else "below" if over < -reach else "covered"
        count[side] += 1
        count["beyond"] += over > 3 * found.standard_error + slack
        worst = max(worst, found.total / truth[name])
        drawn += found.details["draws"]
    given = max(count["covered"] + count["above"] + count["below"], 1)
    return Coverage(
        count["covered"],
        count["above"],
        count["below"],
        count["beyond"],
        worst,
        drawn / given,
        refusals,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--keys", type=int, default=800, help="random releases")
    parser.add_argument("--draws", type=int, nargs="+", default=DRAWS)
    parser.add_argument("--bounds", nargs="+", default=BOUNDS)
    parser.add_argument("--large", action="store_true", help="few draws, 8 to 64")
    arguments = parser.parse_args()
    if arguments.large:
        held_out.AFFORDABLE = 0
    torch.set_num_threads(1)
    for name in arguments.bounds:
        for draws in arguments.draws:
            found = coverage(name, draws, range(arguments.keys))
            share = found.covered / max(found.given, 1)
            print(
                f"{name}, {draws} draws asked for, {found.drawn:.0f} taken: "
                f"{found.given} of {arguments.keys} given, {share:.1%} cover "
                f"({found.above} above, {found.below} below the truth); "
                f"{found.beyond} exceed it by 3 standard errors, by "
                f"{found.worst:.2f} times at most"
            )
            for reason, times in found.refusals.most_common():
                print(f"    {times} refused: {reason} …")


if __name__ == "__main__":
    main()
