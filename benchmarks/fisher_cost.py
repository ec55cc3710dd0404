"""What bounds cost: a sketched trace in training gradients, an exact bound in seconds.

    python benchmarks/fisher_cost.py            # all networks, then the exact bound
    python benchmarks/fisher_cost.py --trials 5 --no-exact
    python benchmarks/fisher_cost.py --exact    # the exact bound alone

One core. The error of a sketch is measured over trials against an exact trace, beside
the error that the sketch states; its cost is divided by the time of one training
gradient of the same network and batch in single precision. "plain" is Hutchinson's
estimator with as many forward derivatives. The exact bound is timed for LeNet (Zhu et
al.) on photographs of 3 x 32 x 32, the prior's fit and the models' loading left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import exhume
from exhume.bounds.fisher import (
    MeanMap,
    fisher_information,
    fisher_trace,
    information_map,
    mean_map,
)
from exhume.bounds.mean_information import InformationSums
from exhume.bounds.regularity import information_map_at
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.law import Law
from exhume.problem.tree import flatten

NETWORKS = (
    ("photos", "lenet-zhu", {}),
    ("photos", "lenet-zhu", {"activation": "tanh", "weight_range": 0.1}),
    ("photos", "lenet-zhu", {"activation": "tanh"}),
    ("photos", "mlp", {"hidden": [64], "activation": "tanh"}),
    ("faces", "lenet-zhu", {}),
    ("faces", "mlp", {"hidden": [32, 32], "activation": "gelu"}),
)
BATCHES = (1, 8, 32)
PROBES = (2, 4, 8)
EXACT_TRACE = 3100  # unknowns up to which the reference trace is exact


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Return the median CPU time of a call."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return sorted(times)[repeats // 2]


def plain_error(mean: MeanMap, x: torch.Tensor, trials: int, probes: int) -> list:
    """Return Hutchinson's estimates with as many forward derivatives."""
    found = []
    for key in range(trials):
        draw = torch.randint(0, 2, (probes + 1, *x.shape), generator=generator(key))
        images = torch.func.vmap(
            lambda u: flatten(torch.func.jvp(mean, (x,), (u,))[1]).square().sum()
        )(2 * draw.to(x) - 1)
        found.append(float(images.mean()))
    return found


def relative(estimates: list, truth: float) -> float:
    """Return the root-mean-square relative error."""
    return float((torch.tensor(estimates) / truth - 1).square().mean().sqrt())


def sketches(data: str, name: str, options: dict, trials: int) -> None:
    """Print error and cost of the sketch for one network and several batches."""
    batch = exhume.dataset(data).load()
    net = exhume.model(name, **options).build(batch.spec, 10, 0)
    task = exhume.Task(net)
    for size in BATCHES:
        x, y = batch.inputs[5 : 5 + size], batch.targets[5 : 5 + size]
        mean, double = mean_map(task, Gradient(), Law(), y, mixed=True), x.double()
        if x.numel() <= EXACT_TRACE:
            truth = float(fisher_information(mean, None, double).trace())
        else:
            truth = fisher_trace(mean, None, double, probes=400, key=-1).value
        unit = seconds(lambda x=x, y=y: task.gradient(x, y), 15)
        print(f"{data} {name} {options} B = {size}: one gradient {1e3 * unit:.2f} ms")
        for probes in PROBES:
            found = [
                fisher_trace(mean, None, double, probes=probes, key=key, single=True)
                for key in range(trials)
            ]
            stated = torch.tensor([f.standard_error for f in found]).square().mean()
            plain = relative(plain_error(mean, double, trials, probes), truth)
            cost = seconds(
                lambda m=mean, d=double, k=probes: fisher_trace(
                    m, None, d, probes=k, single=True
                )
            )
            error = relative([f.value for f in found], truth)
            print(
                f"  {probes} probes: error {error:.1%}"
                f" (stated {float(stated.sqrt()) / truth:.1%}, plain {plain:.1%}),"
                f" cost {cost / unit:.1f} gradients, {1e3 * cost:.1f} ms",
                flush=True,
            )


def exact() -> None:
    """Print the time of one information matrix and of whole bounds."""
    batch = exhume.dataset("photos").load()
    task = exhume.Task(exhume.model("lenet-zhu").build(batch.spec, 10, 0))
    prior = exhume.prior("gaussian").fit(batch.select(range(8, len(batch))), task)
    mechanism = exhume.Mechanism(
        Gradient(), (exhume.defense("gaussian-noise", std=1e-2),)
    )
    world = exhume.World(task, batch.select([0]), mechanism, None, prior)
    law = mechanism.law(mechanism.calibrate(task, None, 0))
    x = prior.sample(1, 0).double()
    mean = information_map(mean_map(task, Gradient(), law, batch.targets[:1]), law, x)
    start = time.process_time()
    information = fisher_information(mean, None, x)
    print(
        f"information of {x.numel()} unknowns in "
        f"{sum(p.numel() for p in task.parameters().values())} parameters: "
        f"{time.process_time() - start:.1f} s, trace {float(information.trace()):.4g}"
    )
    for draws in (2, 8):
        start = time.process_time()
        bound = exhume.bound("bayesian-cramer-rao", draws=draws)(world)
        spent = time.process_time() - start
        print(
            f"bayesian-cramer-rao, {draws} draws: {spent:.1f} s, "
            f"{bound.mse:.4g} ± {bound.mse_standard_error:.1g}",
            flush=True,
        )
    rounding(world, prior)


def rounding(world: exhume.World, prior: GaussianDensity) -> None:
    """Print how far float32 moves the bound of two draws, and what its check says."""
    draws = [prior.sample(1, key).double() for key in range(2)]
    at = information_map_at(world, draws, 0)
    assert not isinstance(at, exhume.NotApplicable)
    sums = [
        InformationSums(prior.information(), at, single) for single in (True, False)
    ]
    for one in sums:
        one.add(draws)
    single, double = (one.inverse(0) for one in sums)
    moved = float(single.diagonal.sum() / double.diagonal.sum()) - 1
    print(
        f"float32 moves the bound of two draws by {abs(moved):.1g} of it; its check "
        f"allows for {single.rounding:.1g}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--trials", type=int, default=20, help="sketches per row")
    parser.add_argument("--no-exact", action="store_true", help="sketches alone")
    parser.add_argument("--exact", action="store_true", help="the exact bound alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.no_exact:
        exact()
    if arguments.exact:
        return
    for data, name, options in NETWORKS:
        sketches(data, name, options, arguments.trials)


if __name__ == "__main__":
    main()
