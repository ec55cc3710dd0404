"""How the Cramér–Rao bound scales with width, dimension and what a defense removes.

    python benchmarks/scalings.py            # widths to 8000, three seeds, a minute
    python benchmarks/scalings.py --quick    # widths to 2000

Two-layer tanh network f(x) = Σ_j a_j tanh(w_j·x) with a_j = 1/m and w_j ~ N(0, I_d),
square loss, only ∂L/∂a is released, with unit noise. R = √(tr J_F⁻¹ / B), the smallest
root mean squared error of an unbiased attack per example; examples lie on the unit
sphere. Theory: R ∝ √(d/m), and a random mask that keeps 1 − ρ of the entries, or
dropout without rescaling, multiplies it by 1/√(1 − ρ). Dropout that rescales by
1/(1 − ρ) multiplies it by √(1 − ρ): the gradients that stay grow.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import nn

import exhume
from exhume.bounds.fisher import (
    MeanMap,
    fisher_information,
    information_map,
    mean_map,
)
from exhume.bounds.inequalities import unbiased_cramer_rao_bound
from exhume.keys import fold, generator
from exhume.observations.gradient import Gradient

WIDTHS = (500, 1000, 2000, 4000, 8000)
DIMENSIONS = (5, 10, 20, 40, 80)
RATIOS = (0.3, 0.5, 0.7, 0.9)
# Factors of masks are limits: a tenth of this width must still be wide beside B·d = 40.
MASKED_WIDTH = 32_000
SEEDS = 3
BATCH = 2


class OutputGradientNet(nn.Module):
    """f(x) = Σ_j a_j tanh(w_j·x); the hidden weights are not trained."""

    def __init__(self, width: int, dimension: int, key: int) -> None:
        super().__init__()
        draw = torch.randn(width, dimension, generator=generator(key, "hidden"))
        self.hidden = nn.Linear(dimension, width, bias=False)
        self.hidden.weight = nn.Parameter(draw, requires_grad=False)
        self.act = nn.Tanh()
        self.output = nn.Linear(width, 1, bias=False)
        nn.init.constant_(self.output.weight, 1 / width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, d] to [B, 1]."""
        return self.output(self.act(self.hidden(x)))


def release(
    width: int, dimension: int, seed: int, defenses: tuple = ()
) -> tuple[MeanMap, torch.Tensor]:
    """Return the whitened release of a batch as a function of it, and the batch."""
    task = exhume.Task(OutputGradientNet(width, dimension, seed), loss="mse")
    x = torch.randn(
        BATCH, dimension, generator=generator(seed, "x"), dtype=torch.float64
    )
    x = x / x.norm(dim=1, keepdim=True)
    y = torch.randn(BATCH, 1, generator=generator(seed, "y")).sign().double()
    noise = exhume.defense("gaussian-noise", std=1.0)
    before = [d for d in defenses if d.stage.value < noise.stage.value]
    after = [d for d in defenses if d not in before]
    mechanism = exhume.Mechanism(Gradient(), (*before, noise, *after))
    plans = mechanism.calibrate(task, None, fold(seed, "plan"))
    induced = mechanism.induced(task, plans)
    mean = mean_map(induced.task, induced.model, induced.law, y)
    return information_map(mean, induced.law, x), x


def error(width: int, dimension: int, seed: int, defenses: tuple = ()) -> float:
    """Return R for one network and batch, in units of the data."""
    mean, x = release(width, dimension, seed, defenses)
    variances = unbiased_cramer_rao_bound(fisher_information(mean, None, x))
    return (float(variances.sum()) / BATCH) ** 0.5


def typical(width: int, dimension: int, defenses: tuple = ()) -> float:
    """Return the geometric mean of R over the seeds."""
    return statistics.geometric_mean(
        error(width, dimension, seed, defenses) for seed in range(SEEDS)
    )


def slope(sizes: tuple[int, ...], errors: list[float]) -> float:
    """Return the least-squares slope of log R against log size."""
    x = torch.tensor(sizes).double().log()
    y = torch.tensor(errors).double().log()
    return float((x - x.mean()).dot(y) / (x - x.mean()).square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="widths up to 2000")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    widths = WIDTHS[:3] if quick else WIDTHS
    dimensions = DIMENSIONS[:3] if quick else DIMENSIONS
    largest = widths[-1]
    by_width = [typical(m, 20) for m in widths]
    print(f"width m = {widths}, d = 20: {', '.join(f'{r:.4f}' for r in by_width)}")
    print(f"  slope {slope(widths, by_width):+.3f} (theory −0.5)")
    by_dimension = [typical(largest, d) for d in dimensions]
    print(f"dimension d = {dimensions}, m = {largest}: ", end="")
    print(", ".join(f"{r:.4f}" for r in by_dimension))
    print(f"  slope {slope(dimensions, by_dimension):+.3f} (tends to +0.5)")
    masked = largest if quick else MASKED_WIDTH
    bare = typical(masked, 20)
    print(f"masks, m = {masked}, d = 20:")
    for name, options, power in (
        ("pruning", {"kind": "random"}, -0.5),
        ("dropout", {"rescale": False}, -0.5),
        ("dropout", {"rescale": True}, 0.5),
    ):
        for ratio in RATIOS:
            defense = exhume.defense(name, ratio=ratio, **options)
            factor = typical(masked, 20, (defense,)) / bare
            expected = (1 - ratio) ** power
            print(
                f"  {name} {options}, ratio {ratio}: R is multiplied by {factor:.3f}, "
                f"theory {expected:.3f}, quotient {factor / expected:.3f}"
            )


if __name__ == "__main__":
    main()
