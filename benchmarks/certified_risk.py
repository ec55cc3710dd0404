"""Published numbers of privacy accounting and certified risk, ours beside them.

    python benchmarks/certified_risk.py

Each line is computed by the functions that the bounds use. The last column says where
the reference comes from; Monte Carlo is our own simulation of the attack.
"""

from __future__ import annotations

import math

import torch

from exhume.bounds.accounting import epsilon, type_two_error
from exhume.bounds.bayes_security import approximation_error, bayes_security
from exhume.bounds.bayesian_cramer_rao import bayesian_cramer_rao_bound
from exhume.bounds.fisher_information_leakage import diagonal_fisher_information_loss
from exhume.bounds.hammersley_chapman_robbins import hammersley_chapman_robbins_bound
from exhume.bounds.no_prior_gaussian import (
    mean_estimation_error,
    mean_estimation_success,
)
from exhume.bounds.reconstruction_robustness import gaussian_reconstruction_risk
from exhume.keys import generator
from exhume.problem.privacy import Guarantee

RATE, STEPS, DELTA = 0.01, 1000, 1e-5
DRAWS = 20_000


def guarantee(*stds: float) -> Guarantee:
    """One example clipped to norm 1, then noise of these standard deviations."""
    shapes = {"update": (len(stds),)}
    variance = torch.tensor(stds, dtype=torch.float64).square()
    clipped = Guarantee(shapes).clipped(shapes, 1.0, "example")
    return clipped.plus_noise({"update": variance})


def simulated_risk(chance: float) -> float:
    """Run Hayes' attack: the likelihood ratio of training with and without."""
    source, ratios = generator(0, "hayes"), []
    for present in (False, True):
        total = torch.zeros(DRAWS, dtype=torch.float64)
        for _ in range(STEPS):
            x = torch.randn(DRAWS, generator=source, dtype=torch.float64)
            if present:
                x += torch.rand(DRAWS, generator=source) < RATE
            total += torch.log1p(RATE * torch.expm1(x - 0.5))
        ratios.append(total)
    threshold = torch.quantile(ratios[0], 1 - chance)
    return float((ratios[1] > threshold).double().mean())


def linear_model(std: float) -> tuple[float, float]:
    """Return dFIL's floor and the true least error: prior .2, tr JᵀJ / d = 18.63."""
    matrix = torch.randn(20, 8, generator=generator(0, "linear"), dtype=torch.float64)
    matrix *= (8 * 25 / 1.342 / matrix.square().sum()) ** 0.5
    fisher = matrix.T @ matrix / std**2
    prior = torch.eye(8, dtype=torch.float64) / 0.2**2
    floor = 1 / diagonal_fisher_information_loss(float(fisher.trace()), 8) ** 2
    return floor, bayesian_cramer_rao_bound(fisher, prior) / 8


def simulated_estimation(unknowns: int, sigma: float) -> tuple[float, float]:
    """Return error and chance of half the error of a simulated analytic attack."""
    source = generator(0, "estimation")
    secret = torch.randn(unknowns, generator=source, dtype=torch.float64)
    noise = torch.randn(DRAWS, unknowns, generator=source, dtype=torch.float64)
    scale = sigma * float(torch.linalg.vector_norm(secret))
    errors = (scale * noise).square().mean(dim=1)
    expected = mean_estimation_error(sigma, float(secret.square().sum()))
    within = float((errors <= expected / 2).double().mean())
    return float(errors.mean()) / expected, within


def accounting() -> list[tuple[str, float, float, str]]:
    """Lines on ε and the trade-off curve."""
    one, sampled = guarantee(1.0), {"steps": STEPS, "sampling_rate": RATE}
    curve = 1 - type_two_error(one, 0.1, **sampled)
    return [
        ("ε, q .01, T 1000", 1.828, epsilon(one, DELTA, **sampled).value, "PLD"),
        ("ε, add or remove", 4.377, epsilon(one, DELTA).value, "PLD"),
        ("ε, replace", 9.997, epsilon(one, DELTA, adjacency="replace").value, "PLD"),
        ("ε, smallest scale .5", 9.997, epsilon(guarantee(1, 0.5), DELTA).value, "PLD"),
        ("ε, smallest scale .1", 91.8, epsilon(guarantee(1, 0.1), DELTA).value, "PLD"),
        ("ε, smallest scale 0", math.inf, epsilon(guarantee(1, 0), DELTA).value, "–"),
        ("ReRo, κ .001", 0.01830, risk(0.001), "closed form"),
        ("ReRo, κ .1", 0.38914, risk(0.1), "closed form"),
        ("ReRo, q .01, T 1000, κ .1", 0.1942, curve, "PLD"),
        ("  simulated", simulated_risk(0.1), curve, "Monte Carlo"),
    ]


def risk(chance: float) -> float:
    """Return the closed form at √T/σ = 1."""
    return gaussian_reconstruction_risk(math.log(chance), 1.0)


def others() -> list[tuple[str, float, float, str]]:
    """Lines on the bounds that are no trade-off curves."""
    (strong, strong_error), (weak, weak_error) = linear_model(5.0), linear_model(0.7)
    ratio, within = simulated_estimation(8, 0.5)
    half = mean_estimation_success(0.5, 8, 1.0)
    error = approximation_error(1.0, STEPS, RATE)
    replaced, added = (bayes_security(1.0, STEPS, RATE, moved) for moved in (2, 1))
    return [
        ("HCR, ε₂ .1", 2.377, hammersley_chapman_robbins_bound(1, 0.1), "Guo"),
        ("HCR, ε₂ 1", 0.1455, hammersley_chapman_robbins_bound(1, 1), "Guo"),
        ("HCR, ε₂ 4", 0.0047, hammersley_chapman_robbins_bound(1, 4), "Guo"),
        ("Bayes security, replace", 0.7518, replaced, "Cherubin"),
        ("Bayes security, add", 0.8744, added, "Cherubin"),
        ("  its error term", 1.57, error, "Cherubin"),
        ("dFIL floor, σ 5", 1.342, strong, "Guo"),
        ("  true least error", 0.0389, strong_error, "linear model"),
        ("dFIL floor, σ .7", 0.02631, weak, "Guo"),
        ("  true least error", 0.01854, weak_error, "another matrix"),
        ("no prior, error / formula", ratio, 1.0, "Monte Carlo"),
        ("no prior, P(half of it)", within, half, "Monte Carlo"),
    ]


def main() -> None:
    print(f"{'':28}{'reference':>11}{'ours':>11}  reference by")
    for name, reference, ours, source in [*accounting(), *others()]:
        print(f"{name:28}{reference:11.5g}{ours:11.5g}  {source}")


if __name__ == "__main__":
    main()
