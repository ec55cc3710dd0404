"""How many iterations matrix-optimal noise needs: the bound that each of them reaches.

    python benchmarks/fixed_point.py            # LeNet with tanh on faces, a minute

The Bayesian Cramér-Rao bound along the principal directions of the public data, over
that of isotropic noise at equal cost E[gᵀ S g], after 0 to 8 iterations of the fixed
point: on the data of the design, and on public examples that it has not seen. Iteration
0 is the optimum of the trace bound.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from exhume.defenses._blocks import inner
from exhume.defenses._low_rank_optimum import low_rank_optimum
from exhume.defenses._matrix_design import average_information, posterior_covariance
from exhume.defenses._principal_directions import (
    Tangents,
    principal_directions,
    tangents,
)
from exhume.defenses._public_scales import metric_columns, public_batches
from exhume.defenses._utility_cost import Metric, matched, public_metric
from exhume.defenses.matrix_optimal_noise import MatrixOptimalNoise
from exhume.runs.records import TrialSpec
from exhume.trials.world import make_world

MODEL = {"name": "lenet-zhu", "activation": "tanh", "weight_range": 0.15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--std", type=float, nargs="+", default=[3e-3, 3e-2, 3e-1])
    parser.add_argument("--iterations", type=int, default=8)
    options = parser.parse_args()
    steps = "".join(f"{k:<8d}" for k in range(options.iterations + 1))
    print(f"std     bound on the  after {steps}")
    for std in options.std:
        own, other = gains(std, options.iterations)
        print(f"{std:<7g} design        {told(own)}")
        print(f"{'':7s} unseen        {told(other)}", flush=True)


def told(values: list[float]) -> str:
    return "      " + "".join(f"{value:<8.3f}" for value in values)


def gains(std: float, iterations: int) -> tuple[list[float], list[float]]:
    """Return the gain after 0, 1, … iterations, on seen and on unseen data."""
    spec = TrialSpec(data={"name": "faces"}, model=MODEL, seed=0, classes=10)
    world = make_world(spec)
    task, public = world.task, world.public
    assert public is not None
    rest = [public.select([i]) for i in range(2, len(public), 3)]
    design = public.select([i for i in range(len(public)) if i % 3 != 2])
    noise = MatrixOptimalNoise(std=std)
    shapes = {name: p.detach() for name, p in task.parameters().items()}
    names = list(shapes)
    batches = public_batches("matrix-optimal-noise", design, 1, 256, 0)
    metric = public_metric(task, batches, noise.metric, noise.ridge, 0, names)
    columns = metric_columns(task, rest, "u2", 0, names)
    assert columns is not None
    axes, prior = principal_directions(design, noise.directions)
    sides = [
        (tangents(task, batches[: noise.samples], axes, names), metric),
        (tangents(task, rest[: noise.samples], axes, names), Metric(columns, 0.0)),
    ]
    isotropic = [inner_mean(seen) / std**2 for seen, _ in sides]
    weighted, found = sides[0][0], ([], [])
    for _ in range(iterations + 1):
        form = low_rank_optimum(weighted, metric, shapes, noise.rank, 0)
        for (seen, cost), plain, values in zip(sides, isotropic, found, strict=True):
            form = matched(form, cost, shapes, std**2 * cost.trace())
            information = average_information(seen, form, shapes)
            values.append(bound(information, prior) / bound(plain, prior))
        form = matched(form, metric, shapes, std**2 * metric.trace())
        posterior = posterior_covariance(sides[0][0], form, shapes, prior)
        weighted = sides[0][0] @ posterior
    return found


def inner_mean(seen: Tensor | Tangents) -> Tensor:
    return torch.stack([inner(one, one) for one in seen]).mean(dim=0)


def bound(information: Tensor, prior: Tensor) -> float:
    return float(torch.linalg.inv(information + torch.diag(1 / prior)).trace())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
