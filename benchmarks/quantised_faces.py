"""Faces behind quantised gradients: what each attack still recovers.

    python benchmarks/quantised_faces.py             # five faces, minutes
    python benchmarks/quantised_faces.py --faces 1   # one face

LeNet (Zhu et al. 2019), one 25×25 face of the LFW subset of scikit-image, labels known,
float64. Attacks know the defense. `prior-mean` and `nearest-public` have not looked.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

import torch

import exhume
from exhume.observations.gradient import Gradient
from recover_faces import face_world

KINDS = (
    {"kind": "int8"},
    {"kind": "stochastic", "bits": 8},
    {"kind": "stochastic", "bits": 4},
    {"kind": "stochastic", "bits": 2},
    {"kind": "sign"},
    {"kind": "sign", "scale": "one"},
)
#: name → options, and whether a Gaussian prior fitted to public faces is given
ATTACKS = (
    ("gauss-newton", {"evaluations": 8000}, True),
    ("gauss-newton", {"evaluations": 8000}, False),
    ("inverting-gradients", {"iterations": 2000}, False),
    ("dlg", {"iterations": 50}, False),
    ("prior-mean", {}, True),
    ("nearest-public", {}, True),
)


def recovered(
    quantised: dict, name: str, options: dict, seed: int, *, with_prior: bool
) -> float:
    """Return the PSNR in dB of one face."""
    world = face_world(seed, 1, distinct=True)
    defense = exhume.defense("quantisation", **quantised)
    prior = exhume.prior("gaussian").fit(world.public, world.task)
    world = replace(
        world,
        mechanism=exhume.Mechanism(Gradient(), (defense,)),
        prior=prior if with_prior else None,
    )
    problem = exhume.ThreatModel("labels-known").reveal(world, world.observe(seed))
    answer = exhume.attack(name, **options)(problem, seed)
    return float(exhume.score(answer, world.batch)["psnr"][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--faces", type=int, default=5)
    count = parser.parse_args().faces
    torch.set_num_threads(1)
    for quantised in KINDS:
        print(", ".join(f"{k} = {v}" for k, v in quantised.items()))
        for name, options, with_prior in ATTACKS:
            values = [
                recovered(quantised, name, options, seed, with_prior=with_prior)
                for seed in range(count)
            ]
            shown = ", ".join(f"{v:.1f}" for v in values)
            prior = "with prior" if with_prior else "no prior"
            middle = statistics.median(values)
            print(f"  {name:20s} {prior:10s} median {middle:5.1f} dB  ({shown})")


if __name__ == "__main__":
    main()
