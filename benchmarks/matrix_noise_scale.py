"""Matrix-optimal noise for large networks: time, peak memory, and what it wins.

    python benchmarks/matrix_noise_scale.py                        # 13 thousand to 1e6
    python benchmarks/matrix_noise_scale.py --hidden 1000,950 --form low-rank

Multilayer perceptrons on the digits, one process per line, so that the peak of memory
is that of one calibration. The gains are how many times the bound of isotropic noise
at equal cost E[gᵀ S g], on public examples that the design has not seen, along the
principal directions of the others: of the trace bound, 1/tr E[Jᵀ S⁻¹ J], and of the
Bayesian Cramér-Rao bound, tr (E[Jᵀ S⁻¹ J] + J_P)⁻¹. The design maximises the one that
--objective names.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from exhume.defenses._blocks import inner
from exhume.defenses._matrix_design import average_information
from exhume.defenses._principal_directions import principal_directions, tangents
from exhume.defenses.matrix_optimal_noise import MatrixOptimalNoise
from exhume.problem.law import Law
from exhume.problem.tree import flatten, size
from exhume.runs.records import TrialSpec
from exhume.trials.one_step import noise_along
from exhume.trials.world import make_world

SIZES = ("180", "300,250", "1000,950")
FORMS = ("low-rank", "kronecker")
STD = 0.01
HELD_OUT = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", nargs="+", default=SIZES)
    parser.add_argument("--form", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--objective", default="bayesian")
    parser.add_argument("--one", action="store_true", help="here, not in a process")
    options = parser.parse_args()
    if options.one:
        measure(options.hidden[0], options.form[0], options.objective)
        return
    print(f"{'':46s}gain of the bound: trace    Bayesian")
    print("parameters  form        seconds  peak MB  before", flush=True)
    for hidden in options.hidden:
        for form in options.form:
            extra = ["--hidden", hidden, "--form", form]
            extra += ["--objective", options.objective, "--one"]
            subprocess.run([sys.executable, __file__, *extra], check=True)


def measure(hidden: str, form: Any, objective: Any) -> None:
    """Calibrate once and print one line."""
    layers = [int(width) for width in hidden.split(",")]
    model = {"name": "mlp", "hidden": layers, "activation": "tanh"}
    world = make_world(TrialSpec(data={"name": "digits"}, model=model, seed=0))
    task, public = world.task, world.public
    assert public is not None
    count = len(public)
    held_out = [public.select([i]) for i in range(count - HELD_OUT, count)]
    design = public.select(range(count - HELD_OUT))
    before, start = peak(), time.perf_counter()
    noise = MatrixOptimalNoise(std=STD, form=form, objective=objective)
    plan = noise.calibrate(task, design, 0)
    seconds, after = time.perf_counter() - start, peak()
    law = noise.push(Law(), plan, None)
    covariance = noise.covariance(plan)
    shapes = {name: task.parameters()[name].detach() for name in plan.covers}
    gradients = [task.gradient(b.inputs.to(task.dtype), b.targets) for b in held_out]
    power = fmean(float(flatten(g).double().square().sum()) for g in gradients)
    cost = fmean(noise_along(g, law) for g in gradients) / (STD**2 * power)
    axes, prior = principal_directions(design, noise.directions)
    seen = tangents(task, held_out, axes, plan.covers)
    told = average_information(seen, covariance, shapes) * cost
    isotropic = torch.stack([inner(piece, piece) for piece in seen]).mean(dim=0)
    isotropic /= STD**2
    trace = float(isotropic.trace() / told.trace())
    bayesian = bound(told, prior) / bound(isotropic, prior)
    print(
        f"{size(shapes):<11d} {form:11s} {seconds:<8.0f} {after:<8.0f} {before:<25.0f} "
        f"{trace:<8.2f} {bayesian:.2f}",
        flush=True,
    )


def bound(information: Tensor, prior: Tensor) -> float:
    return float(torch.linalg.inv(information + torch.diag(1 / prior)).trace())


def peak() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
