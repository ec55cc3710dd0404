"""The tensor attack against its theory: accuracy, noise, batch size, and size.

    python benchmarks/tensor_attack.py            # the tables of the paper's setting
    python benchmarks/tensor_attack.py --slopes   # the exponent in m, 2000 to 128 000
    python benchmarks/tensor_attack.py --large    # m = 10^6, d = 1000, B = 4
    python benchmarks/tensor_attack.py --faces    # faces from a softmax network

Squared error ‖x̂ − x‖² averaged over the batch, best order and sign, unit inputs. The
large run keeps weights and gradient in files of 4 GB each and needs that space in the
folder of temporary files; its time is a multiple of one product W V over the same file.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import tempfile
import time
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

import exhume
from exhume.attacks.two_layer.activation import ACTIVATIONS
from exhume.attacks.two_layer.recovery import (
    SubspaceKind,
    TwoLayerView,
    recover_inputs,
)
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.theory.collect import LOCAL
from exhume.theory.slopes import fit_slope


class FileRows:
    """Rows of a matrix in a file, read block by block."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path, self.shape = path, shape

    def __getitem__(self, rows: slice, /) -> torch.Tensor:
        count = rows.stop - rows.start
        offset = rows.start * self.shape[1] * 4
        flat = np.fromfile(self.path, np.float32, count * self.shape[1], offset=offset)
        return torch.from_numpy(flat.reshape(count, self.shape[1]))


def setting(name, m, d, batch, seed, *, bias, random=False, output=False):
    """The paper's network, f(x) = Σ σ(w_j·x) / m, and the gradient of its batch."""
    source = generator(seed, "tensor-benchmark")
    weight = torch.randn(m, d, generator=source)
    inputs = torch.eye(d)[:batch]
    if random:
        inputs = torch.randn(batch, d, generator=source)
        inputs /= inputs.norm(dim=1, keepdim=True)
    sigma = ACTIVATIONS[name]
    z = weight @ inputs.T
    residual = sigma.value(z).mean(0) - torch.tensor([1.0, -1.0] * batch)[:batch] + bias
    hidden = (sigma.slope(z) * residual) @ inputs / m
    given = (sigma.value(z) @ residual)[None]
    heads = torch.full((1, m), 1 / m)
    one = TwoLayerView(
        weight, heads, name, None if output else hidden, given if output else None
    )
    return one, inputs


def squared_error(found, inputs) -> float:
    """Return the mean squared distance over the best order and signs."""
    overlap = found.directions @ inputs.T.double()
    rows, order = linear_sum_assignment(-overlap.abs().numpy())
    side = overlap[rows, order].sign().unsqueeze(1)
    gap = side * found.directions[rows] - inputs[order].double()
    return float(gap.square().sum(dim=1).mean())


def tables(seeds: int) -> None:
    """Print accuracy at m = 5000, over the batch size, and under noise."""
    cases: tuple[tuple[str, str, SubspaceKind], ...] = (
        ("quadratic-cubic", "output", "moments"),
        ("quadratic-cubic", "hidden", "moments"),
        ("quadratic-cubic", "hidden", "svd"),
        ("tanh", "hidden", "moments"),
        ("tanh", "hidden", "svd"),
        ("sigmoid", "hidden", "svd"),
        ("relu", "hidden", "svd"),
    )
    print(f"squared error, m = 5000, B = 2, bias 30, median of {seeds} seeds")
    for name, released, subspace in cases:
        row = []
        for d in (50, 100, 200, 300):
            found = []
            for seed in range(seeds):
                one, inputs = setting(
                    name, 5000, d, 2, seed, bias=30, output=released == "output"
                )
                result = recover_inputs(one, 2, norm=1.0, subspace=subspace, key=seed)
                found.append(squared_error(result, inputs))
            row.append(f"d = {d}: {median(found):.5f}")
        print(f"  {name} from {released}, {subspace}: " + "  ".join(row), flush=True)
    print("root of the squared error, m = 20000, d = 60, random inputs, bias 2")
    for name, polish in itertools.product(("tanh", "quadratic-cubic"), (0, 50)):
        row = []
        for batch in range(1, 7):
            found = []
            for seed in range(3):
                one, inputs = setting(
                    name, 20_000, 60, batch, seed, bias=2, random=True
                )
                result = recover_inputs(one, batch, norm=1.0, polish=polish, key=seed)
                found.append(squared_error(result, inputs) ** 0.5)
            row.append(f"B = {batch}: {median(found):.2g}")
        how = "polished" if polish else "theorem"
        print(f"  {name}, {how}: " + "  ".join(row), flush=True)
    print("x² + x³, d = 50, m = 20000, B = 2, noise τ on m ∂L/∂W: root of the error")
    for level in (0, 10, 30, 100, 300, 1000):
        row = []
        kinds_wanted: tuple[SubspaceKind, ...] = ("svd", "moments", "auto")
        for subspace in kinds_wanted:
            found, kinds = [], []
            for seed in range(4):
                one, inputs = setting("quadratic-cubic", 20_000, 50, 2, seed, bias=30)
                noise = torch.randn(20_000, 50, generator=generator(seed, "noise"))
                assert one.hidden_gradient is not None
                noisy = TwoLayerView(
                    one.weight,
                    one.output,
                    one.activation,
                    one.hidden_gradient[:] + level / 20_000 * noise,
                )
                result = recover_inputs(noisy, 2, norm=1.0, subspace=subspace, key=seed)
                kinds.append(result.subspace.kind)
                found.append(squared_error(result, inputs) ** 0.5)
            chosen = f" ({', '.join(sorted(set(kinds)))})" if subspace == "auto" else ""
            row.append(f"{subspace} {median(found):.3f}{chosen}")
        print(f"  τ = {level}: " + "  ".join(row), flush=True)


