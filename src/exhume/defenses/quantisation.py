"""Quantisation: release signs, or entries rounded to a coarse grid per tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = [
    "Quantisation",
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

_JUMPS = (
    "rounding makes p(O | S) jump where an entry meets the next level of the grid and "
    "constant in between, so it has no Fisher information"
)
_SIGNS_JUMP = (
    "taking signs makes p(O | S) jump where an entry changes sign, so it has no Fisher "
    "information"
)
_TWO_POINTS = "stochastic rounding has two outcomes per entry, so it is not Gaussian"
_NOISE_ROUNDED = "noise is added before rounding, so the release is not Gaussian"

# Width of the soft sign over the mean magnitude, and share of s² that is its error.
_WIDTH = 0.5
_SIGN_ERROR = 0.1


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
    r"s \, \tanh\Bigl( g \big/ \bigl(\kappa\, \tfrac 1n \lVert g \rVert_1\bigr) \Bigr)",
    reference="smooth surrogate of the sign; ours",
)
def soft_sign(values: Tensor, *, unit: bool, width: float = _WIDTH) -> Tensor:
    """Return a smooth sign, of the width of the typical entry, times the scale.

    Args:
        values: g, any shape, not empty.
        unit: the scale is 1 in the place of the mean magnitude.
        width: κ > 0.
    """
    mean = values.abs().mean()
    signs = (values / _positive(width * mean)).tanh()
    return signs if unit else mean * signs


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


@dataclass(frozen=True)
class SoftSign:
    """The smooth map that stands for the sign in a descent, tensor by tensor."""

    unit: bool
    names: tuple[str, ...]

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return the smooth signs, differentiable."""
        return {
            n: soft_sign(t, unit=self.unit) if n in self.names and t.numel() else t
            for n, t in tree.items()
        }


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


_SIGN = """\
@inproceedings{bernstein2018signsgd,
  title = {{signSGD}: Compressed Optimisation for Non-Convex Problems},
  author = {Bernstein, Jeremy and Wang, Yu-Xiang and Azizzadenesheli, Kamyar and
            Anandkumar, Animashree},
  booktitle = {International Conference on Machine Learning},
  pages = {560--569},
  year = {2018},
}
@inproceedings{karimireddy2019error,
  title = {Error Feedback Fixes {SignSGD} and Other Gradient Compression Schemes},
  author = {Karimireddy, Sai Praneeth and Rebjock, Quentin and Stich, Sebastian U. and
            Jaggi, Martin},
  booktitle = {International Conference on Machine Learning},
  pages = {3252--3261},
  year = {2019},
}
"""
_INT8 = """\
@inproceedings{dettmers2016eight,
  title = {8-Bit Approximations for Parallelism in Deep Learning},
  author = {Dettmers, Tim},
  booktitle = {International Conference on Learning Representations},
  year = {2016},
}
"""
_STOCHASTIC = """\
@inproceedings{alistarh2017qsgd,
  title = {{QSGD}: Communication-Efficient {SGD} via Gradient Quantization and
           Encoding},
  author = {Alistarh, Dan and Grubic, Demjan and Li, Jerry and Tomioka, Ryota and
            Vojnovic, Milan},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {30},
  year = {2017},
}
@inproceedings{wen2017terngrad,
  title = {{TernGrad}: Ternary Gradients to Reduce Communication in Distributed Deep
           Learning},
  author = {Wen, Wei and Xu, Cong and Yan, Feng and Wu, Chunpeng and Wang, Yandan and
            Chen, Yiran and Li, Hai},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {30},
  year = {2017},
}
"""


