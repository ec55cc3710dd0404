"""What does gauss-newton buy over the attack everyone uses? CPU time and PSNR, one run.

    python benchmarks/against_inverting_gradients.py
    python benchmarks/against_inverting_gradients.py --iterations 2000 --photos 2

One 32×32 crop of a photograph at a time, LeNet (Zhu et al. 2019) with weights uniform
in ±0.5, labels known, no defense, float32 release. Inverting Gradients runs its
published budget of 24,000 iterations with two weights of total variation: the published
one, which over-smooths here, and a small one. Costs are ratios to one training gradient
of the same model, measured in the same process.
"""

from __future__ import annotations

import argparse
import time

import torch

import exhume
from exhume.keys import fold
from exhume.observations.gradient import Gradient
from exhume.trials.world import split


def training_gradient_seconds(task: exhume.Task, batch: exhume.Batch) -> float:
    """Return the CPU seconds of one gradient with respect to the weights."""
    for _ in range(20):
        task.gradient(batch.inputs, batch.targets)
    begun = time.process_time()
    for _ in range(200):
        task.gradient(batch.inputs, batch.targets)
    return (time.process_time() - begun) / 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--iterations", type=int, default=24_000)
    parser.add_argument("--photos", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = exhume.dataset("photos")
    data = source.load()
    attacks = {
        "gauss-newton": exhume.attack("gauss-newton"),
        "inverting-gradients, published": exhume.attack(
            "inverting-gradients", iterations=arguments.iterations
        ),
        "inverting-gradients, TV 1e-4": exhume.attack(
            "inverting-gradients", iterations=arguments.iterations, total_variation=1e-4
        ),
    }
    print("photo  attack                          PSNR dB  CPU s  training gradients")
    for seed in range(arguments.photos):
        private, public = split(data, source, 1, fold(seed, "split"))
        net = exhume.model("lenet-zhu").build(private.spec, 10, fold(seed, "weights"))
        task = exhume.Task(net)
        world = exhume.World(task, private, exhume.Mechanism(Gradient()), public)
        problem = exhume.ThreatModel("labels-known").reveal(world, world.observe(0))
        unit = training_gradient_seconds(task, private)
        for name, attack in attacks.items():
            answer = attack(problem, seed)
            (psnr,) = exhume.score(answer, private)["psnr"]
            seconds = answer.cost.cpu_seconds
            print(
                f"{seed:5d}  {name:30s}  {psnr:7.1f}  {seconds:5.1f}"
                f"  {seconds / unit:18,.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
