"""Noiseless faces: how exactly does gauss-newton read one back, and how fast?

    python benchmarks/recover_faces.py             # ten single faces, then batches of 4
    python benchmarks/recover_faces.py --quick     # three single faces

LeNet (Zhu et al. 2019) with weights uniform in ±0.5, one 25×25 face of the LFW subset
that ships with scikit-image, labels known, no defense, float64. The acceptance line is
at least 60 dB for at least 8 of 10 faces within 30 CPU seconds each.
"""

from __future__ import annotations

import argparse

import torch

import exhume
from exhume.keys import fold
from exhume.observations.gradient import Gradient
from exhume.trials.world import split

CLASSES = 10


def face_world(seed: int, size: int, *, distinct: bool) -> exhume.World:
    """Return a world with `size` private faces, labels distinct or all alike."""
    source = exhume.dataset("faces")
    private, public = split(source.load(), source, size, fold(seed, "split"))
    labels = torch.arange(size) if distinct else torch.ones(size, dtype=torch.int64)
    spec = private.spec
    batch = exhume.Batch(private.inputs.double(), labels, spec)
    net = exhume.model("lenet-zhu").build(spec, CLASSES, fold(seed, "weights"))
    task = exhume.Task(net).to(torch.float64)
    return exhume.World(
        task, batch, exhume.Mechanism(Gradient()), public.to(torch.float64)
    )


def attack_once(world: exhume.World, **options: object) -> tuple[list[float], object]:
    """Attack one observation; return the PSNR per face in dB, and the answer."""
    problem = exhume.ThreatModel("labels-known").reveal(world, world.observe(0))
    answer = exhume.attack("gauss-newton", **options)(problem, 0)
    return list(exhume.score(answer, world.batch)["psnr"]), answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="three single faces only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = 3 if arguments.quick else 10
    print("seed  PSNR dB  CPU s  evaluations  outcome")
    good = 0
    for seed in range(count):
        (psnr,), answer = attack_once(face_world(seed, 1, distinct=True))
        good += psnr >= 60 and answer.cost.cpu_seconds <= 30
        print(
            f"{seed:4d}  {psnr:7.1f}  {answer.cost.cpu_seconds:5.1f}  "
            f"{answer.cost.evaluations:11d}  {answer.outcome.name}"
        )
    print(f"B = 1: {good} of {count} faces at ≥ 60 dB within 30 CPU seconds")
    if arguments.quick:
        return
    for distinct in (True, False):
        for seed in range(3):
            psnr, answer = attack_once(
                face_world(seed, 4, distinct=distinct), seconds=70.0, evaluations=10**9
            )
            values = ", ".join(f"{v:.1f}" for v in psnr)
            print(
                f"B = 4, {'distinct' if distinct else 'equal'} labels, seed {seed}: "
                f"{values} dB after {answer.cost.cpu_seconds:.0f} CPU s, "
                f"{answer.outcome.name}"
            )


if __name__ == "__main__":
    main()
