"""What do trained weights alone tell of their 20 training images?

    python benchmarks/weights.py --mnist PATH             # every row, about 4 minutes
    python benchmarks/weights.py --mnist PATH --row ours  # one row
    python benchmarks/weights.py --mnist PATH --seed 1    # other images, other network

MNIST test images averaged to 14 x 14, odd against even, the first ten of each class
(other ones for a seed above 0), less their mean; a ReLU network 196-500-1 whose first
layer starts at N(0, 1e-3²), trained to a logistic loss of 1e-8. Every row prints

    residual    ‖Θ − Σ λ_i ∇m_i‖²/‖Θ‖² of all candidates, with the best λ ≥ 0
    oracle      the same at the training images: a residual far below it is over-fitting
    NCC         training images whose best candidate correlates above .9 / .8 / .7
    null        the same of 1995 images never trained on, in per cent
    spread      mean correlation between restarts that fit equally well
    time        of the attack, in CPU seconds and in trainings

The rows "from the truth" start at the training images themselves: what they lose is
lost to the misfit, not to the search. No attack can do that.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import exhume
from exhume.attacks.weights.answer import raw_candidates
from exhume.attacks.weights.descent import Cloud, descend
from exhume.observations.weights import Weights
from exhume.problem.knowledge import Problem
from exhume.problem.reconstruction import Stopwatch
from exhume.trials.memorised import best_correlations
from rows import counts, percentages, rows_asked

PER_CLASS, UNSEEN, WIDTH, STD = 10, 1995, 500, 1e-3
PARITY = [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
PUBLISHED = {
    "span": False,
    "misfit": "plain",
    "solver": "sgd",
    "rate": 0.1,
    "spread": 1e-3,
    "iterations": 4000,
    "restarts": 1,
}
ADAM = {**PUBLISHED, "solver": "adam", "rate": 0.01}
#: row → (attack, options, whether the range is that of images instead of ±1)
ROWS: dict[str, tuple[str, dict[str, object], bool]] = {
    "published": ("kkt", PUBLISHED, False),
    "plain-relu": ("kkt", {**PUBLISHED, "sharpness": 0.0}, False),
    "adam": ("kkt", ADAM, False),
    "projection": ("kkt", {**ADAM, "iterations": 1500, "project": 5}, False),
    "range": ("kkt", ADAM, True),
    "span": ("kkt", {**ADAM, "span": True, "spread": 0.1}, True),
    "ours": ("kkt", {"restarts": 1}, True),
    "ours-longer": ("kkt", {"restarts": 1, "iterations": 4000}, True),
    "ours-n": ("kkt", {"restarts": 1, "candidates": 1}, True),
    "ours-projection": ("kkt", {"restarts": 1, "project": 5}, True),
    "pooled": ("kkt", {"restarts": 4}, True),
    "pooled-best": ("kkt", {"restarts": 4, "keep": "best"}, True),
    "splitting": ("sample-splitting", {"restarts": 1}, True),
    "splitting-plain": (
        "sample-splitting",
        {"restarts": 1, "misfit": "plain"},
        True,
    ),
    "from the truth, plain": ("truth", {"misfit": "plain"}, True),
    "from the truth, ours": ("truth", {}, True),
}


class Centre(nn.Module):
    """Subtract the mean training image, which is part of the published network."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - self.mean


@dataclass(frozen=True)
class Victim:
    """A trained network as an attacker meets it, and the evaluator's side."""

    problem: Problem
    images: Tensor
    labels: Tensor
    unseen: Tensor
    mean: Tensor
    seconds: float


def images(
    path: str, seed: int, per_class: int = PER_CLASS
) -> tuple[exhume.Batch, Tensor, Tensor]:
    """Return the training images, the unseen ones and the mean of the former."""
    source = {"name": "mnist", "path": path}
    whole = exhume.dataset("relabelled", source=source, classes=PARITY, pool=2).load()
    if seed:
        order = torch.randperm(
            len(whole), generator=torch.Generator().manual_seed(seed)
        )
        whole = whole.select(order)
    rows = [(whole.targets == c).nonzero().flatten()[:per_class] for c in (0, 1)]
    chosen = torch.cat(rows)
    others = torch.ones(len(whole), dtype=torch.bool)
    others[chosen] = False
    own = whole.select(chosen).to(torch.float64)
    unseen = whole.inputs[others][:UNSEEN].double()
    return own, unseen, own.inputs.mean(dim=0)


