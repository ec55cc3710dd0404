"""Is gauss-newton as good as any attacker can be? Its error beside the Bayesian bound.

    python benchmarks/bound_tightness.py            # 40 draws, 20 faces, three levels
    python benchmarks/bound_tightness.py --draws 8 --faces 4

A small tanh network, Gaussian noise at three levels, a Gaussian prior fitted to public
faces by shrinkage. For signals *drawn from that prior* the mean squared error must not
be below the Bayesian Cramér–Rao bound (3 standard errors) and should be within 1.2
times of it where the noise is low. For *real faces* the bound is conditional on a prior
that they do not follow, so their ratio is shown beside a check of the fit.
"""

from __future__ import annotations

import argparse

import torch

import exhume
from exhume.keys import fold
from exhume.observations.gradient import Gradient

LEVELS = (1e-4, 1e-2, 1.0)
CLASSES = 10
DRAWS = 64  # of the expectation in the bound


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    data = torch.tensor(values, dtype=torch.float64)
    return float(data.mean()), float(data.std() / len(data) ** 0.5)


def squared_errors(
    task: exhume.Task, signals: torch.Tensor, std: float, prior: object
) -> list[float]:
    """Attack every signal once; return the mean squared errors."""
    errors = []
    spec = exhume.EventSpec("image", tuple(signals.shape[1:]))
    mechanism = exhume.Mechanism(
        Gradient(), (exhume.defense("gaussian-noise", std=std),)
    )
    attack = exhume.attack("gauss-newton")
    for i in range(len(signals)):
        batch = exhume.Batch(signals[i : i + 1], torch.tensor([1]), spec)
        world = exhume.World(task, batch, mechanism, None, prior)
        problem = exhume.ThreatModel("labels-known").reveal(world, world.observe(i))
        answer = attack(problem, i)
        errors.append(float((answer.inputs - batch.inputs).square().mean()))
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--draws", type=int, default=40, help="signals from the prior")
    parser.add_argument("--faces", type=int, default=20, help="real held-out faces")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = exhume.dataset("faces").load()
    faces = data.inputs[data.targets == 1].double()
    public, held_out = faces[arguments.faces :], faces[: arguments.faces]
    spec = exhume.EventSpec("image", tuple(faces.shape[1:]))
    net = exhume.model("mlp", hidden=[32], activation="tanh")
    task = exhume.Task(net.build(spec, CLASSES, 0)).to(torch.float64)
    labels = torch.ones(len(public), dtype=torch.int64)
    prior = exhume.prior("gaussian").fit(exhume.Batch(public, labels, spec), task)
    print(f"prior: Mahalanobis² / d of held-out public faces {prior.fit_check:.2f}")
    signals = prior.sample(arguments.draws, fold(0, "signals")).double()
    for std in LEVELS:
        mechanism = exhume.Mechanism(
            Gradient(), (exhume.defense("gaussian-noise", std=std),)
        )
        one = exhume.Batch(signals[:1], torch.tensor([1]), spec)
        world = exhume.World(task, one, mechanism, None, prior)
        bound = exhume.bound("bayesian-cramer-rao", draws=DRAWS)(world, prior)
        for what, x in (("prior draws", signals), ("real faces", held_out)):
            mse, error = mean_and_error(squared_errors(task, x, std, prior))
            slack = 3 * (error**2 + bound.mse_standard_error**2) ** 0.5
            verdict = "ok" if mse >= bound.mse - slack else "BELOW THE BOUND"
            print(
                f"noise {std:g}: {what:11s} n = {len(x):2d}"
                f"  MSE {mse:.3e} ± {error:.1e}"
                f"  bound {bound.mse:.3e} ± {bound.mse_standard_error:.1e}"
                f"  ratio {mse / bound.mse:.3f}  {verdict if x is signals else ''}"
            )


if __name__ == "__main__":
    main()
