"""What do a gradient, an update and trained weights tell of the same 20 images?

    python benchmarks/three_observations.py --mnist PATH                 # every row
    python benchmarks/three_observations.py --mnist PATH --row gradient  # one row

MNIST test images averaged to 14 x 14, odd against even, ten of each class, logistic
loss. Gradient, update of a few local steps and change by a whole training are those of
one wide network (196-1000-1, softplus); the weights alone are those of a homogeneous
one (196-500-1, ReLU), the only kind for which the attack on weights is meant. All
attackers know labels and schedule, none the order of the examples.

Every row prints the training images whose best candidate correlates above .9 / .8 / .7,
the median correlation, the same shares of 1995 images never trained on, and the time of
the attack in CPU seconds and in times what the client computed.
"""

from __future__ import annotations

import time

import exhume
from exhume.config import build
from exhume.trials.memorised import best_correlations
from rows import counts, percentages, rows_asked
from weights import images

WIDE = {"name": "tangent-mlp", "hidden": [1000]}
SMALL_START = {"name": "homogeneous-mlp", "hidden": [500]}
LOCAL = {"name": "update", "epochs": 5, "batch_size": 5, "rate": 0.05}
TUNED = {"name": "fine-tuning", "target_loss": 1e-3}
#: row → (model, observation, attack with options)
ROWS = {
    "gradient": (WIDE, {"name": "gradient"}, {"name": "tangent-kernel"}),
    "gradient, span": (WIDE, {"name": "gradient"}, {"name": "subspace"}),
    "update": (WIDE, LOCAL, {"name": "tangent-kernel"}),
    "update, span": (WIDE, LOCAL, {"name": "subspace"}),
    "update, surrogate": (WIDE, LOCAL, {"name": "surrogate-model"}),
    "update, unrolled": (WIDE, LOCAL, {"name": "unrolled"}),
    "fine-tuning": (WIDE, TUNED, {"name": "tangent-kernel"}),
    "fine-tuning, span": (WIDE, TUNED, {"name": "subspace"}),
    "weights": (SMALL_START, {"name": "weights"}, {"name": "kkt", "restarts": 4}),
}


def line(row: str, path: str, seed: int) -> str:
    """Let the client compute, attack what it shares, and put the result in a line."""
    model, observation, attack = ROWS[row]
    own, unseen, mean = images(path, seed)
    source = build("model", {**model, "mean": [float(mean.mean())]} | _std(model))
    net = source.build(own.spec, 1, seed).double()
    mechanism = exhume.Mechanism(build("observation", observation))
    world = exhume.World(exhume.Task(net, loss="logistic"), own, mechanism)
    begun = time.process_time()
    seen = world.observe(0)
    client = time.process_time() - begun
    problem = exhume.ThreatModel("labels-known").reveal(world, seen)
    begun = time.process_time()
    answer = build("attack", attack)(problem, key=0)
    seconds = time.process_time() - begun
    found = best_correlations(own.inputs, answer.inputs.double(), mean)
    null = best_correlations(unseen, answer.inputs.double(), mean)
    return (
        f"| {row:17s} | {attack['name']:15s} | {counts(found)} | "
        f"{float(found.median()):.2f} | {percentages(null)} | "
        f"{seconds:4.0f} s ({seconds / client:.0f}) |"
    )


def _std(model: dict[str, object]) -> dict[str, object]:
    """Return the standard deviation of a normalisation, where a model wants one."""
    return {"std": [1.0]} if model["name"] == "tangent-mlp" else {}


def main() -> None:
    """Print the rows as they are measured."""
    arguments = rows_asked(__doc__, ROWS)
    print(
        "| observation | attack | NCC > .9 / .8 / .7 of 20 | median | null in % | "
        "time (× the client's) |\n|---|---|---|---|---|---|"
    )
    for row in arguments.row:
        print(line(row, arguments.mnist, arguments.seed), flush=True)


if __name__ == "__main__":
    main()