def victim(path: str, seed: int, *, natural: bool) -> Victim:
    """Train the network: on images, with the shift inside, or on shifted ones in ±1."""
    own, unseen, mean = images(path, seed)
    shape = own.spec.shape
    spec = own.spec if natural else exhume.EventSpec.image(*shape, -1.0, 1.0)
    inputs = own.inputs if natural else own.inputs - mean
    inner = exhume.model("homogeneous-mlp", hidden=(WIDTH,), first_std=STD)
    layers = [Centre(mean if natural else torch.zeros_like(mean))]
    net = nn.Sequential(*layers, inner.build(spec, 1, seed)).double()
    task = exhume.Task(net, loss="logistic")
    batch = exhume.Batch(inputs, own.targets, spec)
    world = exhume.World(task, batch, exhume.Mechanism(Weights()))
    begun = time.process_time()
    observation = world.observe(0)
    seconds = time.process_time() - begun
    problem = exhume.ThreatModel("labels-known").reveal(world, observation)
    return Victim(problem, inputs, own.targets, unseen, mean, seconds)


def from_the_truth(of: Victim, options: dict[str, object]) -> tuple[Tensor, float, str]:
    """Descend from the training images: the evaluator's diagnosis, not an attack."""
    attack = exhume.attack("kkt", candidates=1, restarts=1, **options)
    setting = attack.setting(of.problem)
    fit, watch = setting.fit, Stopwatch()
    _, multipliers, _ = fit.explained(of.images, of.labels)
    started = len(of.images) * multipliers.clamp_min(1e-3)
    points = fit.unknowns.relaxation.encode(of.images)
    cloud = Cloud(points, started, of.labels)
    cloud = descend(fit, cloud, attack.steps(watch, 0), watch, 0, [])
    found, labels = raw_candidates(setting, [cloud])
    return found, fit.explained(found, labels)[0], ""


def attacked(
    of: Victim, name: str, options: dict[str, object]
) -> tuple[Tensor, float, str]:
    """Return candidates, their residual, and the spread of restarts in print."""
    if name == "truth":
        return from_the_truth(of, options)
    answer = exhume.attack(name, **{"keep": "all", **options})(of.problem, key=0)
    said = re.search(r"mean correlation of (-?\d\.\d+)", " ".join(answer.notes))
    assert answer.objective is not None
    return answer.inputs, answer.objective, said[1] if said else ""


def line(of: Victim, row: str, *, natural: bool) -> str:
    name, options, _ = ROWS[row]
    begun = time.process_time()
    found, residual, spread = attacked(of, name, options)
    seconds = time.process_time() - begun
    oracle = exhume.attack("kkt", **_features(options)).objective(
        of.problem, of.images, of.labels
    )
    shift = of.mean if natural else torch.zeros_like(of.mean)
    guesses, nothing = found - shift, torch.zeros_like(of.mean)
    own = best_correlations(of.images - shift, guesses, nothing)
    null = best_correlations(of.unseen - of.mean, guesses, nothing)
    trainings = seconds / of.seconds
    return (
        f"| {row:22s} | {len(found):3d} | {residual:.4f} | {oracle:.3f} | "
        f"{counts(own)} | {float(own.median()):.2f} | {percentages(null)} | "
        f"{spread:4s} | {seconds:4.0f} s ({trainings:.0f}) |"
    )


def _features(options: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in options.items() if k == "sharpness"}


def table(path: str, seed: int, rows: list[str]) -> Iterator[str]:
    """Yield the lines of the table, as they are measured."""
    made: dict[bool, Victim] = {}
    for row in rows:
        natural = ROWS[row][2]
        if natural not in made:
            made[natural] = victim(path, seed, natural=natural)
        of = made[natural]
        if row == rows[0]:
            numbers = sum(t.numel() for t in of.problem.observed.values())
            unknowns = of.images.numel()
            yield (
                f"{len(of.images)} images, p/(nd) = {numbers / unknowns:.1f}, trained "
                f"in {of.seconds:.1f} s"
            )
            yield (
                "| row | candidates | residual | oracle | NCC > .9 / .8 / .7 of 20 | "
                "median | null in % | spread | time (trainings) |"
            )
            yield "|---|---|---|---|---|---|---|---|---|"
        yield line(of, row, natural=natural)


def main() -> None:
    arguments = rows_asked(__doc__, ROWS)
    for text in table(arguments.mnist, arguments.seed, arguments.row):
        print(text, flush=True)


if __name__ == "__main__":
    main()
