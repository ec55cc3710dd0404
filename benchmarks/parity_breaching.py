"""Inverting Gradients beside breaching: same case, same numbers, and the time of both.

    python benchmarks/parity_breaching.py [--venv .venv-breaching] [--repeats 5]

The first run builds a virtual environment with the published breaching package. Both
sides get the same weights, gradient, start and number of iterations, on one thread, in
turn. Compare CPU seconds; wall time suffers from whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exhume.attacks.engine.driver import reconstruct
from exhume.attacks.inverting_gradients import InvertingGradients
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import Problem
from exhume.problem.mechanism import Mechanism
from exhume.problem.prior import Density
from exhume.problem.task import Task
from exhume.problem.threat import ThreatModel
from exhume.problem.world import World

MEAN, STD, WEIGHT = 0.5, 0.25, 0.2
DRIVER = Path(__file__).with_name("breaching_driver.py")
PACKAGES = (
    ("torch==2.13.0",),
    ("--no-deps", "breaching==0.1.2", "torchvision==0.28.0", "lpips", "hydra-core"),
    ("omegaconf<2.4", "antlr4-python3-runtime==4.9.3", "pyyaml", "packaging"),
    ("numpy", "pillow", "scipy", "tqdm"),
)


@dataclass(frozen=True)
class PaddedTotalVariation(Density):
    """breaching's total variation: zeros beyond the right and lower border."""

    name: ClassVar[str] = "padded-total-variation"

    def energy(self, inputs: Tensor) -> Tensor:
        right = F.pad(inputs, (0, 1, 0, 0))[..., 1:] - inputs
        down = F.pad(inputs, (0, 0, 0, 1))[..., 1:, :] - inputs
        return WEIGHT * (right.abs() + down.abs() + 2e-8).mean()


def build_environment(folder: Path) -> Path:
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"building {folder} with breaching 0.1.2 …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for packages in PACKAGES:
            install = [str(python), "-m", "pip", "install", "-q", *packages]
            subprocess.run(install, check=True)
    return python


def make_case(seed: int) -> tuple[World, Tensor]:
    from skimage.data import astronaut
    from skimage.transform import resize

    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2, stride=1),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(768, 10),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    crop = resize(astronaut()[:256, 100:356], (32, 32), anti_aliasing=True)
    photo = torch.tensor(crop.transpose(2, 0, 1), dtype=torch.float32)[None]
    low, high = -MEAN / STD, (1 - MEAN) / STD
    inputs = ((photo - MEAN) / STD).clamp(low, high)
    spec = EventSpec.image(3, 32, 32, low=low, high=high)
    world = World(
        Task(net), Batch(inputs, torch.tensor([3]), spec), Mechanism(Gradient())
    )
    return world, torch.randn(inputs.shape, generator=generator)


def write_case(path: Path, world: World, x0: Tensor) -> None:
    weights = {f"w::{n}": p.detach() for n, p in world.task.parameters().items()}
    gradient = {f"g::{n}": g for n, g in world.observe().values.items()}
    arrays = {
        "x": world.batch.inputs,
        "y": world.batch.targets,
        "x0": x0,
        "mean": torch.full((3,), MEAN),
        "std": torch.full((3,), STD),
        **weights,
        **gradient,
    }
    np.savez(path, **{n: a.numpy() for n, a in arrays.items()})


def run_ours(problem: Problem, truth: Tensor, x0: Tensor, steps: int) -> dict:
    attack = InvertingGradients(iterations=steps, patience=steps)
    design = attack.design(problem)
    objective = replace(design.objective, priors=(PaddedTotalVariation(),))
    design = replace(design, objective=objective)
    wall = time.perf_counter()
    answer = reconstruct(problem, design, 0, inputs=x0)
    wall = time.perf_counter() - wall
    # breaching's last value is at the iterate before the last step; with up to 249
    # iterations every iterate is in the trace, later only the last one is comparable.
    before_last = [p for p in answer.trace if p.iteration == steps - 1]
    return {
        "objective": (before_last or answer.trace[-1:])[0].objective,
        "cpu_seconds": answer.cost.cpu_seconds,
        "wall_seconds": wall,
        "mse": float((STD * (answer.inputs - truth)).square().mean()),
    }


def run_theirs(python: Path, case: Path, steps: int) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [str(python), str(DRIVER), str(case), str(steps)]
    done = subprocess.run(
        command, check=True, env=environment, capture_output=True, text=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def spread(rows: list[dict], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--venv", type=Path, default=Path(".venv-breaching"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200, 1000])
    options = parser.parse_args()
    torch.set_num_threads(1)
    python = build_environment(options.venv)
    world, x0 = make_case(seed=7)
    problem = ThreatModel("labels-known").reveal(world, world.observe())
    run_ours(problem, world.batch.inputs, x0, 5)
    with tempfile.TemporaryDirectory() as folder:
        case = Path(folder) / "case.npz"
        write_case(case, world, x0)
        for steps in options.steps:
            ours, theirs = [], []
            for _ in range(options.repeats):
                ours.append(run_ours(problem, world.batch.inputs, x0, steps))
                theirs.append(run_theirs(python, case, steps))
            pairs = zip(ours, theirs, strict=True)
            ratios = [b["cpu_seconds"] / a["cpu_seconds"] for a, b in pairs]
            print(f"{steps} iterations, LeNet, one 3×32×32 photo, one thread")
            for name in ("objective", "mse"):
                print(f"  {name:9} ours {ours[0][name]:.10g}", end="  ")
                print(f"breaching {theirs[0][name]:.10g}")
            print(f"  CPU s     ours {spread(ours, 'cpu_seconds')}", end="  ")
            print(f"breaching {spread(theirs, 'cpu_seconds')}")
            print(f"  breaching / ours, CPU: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
