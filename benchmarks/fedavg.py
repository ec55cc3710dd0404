"""Updates of several local steps: what each attack reads from the same clients.

    python benchmarks/fedavg.py MNIST_FOLDER                           # all, hours
    python benchmarks/fedavg.py MNIST_FOLDER --epochs 20 --seeds 0 --attacks surrogate
    python benchmarks/fedavg.py MNIST_FOLDER --clients adam decay --epochs 5

Ten MNIST images (pooled to 14 × 14), batches of five, a ReLU net (5 × 5 convolutions
with 16 and 32 channels and stride 2, two dense layers), labels known. PSNR in dB, mean
over the images after optimal assignment; CPU seconds, and how many trainings of the
victim they are. `objective` is the attack's own at its answer, `truth` at the truth:
where the answer's is larger the attack ended early, where it is smaller the truth does
not explain the update best.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean

import torch
from torch import nn

import exhume
from exhume.keys import generator
from exhume.observations.update import Update
from exhume.problem.observation import Candidate

SPEC = exhume.EventSpec.image(1, 14, 14)
EXAMPLES, PUBLIC = 10, 200
CLIENTS: dict[str, dict] = {
    "sgd": {"rate": 0.05},
    "momentum": {"rate": 0.005, "momentum": 0.9},
    "decay": {"rate": 0.05, "weight_decay": 0.01},
    "adam": {"rate": 0.001, "optimiser": "adam"},
    "adamw": {"rate": 0.001, "optimiser": "adamw", "weight_decay": 0.1},
}
#: name → attack, its options, threat model
ATTACKS: dict[str, tuple[str, dict, str]] = {
    "initial": ("surrogate-model", {"path": "initial"}, "labels-known"),
    "midpoint": ("surrogate-model", {"path": "midpoint"}, "labels-known"),
    "surrogate": ("surrogate-model", {}, "labels-known"),
    "bezier": ("surrogate-model", {"path": "bezier"}, "labels-known"),
    "epochs": ("fedavg-epochs", {}, "labels-known"),
    "unrolled": ("unrolled", {}, "labels-known"),
    "unrolled-guess": ("unrolled", {"exchanges": 0}, "labels-known"),
    "unrolled-rate": ("unrolled", {}, "rate-unknown"),
    "unrolled-order": ("unrolled", {}, "order-known"),
}


def network(key: int) -> nn.Module:
    """Return the victim's network, uniform weights of PyTorch's default width."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    local = generator(key, "weights")
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                width = (layer.weight.numel() / len(layer.weight)) ** -0.5
                for p in layer.parameters():
                    p.uniform_(-width, width, generator=local)
    return model


def fedavg_world(data: exhume.Batch, seed: int, update: Update) -> exhume.World:
    """Return a client with ten images, and public ones that are not among them."""
    order = torch.randperm(len(data), generator=generator(seed, "pick"))
    own, public = order[:EXAMPLES], order[EXAMPLES : EXAMPLES + PUBLIC]
    return exhume.World(
        exhume.Task(network(seed)),
        exhume.Batch(data.inputs[own], data.targets[own], SPEC),
        exhume.Mechanism(update),
        exhume.Batch(data.inputs[public], data.targets[public], SPEC),
    )


def training_seconds(world: exhume.World, repeats: int = 5) -> float:
    """Return the CPU seconds of the victim's own training."""
    own = Candidate(world.batch.inputs, world.batch.targets)
    begin = time.process_time()
    for _ in range(repeats):
        world.mechanism.observation.forward(world.task, own)
    return (time.process_time() - begin) / repeats


def run(world: exhume.World, name: str) -> tuple[float, float, str]:
    """Attack once; return PSNR, CPU seconds, and the objectives."""
    attack_name, options, threat = ATTACKS[name]
    problem = exhume.ThreatModel(threat).reveal(world, world.observe(0))
    attack = exhume.attack(attack_name, **options)
    answer = attack(problem, 0)
    truth = attack.objective(problem, world.batch.inputs, world.batch.targets)
    psnr = mean(v or 0.0 for v in exhume.score(answer, world.batch)["psnr"])
    objectives = f"{answer.objective:9.5f} {truth:9.5f}"
    note = next((n for n in answer.notes if n.startswith("The step size")), "")
    return psnr, answer.cost.cpu_seconds, f"{objectives}  {note}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Attacks on updates of several local steps, side by side."
    )
    parser.add_argument("data", help="folder with the IDX files of MNIST")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=["sgd"])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    images = exhume.dataset("mnist", path=chosen.data).load()
    pooled = nn.functional.avg_pool2d(images.inputs, 2)
    data = exhume.Batch(pooled, images.targets, SPEC)
    print("client     E  attack          seed  PSNR dB   CPU s  trainings  objective")
    for client in chosen.clients:
        for epochs in chosen.epochs:
            for name in chosen.attacks:
                found = []
                for seed in chosen.seeds:
                    options = {"batch_size": 5, "order_key": seed, **CLIENTS[client]}
                    update = Update(epochs=epochs, **options)
                    world = fedavg_world(data, seed, update)
                    psnr, seconds, rest = run(world, name)
                    ratio = seconds / training_seconds(world)
                    found.append(psnr)
                    print(
                        f"{client:8s} {epochs:3d}  {name:14s} {seed:5d} {psnr:8.1f} "
                        f"{seconds:7.1f} {ratio:10.0f}  {rest}",
                        flush=True,
                    )
                if len(found) > 1:
                    print(
                        f"{client:8s} {epochs:3d}  {name:14s}  mean {mean(found):8.1f}"
                    )


if __name__ == "__main__":
    main()
