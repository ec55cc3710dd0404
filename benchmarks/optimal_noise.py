"""Matrix-optimal noise against Optimal Gradient Noise against isotropic noise.

    python benchmarks/optimal_noise.py --data faces
    python benchmarks/optimal_noise.py --data cifar10 --path FOLDER_OR_NPZ
    python benchmarks/optimal_noise.py --data cifar10 --path … --pixels 16 --draws 8

At equal private U2: every noise is designed on public examples and then scaled until
E[g' S g] over held-out examples, which entered neither the design nor the prior, is
that of isotropic noise. Beside the exact Bayesian Cramér-Rao bound stands the error of
the strongest attack, which knows S and the prior. One line per seed and strength, then
the medians of the ratios. For equal trained accuracy run `exhume compare` with
benchmarks/optimal_noise_trained.toml. At 3 x 32 x 32 pixels two draws, which are all
that is affordable, leave the bound a standard error of its own size; averaged to
3 x 16 x 16 pixels the same photographs allow eight.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch

import exhume
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.matrix_optimal_noise import MatrixOptimalNoise
from exhume.defenses.optimal_gradient_noise import OptimalGradientNoise
from exhume.problem.mechanism import Mechanism
from exhume.problem.tree import Tree, flatten
from exhume.problem.world import World
from exhume.runs.records import TrialSpec
from exhume.trials.one_step import noise_along
from exhume.trials.world import make_world

DESIGNS = {
    "isotropic": lambda std: GaussianNoise(std=std),
    "OGN": lambda std: OptimalGradientNoise(std=std),
    "matrix, trace": lambda std: MatrixOptimalNoise(std=std, objective="trace"),
    "matrix": lambda std: MatrixOptimalNoise(std=std),
}
MODEL = {"name": "lenet-zhu", "activation": "tanh", "weight_range": 0.15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="faces", choices=["faces", "cifar10"])
    parser.add_argument("--path", help="of the CIFAR-10 files")
    parser.add_argument("--pixels", type=int, default=32, help="side of CIFAR-10")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--std", type=float, nargs="+", default=[3e-3, 3e-2, 3e-1])
    parser.add_argument("--draws", type=int, default=2, help="of the bound")
    parser.add_argument("--attack-seeds", type=int, default=5)
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        world, held_out = setting(source(options), seed)
        for std in options.std:
            for name, make in DESIGNS.items():
                row = evaluate(world, held_out, name, make, std, seed, options)
                rows.append(row)
                print(json.dumps(row), flush=True)
                if options.json:
                    Path(options.json).write_text(json.dumps(rows, indent=1))
    summarise(rows)


def source(options: argparse.Namespace) -> dict[str, object]:
    """Return the options of the data set, whose images may be shrunk before."""
    if options.data == "faces":
        return {"name": "faces"}
    full = {"name": "cifar10", "path": options.path, "limit": 400}
    if options.pixels == 32:
        return full
    batch = exhume.dataset(**full).load()
    small = torch.nn.functional.interpolate(
        batch.inputs, (options.pixels, options.pixels), mode="area"
    )
    path = Path(tempfile.mkdtemp()) / "small.npz"
    np.savez(path, inputs=small.numpy(), targets=batch.targets.numpy())
    return {"name": "npz", "path": str(path)}


def setting(data: dict[str, object], seed: int) -> tuple[World, list[Tree]]:
    """Return a world whose public part is cut, and gradients of the rest of it."""
    spec = TrialSpec(
        data=data, model=MODEL, seed=seed, prior={"name": "gaussian"}, classes=10
    )
    world = make_world(spec)
    assert world.public is not None
    count = len(world.public)
    rest = [i for i in range(count) if i % 3 == 2]
    design = world.public.select([i for i in range(count) if i % 3 != 2])
    density = exhume.prior("gaussian").fit(design, world.task)
    gradients = [one_gradient(world, index) for index in rest]
    return replace(world, public=design, prior=density), gradients


def one_gradient(world: World, index: int) -> Tree:
    one = world.public.select([index])
    gradient = world.task.gradient(one.inputs.to(world.task.dtype), one.targets)
    return {name: t.double() for name, t in gradient.items()}


def evaluate(world, gradients, name, make, std, seed, options) -> dict:
    defense = make(std)
    design = Mechanism(world.mechanism.observation, (defense,))
    law = design.law(design.calibrate(world.task, world.public, 0))
    target = std**2 * fmean(float(flatten(g).square().sum()) for g in gradients)
    ratio = fmean(noise_along(g, law) for g in gradients) / target
    scaled = replace(defense, std=std / ratio**0.5)
    defended = replace(
        world, mechanism=Mechanism(world.mechanism.observation, (scaled,))
    )
    bound = exhume.bound("bayesian-cramer-rao", draws=options.draws)(defended)
    errors = []
    for name_of_attack in ("gauss-newton", "prior-mean"):
        if seed >= options.attack_seeds:
            break
        problem = exhume.ThreatModel("labels-known").reveal(
            defended, defended.observe()
        )
        extra = {"iterations": 20} if name_of_attack == "gauss-newton" else {}
        guess = exhume.attack(name_of_attack, **extra)(problem, key=0)
        truth = world.batch.inputs.double()
        errors.append(float((guess.inputs.double() - truth).square().sum()))
    return {
        "seed": seed,
        "std": std,
        "noise": name,
        "public_to_private_u2": round(ratio, 4),
        "bound": bound.total,
        "standard_error": bound.standard_error,
        "prior": bound.details["prior_variance"],
        "attack": min(errors) if errors else None,
    }


def summarise(rows: list[dict]) -> None:
    print("\nsquared error over the image at equal private U2, medians over seeds")
    print(
        "std      noise          bound    of isotropic   of OGN   attack   of isotropic"
    )
    for std in sorted({row["std"] for row in rows}):
        for name in DESIGNS:
            own = {r["seed"]: r for r in rows if r["std"] == std and r["noise"] == name}
            if not own:
                continue

            def ratio(other: str, field: str, own=own, std=std) -> float:
                pairs = [
                    own[r["seed"]][field] / r[field]
                    for r in rows
                    if r["std"] == std
                    and r["noise"] == other
                    and r["seed"] in own
                    and r[field]
                ]
                return median(pairs) if pairs else float("nan")

            bounds = median(r["bound"] for r in own.values())
            attacks = [r["attack"] for r in own.values() if r["attack"] is not None]
            attack = median(attacks) if attacks else float("nan")
            level, over = ratio("isotropic", "bound"), ratio("OGN", "bound")
            print(
                f"{std:<8g} {name:14s} {bounds:<8.4g} {level:<13.2f} {over:<8.2f} "
                f"{attack:<7.4g} {ratio('isotropic', 'attack'):.2f}"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
