"""Signs and rounding: the maps of quantisation, and smooth stand-ins for descents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.formula import formula
from exhume.problem.tree import Tree

__all__ = [
    "SIGN_ERROR",
    "RoundToGrid",
    "SignTimesScale",
    "SoftSign",
    "grid_step",
    "round_to_grid",
    "round_up_or_down",
    "rounding_variance",
    "scaled_sign",
    "soft_sign",
]

# Width of the soft sign over the mean magnitude, and its squared error over s². Of the
# widths 0.05 to 3 and errors 0.03 to 3 these let gauss-newton recover faces best.
_WIDTH = 0.1
SIGN_ERROR = 1.0


@formula(
    r"\Delta = \max_j |g_j| \,/\, (2^{b-1} - 1)",
    reference="Dettmers, ICLR 2016, section 2 (linear); Wen et al., NeurIPS 2017 (b=2)",
)
def grid_step(values: Tensor, bits: int) -> Tensor:
    """Return the step of the symmetric grid with 2^b − 1 levels; 0 for zeros.

    Args:
        values: g, any shape.
        bits: b ≥ 2, sign included.
    """
    if values.numel() == 0:
        return values.new_zeros(())
    return values.abs().amax() / (2 ** (bits - 1) - 1)


@formula(r"\Delta \lfloor g / \Delta \rceil", reference="Dettmers, ICLR 2016")
def round_to_grid(values: Tensor, step: Tensor) -> Tensor:
    """Round to the nearest multiple of a step; halves go to the even one.

    Args:
        values: g, any shape.
        step: Δ ≥ 0, a scalar; 0 leaves zeros.
    """
    return step * (values / _positive(step)).round()


@formula(
    r"\Delta \lfloor g / \Delta + u \rfloor, \quad u \sim U(0, 1)",
    reference="Alistarh et al., NeurIPS 2017 (QSGD), with the maximum for the norm",
)
def round_up_or_down(values: Tensor, step: Tensor, source: torch.Generator) -> Tensor:
    """Round to one of the two next multiples of a step, so that the mean is g.

    Args:
        values: g, float64, any shape.
        step: Δ ≥ 0, a scalar.
        source: generator on the CPU.

    Returns:
        The rounded values; the variance is (g − ⌊g⌋)(⌈g⌉ − g) ≤ Δ²/4.
    """
    uniform = torch.rand(values.shape, generator=source, dtype=torch.float64)
    return step * (values / _positive(step) + uniform.to(values)).floor()


@formula(
    r"\mathrm{Var} = \Delta^2 / 12 \ (\text{nearest}), \quad \Delta^2 / 6 "
    r"\ (\text{stochastic})",
    reference="Widrow and Kollár, 2008, chapter 4: an entry uniform within its cell",
)
def rounding_variance(step: Tensor, *, stochastic: bool) -> Tensor:
    """Return the mean squared rounding error of an entry that lies anywhere in a cell.

    Args:
        step: Δ ≥ 0.
        stochastic: unbiased rounding, else to the nearest.
    """
    return step.square() / (6 if stochastic else 12)


@formula(
    r"s \, \mathrm{sign}(g), \quad s = \tfrac 1n \lVert g \rVert_1 \ \text{or}\ 1",
    reference="Bernstein et al., ICML 2018; Karimireddy et al., ICML 2019 (scaled)",
)
def scaled_sign(values: Tensor, *, unit: bool) -> Tensor:
    """Return the sign of every entry times the mean magnitude; zeros stay zero.

    Args:
        values: g, any shape, not empty.
        unit: times 1 in the place of the mean magnitude.
    """
    signs = values.sign()
    return signs if unit else values.abs().mean() * signs


@formula(
    r"s \, \tanh(g / \tau), \quad s = \tfrac 1n \lVert g \rVert_1 \ \text{or}\ 1",
    reference="smooth surrogate of the sign; ours",
)
def soft_sign(values: Tensor, width: Tensor, *, unit: bool) -> Tensor:
    """Return a smooth sign times the scale.

    Args:
        values: g, any shape, not empty.
        width: τ > 0, a scalar, in the units of g; the sign as it goes to 0.
        unit: the scale is 1 in the place of the mean magnitude.
    """
    signs = (values / _positive(width)).tanh()
    return signs if unit else values.abs().mean() * signs


def _positive(step: Tensor) -> Tensor:
    return step.clamp_min(torch.finfo(step.dtype).tiny)


@dataclass(frozen=True)
class SignTimesScale:
    """The map g ↦ s sign(g), tensor by tensor; ``names`` are covered, others pass."""

    unit: bool
    names: tuple[str, ...]

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return the signs; only the scale has a derivative."""
        return {
            n: scaled_sign(t, unit=self.unit) if n in self.names and t.numel() else t
            for n, t in tree.items()
        }


@dataclass(frozen=True, eq=False)
class SoftSign:
    """The smooth map that stands for the sign in a descent, tensor by tensor.

    Attributes:
        unit: the scale is 1.
        names: of the covered tensors; others pass.
        means: mean magnitude of the true gradient, by name, as far as the release or
            public data show it; else that of the candidate is taken.
    """

    unit: bool
    names: tuple[str, ...]
    means: Mapping[str, Tensor]

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return the smooth signs, differentiable."""
        return {
            n: self._soft(n, t) if n in self.names and t.numel() else t
            for n, t in tree.items()
        }

    def _soft(self, name: str, tensor: Tensor) -> Tensor:
        mean = self.means[name] if name in self.means else tensor.abs().mean()
        return soft_sign(tensor, _WIDTH * mean.to(tensor), unit=self.unit)


@dataclass(frozen=True)
class RoundToGrid:
    """The map g ↦ Δ ⌊g/Δ⌉ with the step of each tensor; ``names`` are covered."""

    bits: int
    names: tuple[str, ...]

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return the rounded tree; only the step has a derivative."""
        return {
            n: round_to_grid(t.double(), grid_step(t.double(), self.bits)).to(t)
            if n in self.names
            else t
            for n, t in tree.items()
        }