@dataclass(frozen=True, kw_only=True)
class Quantisation(Defense):
    """Release few bits of every entry, on a grid of each tensor's own scale.

    * ``sign``: s sign(g_j), with s the mean magnitude of the tensor, or 1.
    * ``int8``: to the nearest of 255 levels between −max|g| and max|g|.
    * ``stochastic``: to one of the two next of 2^bits − 1 levels, without bias.

    The scale is part of the release. The exact law jumps, so it has no bound; attacks
    descend on a surrogate instead: the gradient plus rounding noise of variance Δ²/12
    (Δ²/6 if stochastic), or a smooth sign.

    Attributes:
        kind: what is released.
        bits: per entry, of ``stochastic`` alone, 2 to 16; 2 is ternary.
        scale: s of ``sign``: ``mean``, or ``one`` as in signSGD.
        only: glob patterns of the tensors that are quantised.

    Raises:
        InvalidInput: an option is out of range, or has no meaning for this kind.
    """

    stage: ClassVar[Stage] = Stage.UPDATE
    variant_bibtex: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "kind": {"sign": _SIGN, "int8": _INT8, "stochastic": _STOCHASTIC}
    }

    kind: Literal["sign", "int8", "stochastic"]
    bits: int = 8
    scale: Literal["mean", "one"] = "mean"
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if self.kind not in ("sign", "int8", "stochastic"):
            msg = f"kind is {self.kind!r}; expected 'sign', 'int8' or 'stochastic'"
            raise InvalidInput(msg)
        if self.scale not in ("mean", "one"):
            msg = f"scale is {self.scale!r}; expected 'mean' or 'one'"
            raise InvalidInput(msg)
        if not 2 <= self.bits <= 16:
            msg = f"bits is {self.bits}; expected 2 to 16"
            raise InvalidInput(msg)
        if self.kind != "stochastic" and self.bits != 8:
            msg = f"bits is {self.bits}, but only the kind 'stochastic' has a choice"
            raise InvalidInput(msg)
        if self.kind != "sign" and self.scale != "mean":
            msg = f"scale is {self.scale!r}, but only the kind 'sign' has a choice"
            raise InvalidInput(msg)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """List what is covered; the scale is each release's own."""
        del public, key
        return self._plan(task)

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        if self.kind != "stochastic":
            return self._map(plan)(covered)
        released = {}
        for name, tensor in covered.items():
            values = tensor.double()
            step = grid_step(values, self.bits)
            source = generator(key, name)
            released[name] = round_up_or_down(values, step, source).to(tensor)
        return released

    def _map(self, plan: Plan) -> SignTimesScale | RoundToGrid:
        if self.kind == "sign":
            return SignTimesScale(self.scale == "one", plan.covers)
        return RoundToGrid(self.bits, plan.covers)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Append the map that jumps, and a smooth surrogate of it for descents."""
        surrogate = self._surrogate(law.for_descent, plan, observed)
        noise = _NOISE_ROUNDED if law.noisy_on(plan.covers) else None
        if self.kind == "stochastic":
            # The mean is exact, and two levels are mixed in smooth proportions.
            reason = law.not_gaussian or noise or _TWO_POINTS
            return replace(law, not_gaussian=reason, surrogate=surrogate)
        jumps = _SIGNS_JUMP if self.kind == "sign" else _JUMPS
        blurred = law.noise_covers(plan.covers)
        return replace(
            law.then(self._map(plan)),
            irregular=law.irregular if blurred else jumps,
            not_gaussian=law.not_gaussian or noise,
            surrogate=surrogate,
        )

    def _surrogate(
        self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None
    ) -> Law:
        """Return a law that a descent can follow; rounding without O has no size."""
        if self.kind == "sign":
            soft = law.then(SoftSign(self.scale == "one", plan.covers))
            kept = {n: v for n, v in law.variance.items() if n not in plan.covers}
            # The noise that entered is behind the signs now; correlated noise too.
            soft = replace(soft, variance=kept, covariance=None, not_gaussian=None)
            if observed is None:
                return soft
            sizes = {n: observed[n].double().abs().amax() for n in plan.covers}
            return soft.plus_noise({n: _SIGN_ERROR * s**2 for n, s in sizes.items()})
        if observed is None:
            return law
        steps = {n: grid_step(observed[n].double(), self.bits) for n in plan.covers}
        stochastic = self.kind == "stochastic"
        return law.plus_noise(
            {n: rounding_variance(s, stochastic=stochastic) for n, s in steps.items()}
        )

    @property
    def adds_noise(self) -> bool:
        """Whether rounding is random."""
        return self.kind == "stochastic"

    @property
    def preserves_zeros(self) -> bool:
        """False: rounding makes new zeros, and signs hide every magnitude."""
        return False