#: activation, gradient, subspace, bias of the last layer (the paper's 30 hides labels)
SLOPES: tuple[tuple[str, str, SubspaceKind, float], ...] = (
    ("quadratic-cubic", "output", "moments", 2.0),
    ("quadratic-cubic", "hidden", "moments", 2.0),
    ("tanh", "hidden", "svd", 30.0),
    ("sigmoid", "hidden", "svd", 30.0),
)
WIDTHS = (2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000)


def slopes(seeds: int) -> None:
    """Print the exponent of the error in the width, with its 95 % interval."""
    print(
        f"root of the squared error over the width m, d = 50, B = 2, {seeds} seeds; "
        f"demanded: -0.5 ± 0.1"
    )
    for name, released, subspace, bias in SLOPES:
        found: dict[int, list[float]] = {}
        for seed, m in itertools.product(range(seeds), WIDTHS):
            one, inputs = setting(
                name, m, 50, 2, seed, bias=bias, output=released == "output"
            )
            result = recover_inputs(one, 2, norm=1.0, subspace=subspace, key=seed)
            found.setdefault(seed, []).append(squared_error(result, inputs) ** 0.5)
        means = [geometric_mean(e) for e in zip(*found.values(), strict=True)]
        # Errors near that of a guess level off, and have no exponent.
        local = [i for i, mean in enumerate(means) if mean <= LOCAL]
        fitted = fit_slope(
            {s: [(WIDTHS[i], errors[i]) for i in local] for s, errors in found.items()}
        )
        kept = "meets" if abs(fitted.value + 0.5) <= 0.1 else "misses"
        print(
            f"  {name} from {'g' if released == 'output' else 'G'}, {subspace}: "
            f"slope in m: {fitted.value:.2f} ± {fitted.half_width:.2f}, {kept} the "
            f"demand; from {WIDTHS[local[0]]} on, error {means[local[0]]:.4f} to "
            f"{means[-1]:.4f}",
            flush=True,
        )


def large(width: int, dimension: int) -> None:
    """Print the time of the attack over that of one product, and the peak memory."""
    batch, sigma = 4, ACTIVATIONS["tanh"]
    inputs = torch.randn(batch, dimension, generator=generator(0, "inputs"))
    inputs /= inputs.norm(dim=1, keepdim=True)
    residual = torch.tensor([1.0, 3.0, 2.0, 1.5])
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("weight", "gradient")]
        with paths[0].open("wb") as first, paths[1].open("wb") as second:
            for start in range(0, width, 10_000):
                source = generator(start, "rows")
                rows = torch.randn(10_000, dimension, generator=source)
                rows.numpy().tofile(first)
                slope = sigma.slope(rows @ inputs.T) * residual
                (slope @ inputs / width).numpy().tofile(second)
        weight, gradient = (FileRows(p, (width, dimension)) for p in paths)
        view = TwoLayerView(weight, torch.full((1, width), 1 / width), "tanh", gradient)
        view.times(weight, inputs.T.contiguous())  # fills the cache of the file system
        started = time.process_time(), time.perf_counter()
        view.times(weight, inputs.T.contiguous())
        unit = time.process_time() - started[0], time.perf_counter() - started[1]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started = time.process_time(), time.perf_counter()
        found = recover_inputs(view, batch, norm=1.0)
        spent = time.process_time() - started[0], time.perf_counter() - started[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"m = {width}, d = {dimension}, B = {batch}: one pass W V {unit[0]:.1f} s CPU "
        f"({unit[1]:.1f} s wall), the attack {spent[0]:.1f} s ({spent[1]:.1f} s), "
        f"{spent[0] / unit[0]:.1f} times; peak {peak:.0f} MB ({before:.0f} before); "
        f"root of the squared error {squared_error(found, inputs) ** 0.5:.2g}"
    )


def faces() -> None:
    """Print PSNR and SSIM of faces from one gradient of a softmax network."""
    images = exhume.dataset("faces").load()
    for width, polish in itertools.product((20_000, 100_000), (0, 50)):
        batch = images.select([3, 40])
        batch = exhume.Batch(batch.inputs, torch.tensor([1, 7]), batch.spec)
        net = exhume.model("two-layer", width=width, activation="tanh").build(
            batch.spec, 10, 0
        )
        world = exhume.World(
            exhume.Task(net), batch, exhume.Mechanism(Gradient(), ()), None, None
        )
        problem = exhume.ThreatModel("parameter-aware").reveal(world, world.observe())
        started = time.process_time()
        guess = exhume.attack("tensor", polish=polish)(problem, key=0)
        spent = time.process_time() - started
        print(
            f"two faces, m = {width}, polish = {polish}: {spent:.1f} s CPU, "
            f"{exhume.score(guess, batch).summary()}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="The tensor attack, measured.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--slopes", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--width", type=int, default=1_000_000, help="of --large")
    parser.add_argument("--dimension", type=int, default=1000, help="of --large")
    parser.add_argument("--faces", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.large:
        large(options.width, options.dimension)
    elif options.faces:
        faces()
    elif options.slopes:
        slopes(options.seeds)
    else:
        tables(options.seeds)


if __name__ == "__main__":
    main()
