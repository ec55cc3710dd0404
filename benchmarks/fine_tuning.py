"""What does the change of a whole training tell of its examples, if Θ_0 is known?

    python benchmarks/fine_tuning.py --mnist PATH              # every row
    python benchmarks/fine_tuning.py --mnist PATH --row exact  # one row
    python benchmarks/fine_tuning.py --mnist PATH --seed 1     # other images, network

MNIST test images averaged to 14 x 14, odd against even, half of each, the mean training
image subtracted inside of the network (which is public), one wide hidden layer in the
tangent-kernel parametrisation, squared loss on ±1. "linearised" is the limit of
training where features do not move, "trained" is gradient descent on the real network.
Every row prints

    p/(nd)      parameters per unknown number
    oracle      ‖v − Σ a φ‖²/‖v‖² at the training images: what no attack can explain
    residual    the same at the answer
    NCC         training images whose best candidate correlates above .9 / .8 / .7
    error       median of ‖x̂ − x‖/‖x − mean‖ over the training images
    null        the same levels for 1995 images never trained on, in per cent
    time        of the attack, in CPU seconds and in trainings
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import exhume
from exhume.config import build
from exhume.trials.memorised import best_correlations
from rows import counts, percentages, rows_asked
from weights import Centre, images

LINEARISED = {"name": "fine-tuning", "linearised": True}
SPLIT = {"inner": "tangent-kernel"}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        width: of the hidden layer.
        activation: of the network.
        per_class: images of either class.
        observation: how the change comes about.
        attack: with its options.
        noise: standard deviation on the change, as a share of its root mean square.
    """

    width: int = 1000
    activation: str = "softplus"
    per_class: int = 10
    observation: dict[str, Any] = field(default_factory=lambda: dict(LINEARISED))
    attack: dict[str, Any] = field(default_factory=lambda: {"name": "tangent-kernel"})
    noise: float = 0.0


def trained(loss: float) -> dict[str, Any]:
    return {"name": "fine-tuning", "target_loss": loss}


ROWS: dict[str, Row] = {
    "exact": Row(),
    "exact-n": Row(attack={"name": "tangent-kernel", "candidates": 1}),
    "exact-restarts": Row(attack={"name": "tangent-kernel", "restarts": 3}),
    "exact-subspace": Row(attack={"name": "subspace"}),
    "exact-splitting": Row(attack={"name": "sample-splitting", **SPLIT}),
    "exact-n-splitting": Row(
        attack={"name": "sample-splitting", **SPLIT, "options": {"candidates": 1}}
    ),
    "exact-noise": Row(noise=0.3),
    "exact-200": Row(width=200),
    "exact-50": Row(width=50),
    "exact-50-subspace": Row(width=50, attack={"name": "subspace"}),
    "exact-200-n50": Row(width=200, per_class=25),
    "relu-200": Row(width=200, activation="relu"),
    "relu": Row(activation="relu"),
    "relu-4000": Row(width=4000, activation="relu"),
    "relu-subspace": Row(activation="relu", attack={"name": "subspace"}),
    "relu-splitting": Row(
        activation="relu", attack={"name": "sample-splitting", **SPLIT}
    ),
    "relu-subspace-splitting": Row(
        activation="relu", attack={"name": "sample-splitting", "inner": "subspace"}
    ),
    "trained-200": Row(width=200, activation="relu", observation=trained(1e-6)),
    "trained": Row(activation="relu", observation=trained(1e-6)),
    "trained-subspace": Row(
        activation="relu",
        observation=trained(1e-6),
        attack={"name": "subspace"},
    ),
    "trained-softplus": Row(observation=trained(1e-6)),
    "trained-softplus-subspace": Row(
        observation=trained(1e-6), attack={"name": "subspace"}
    ),
    "trained-early": Row(activation="relu", observation=trained(1e-2)),
}


def client(row: Row, path: str, seed: int) -> tuple[exhume.World, Tensor, Tensor]:
    """Return the world, the unseen images and the mean training image."""
    own, unseen, mean = images(path, seed, row.per_class)
    source = build(
        "model",
        {"name": "tangent-mlp", "hidden": [row.width], "activation": row.activation},
    )
    net = nn.Sequential(Centre(mean), source.build(own.spec, 1, seed)).double()
    defenses = ()
    mechanism = exhume.Mechanism(build("observation", row.observation))
    world = exhume.World(exhume.Task(net, loss="mse"), own, mechanism)
    if row.noise:
        change = torch.cat([t.flatten() for t in world.observe(0).values.values()])
        std = row.noise * float(change.square().mean().sqrt())
        defenses = (exhume.defense("gaussian-noise", std=std),)
        mechanism = exhume.Mechanism(mechanism.observation, defenses)
        world = exhume.World(world.task, own, mechanism)
    return world, unseen, mean


def line(name: str, path: str, seed: int) -> str:
    """Train, attack and put the result in a line."""
    row = ROWS[name]
    world, unseen, mean = client(row, path, seed)
    begun = time.process_time()
    seen = world.observe(0)
    training = time.process_time() - begun
    problem = exhume.ThreatModel("labels-known").reveal(world, seen)
    attack = build("attack", row.attack)
    begun = time.process_time()
    answer = attack(problem, key=0)
    seconds = time.process_time() - begun
    truth = world.batch.inputs
    oracle = attack.objective(problem, truth, world.batch.targets)
    guesses = answer.inputs.double()
    own = best_correlations(truth, guesses, mean)
    null = best_correlations(unseen, guesses, mean)
    distances = torch.cdist(truth.flatten(1), guesses.flatten(1)).min(dim=1).values
    errors = distances / (truth - mean).flatten(1).norm(dim=1)
    unknowns = truth.numel()
    weights = sum(t.numel() for t in seen.values.values())
    return (
        f"| {name:16s} | {weights / unknowns:5.1f} | {oracle:.1e} | "
        f"{answer.objective:.1e} | {counts(own)} of {len(truth)} | "
        f"{float(own.median()):.3f} | {float(errors.median()):.3f} | "
        f"{percentages(null)} | {seconds:4.0f} s ({seconds / training:.0f}) |"
    )


def main() -> None:
    """Print the rows as they are measured."""
    arguments = rows_asked(__doc__, ROWS)
    print(
        "| row | p/(nd) | oracle | residual | NCC > .9 / .8 / .7 | median | error | "
        "null in % | time (× training) |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name in arguments.row:
        print(line(name, arguments.mnist, arguments.seed), flush=True)


if __name__ == "__main__":
    main()
