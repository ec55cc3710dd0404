"""Noise scaled by private data leaks at any strength: bound, and attacks.

    python benchmarks/private_scale_leak.py               # 3 draws: half an hour
    python benchmarks/private_scale_leak.py --draws 6 --restarts 0

One example of 10 standard normal coordinates over √10, a tanh layer of 2000 random
units, the gradient of the last layer. Optimal Gradient Noise with v_i = λ a_i/|g_i|
costs the utility U2 = Σ v_i g_i². For every U2/m: tr J_F⁻¹ under isotropic noise, with
v held fixed at its value, and with v as a function of the data; then the squared error
of attacks from a start near the truth (squared distance 0.004) and from draws of the
prior; "fixed" takes v at the truth as a constant. Medians over the draws.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

import torch
from torch import Tensor, nn

import exhume
from exhume.bounds.fisher import (
    fisher_information,
    information_map,
    mean_map,
    variance_map,
)
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.knowledge import Problem
from exhume.problem.law import Law
from exhume.problem.observation import Candidate
from exhume.problem.sensitivity import exact_squared_sensitivities

DIMENSION, WIDTH = 10, 2000
STRENGTHS = (0.01, 1.0, 100.0)
NEAR = 0.004
NAME = "2.weight"
TARGET = torch.ones(1, 1).double()


def normal(*shape: int, key: int) -> Tensor:
    return torch.randn(shape, generator=generator(key), dtype=torch.float64)


def network() -> exhume.Task:
    """Return the task; only the last layer is trained."""
    first = nn.Linear(DIMENSION, WIDTH, bias=False).double()
    first.weight.data = normal(WIDTH, DIMENSION, key=0)
    first.requires_grad_(False)
    last = nn.Linear(WIDTH, 1, bias=False).double()
    last.weight.data = normal(1, WIDTH, key=1) / WIDTH
    return exhume.Task(nn.Sequential(first, nn.Tanh(), last), loss="mse")


def ratios(task: exhume.Task, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a_i / |g_i| with the clamps of the authors' code, and g."""
    a = exact_squared_sensitivities(task, Gradient(), x, TARGET)[NAME].sqrt()
    g = Gradient().forward_func(task, Candidate(x, TARGET))[NAME]
    return (a / g.abs().clamp_min(1e-8)).clamp_max(1e6), g


class PrivateScale:
    """v(x) = λ a/|g| with a public λ."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, task, model, candidate: Candidate) -> dict[str, Tensor]:
        del model
        return {NAME: self.scale * ratios(task, candidate.inputs)[0]}


def row(task: exhume.Task, strength: float, draws: int, restarts: int) -> str:
    """Return one line: traces of the inverse information, errors of the attacks."""
    prior = GaussianDensity.from_covariance(
        torch.zeros(DIMENSION, dtype=torch.float64),
        torch.eye(DIMENSION, dtype=torch.float64) / DIMENSION,
    )
    spec = exhume.EventSpec.vector(DIMENSION)
    found: dict[str, list[float]] = {}
    for draw in range(draws):
        x = prior.sample(1, draw).double()
        ratio, g = ratios(task, x)
        power = float(g.square().mean())
        scale = strength / float((ratio * g.square()).mean())
        v = scale * ratio
        fixed = Law(variance={NAME: v})
        private = replace(fixed, variance_at=PrivateScale(scale))
        flat = Law(variance={NAME: torch.full_like(v, strength / power)})
        for name, law in (("isotropic", flat), ("fixed", fixed), ("private", private)):
            mean = mean_map(task, Gradient(), law, TARGET)
            variance = variance_map(task, Gradient(), law, TARGET)
            whitened = information_map(mean, law, x, variance)
            inverse = torch.linalg.inv(fisher_information(whitened, None, x))
            found.setdefault(f"bound {name}", []).append(float(inverse.trace()))
        observed = {NAME: g + v.sqrt() * normal(*g.shape, key=100 + draw)}
        step = normal(1, DIMENSION, key=200 + draw)
        near = x + NEAR**0.5 * step / step.norm()
        for name, law in (("fixed", fixed), ("private", private)):
            problem = Problem(
                observed, spec, task, TARGET, 1, observation_model=Gradient(),
                law=law, prior=prior,
            )  # fmt: skip
            attack = (
                exhume.attack("gauss-newton", restarts=1, evaluations=4000)
                if name == "fixed"
                else exhume.attack("covariance-aware", restarts=1, iterations=20)
            )
            answer = attack.run_from(problem, draw, near)  # type: ignore[attr-defined]
            error = float((answer.inputs - x).square().sum())
            found.setdefault(f"near {name}", []).append(error)
            if restarts:
                many = replace(attack, restarts=restarts)  # type: ignore[type-var]
                error = float((many(problem, draw).inputs - x).square().sum())
                found.setdefault(f"prior {name}", []).append(error)
    cells = [f"{n} {statistics.median(v):.2g}" for n, v in found.items()]
    return f"U2/m = {strength:g}: " + ", ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--draws", type=int, default=3, help="examples, with noise")
    parser.add_argument(
        "--restarts", type=int, default=4, help="starts from the prior; 0 for none"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = network()
    for strength in STRENGTHS:
        print(row(task, strength, arguments.draws, arguments.restarts), flush=True)


if __name__ == "__main__":
    main()
