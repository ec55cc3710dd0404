"""The layer that reads the examples: their span, and how loud each direction is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exhume.formula import formula
from exhume.problem.event import EventSpec
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = [
    "Entrance",
    "Metric",
    "Span",
    "find_entrance",
    "make_metric",
    "make_span",
    "noise_level",
    "whitening",
]

# Directions count where they stand out this much above the edge of the noise.
_ABOVE_EDGE = 1.1
# Directions this much quieter than the loudest one are below the errors of a training
# that has not quite settled; weight decay removes the noise that would hide them.
_QUIET = 3e-3
# Slopes and lengths below this share of the largest are rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Entrance:
    """The dense layer that reads s ⊙ x + t, all of an example at once.

    Attributes:
        weight: name of W, shape [m, d].
        bias: name of b, or None.
        slope: s, shape [d], nowhere zero.
        shift: t, shape [d].
    """

    weight: str
    bias: str | None
    slope: Tensor
    shift: Tensor


@dataclass(frozen=True, eq=False)
class Span:
    """Directions of the first layer that stand out of its initial noise.

    Attributes:
        basis: orthonormal rows, shape [k, d].
        noise: standard deviation of what counts as noise: of the initial weights, as
            the bulk of singular values shows it, or of what is too quiet.
    """

    basis: Tensor
    noise: float


@dataclass(frozen=True, eq=False)
class Metric:
    """How the misfit of the first layer is measured: ‖diag(ρ) (W̃ − Ŵ) M‖², W̃ = [W b].

    Attributes:
        rows: ρ, one per neuron, shape [m].
        columns: M, shape [d or d + 1, k].
        energy: ‖diag(ρ) W̃ M‖².
    """

    rows: Tensor
    columns: Tensor
    energy: float

    def __call__(self, matrix: Tensor) -> Tensor:
        """Return diag(ρ) A M of a matrix A like W̃."""
        return (self.rows[:, None] * matrix) @ self.columns


def find_entrance(task: Task, spec: EventSpec) -> Entrance | None:
    """Find the first trainable dense layer that reads the example coordinate-wise.

    The test is on values: between the example and the layer there may be a fixed shift
    and scale of each coordinate (a normalisation), and nothing else.
    """
    ramp = torch.linspace(0.1, 1, spec.dimension, dtype=task.dtype, device=task.device)
    probes = torch.stack([torch.zeros_like(ramp), torch.ones_like(ramp), ramp])
    seen: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(_recorder(name, seen))
        for name, module in task.model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            task.predict(probes.reshape(3, *spec.shape), task.parameters())
    finally:
        for handle in handles:
            handle.remove()
    names = {id(p): n for n, p in task.parameters().items()}
    for name, received in seen:
        layer = task.model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if received.shape != probes.shape or id(layer.weight) not in names:
            continue
        shift, slope = received[0], received[1] - received[0]
        straight = torch.allclose(received[2], shift + slope * ramp, atol=1e-5)
        if straight and bool((slope.abs() > _ROUNDING).all()):
            bias = None if layer.bias is None else names.get(id(layer.bias))
            return Entrance(names[id(layer.weight)], bias, slope, shift)
    return None


def _recorder(
    name: str, seen: list[tuple[str, Tensor]]
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append((name, args[0]))

    return hook


@formula(
    r"\hat\tau = \frac{\operatorname{med}(s)}{\sqrt{\max(m, d)\, \mu_\beta}},\qquad"
    r" \int_{(1-\sqrt\beta)^2}^{\mu_\beta}"
    r"\frac{\sqrt{((1+\sqrt\beta)^2 - t)(t - (1-\sqrt\beta)^2)}}{2\pi\beta t}\,dt"
    r" = \tfrac12",
    reference="Gavish and Donoho (IEEE Trans. Inf. Theory 2014), section III.E",
)
def noise_level(singular: Tensor, rows: int, columns: int) -> float:
    """Return the standard deviation τ of white noise whose bulk has this median.

    Args:
        singular: s, singular values of a matrix of noise plus few directions.
        rows: m.
        columns: d.
    """
    ratio = min(rows, columns) / max(rows, columns)
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    t = torch.linspace(low, high, 20_001, dtype=torch.float64)[1:]
    density = ((high - t) * (t - low)).clamp_min(0).sqrt() / t
    mass = density.cumsum(0)
    median = float(t[torch.searchsorted(mass, mass[-1] / 2)])
    return float(singular.median()) / math.sqrt(max(rows, columns) * median)


def make_span(weight: Tensor, examples: int) -> Span | None:
    """Return the directions that training left in W, at most one per example.

    Descent changes W by combinations of the examples only, and what it started from
    spreads evenly over all directions: what stands out is in the span of the examples.

    Args:
        weight: W, shape [m, d].
        examples: n, which bounds the rank.

    Returns:
        the span, or None if nothing stands out.
    """
    singular, right = torch.linalg.svd(weight, full_matrices=False)[1:]
    if not float(singular[0]) > 0:
        return None
    rows, columns = weight.shape
    sides = math.sqrt(rows) + math.sqrt(columns)
    quiet = _QUIET * float(singular[0]) / sides
    noise = max(noise_level(singular, rows, columns), quiet)
    edge = _ABOVE_EDGE * noise * sides
    rank = min(int((singular > edge).sum()), examples)
    return Span(right[:rank], noise) if rank else None


@formula(
    r"M = V_k (S_k^2 + \tau^2 m \bar\rho^2)^{-1/2},\quad"
    r"\operatorname{diag}(\rho) \tilde W = U S V^\top,\quad"
    r"\rho_j = (\lVert \tilde w_j \rVert^2 + \tau^2 d)^{-1/4}",
    reference="definition; generalised least squares for errors of the multipliers",
)
def whitening(matrix: Tensor, rank: int, noise: float) -> tuple[Tensor, Tensor]:
    """Return row weights ρ [m] and columns M [d, k] that make a matrix white.

    What trained weights deviate from a combination of the examples with constant
    multipliers is itself a combination of the examples, neuron by neuron: the error is
    large where the signal is. Plain least squares fits the few strong directions to all
    digits and ignores the weak ones, in which the examples differ.

    Args:
        matrix: W̃ = [W b], shape [m, d].
        rank: k.
        noise: τ ≥ 0.
    """
    lengths = torch.linalg.vector_norm(matrix, dim=1)
    floor = noise**2 * matrix.shape[1] + (_ROUNDING * lengths.max()) ** 2
    rows = (lengths**2 + floor) ** -0.25
    singular, right = torch.linalg.svd(rows[:, None] * matrix, full_matrices=False)[1:]
    singular, right = singular[:rank], right[:rank]
    level = noise**2 * len(matrix) * rows.square().mean()
    return rows, right.T * (singular**2 + level) ** -0.5


def make_metric(weights: Tree, entrance: Entrance, span: Span) -> Metric:
    """Return the whitened measure of the misfit of the first layer."""
    matrix = joined(weights, entrance)
    rank = len(span.basis) + (entrance.bias is not None)
    rows, columns = whitening(matrix, rank, span.noise)
    energy = float(((rows[:, None] * matrix) @ columns).square().sum())
    return Metric(rows, columns, energy)


def joined(tree: Tree, entrance: Entrance) -> Tensor:
    """Return [W b] of a tree, shape [m, d + 1], or W without a bias."""
    weight = tree[entrance.weight]
    if entrance.bias is None:
        return weight
    return torch.cat([weight, tree[entrance.bias][:, None]], dim=1)
