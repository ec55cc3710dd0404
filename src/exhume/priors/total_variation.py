"""Total variation of images: neighbouring pixels are mostly alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.batch import Batch
from exhume.problem.prior import Density, Prior
from exhume.problem.task import Task

__all__ = [
    "TotalVariation",
    "TotalVariationDensity",
    "homogeneous_weight",
    "lagged_diffusivity",
    "total_variation",
]

Kind = Literal["anisotropic", "isotropic"]


def _differences(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return forward differences down and right, zero across the far border."""
    down = torch.cat([images.diff(dim=-2), torch.zeros_like(images[..., :1, :])], -2)
    right = torch.cat([images.diff(dim=-1), torch.zeros_like(images[..., :1])], -1)
    return down, right


def _magnitudes(
    down: Tensor, right: Tensor, kind: Kind, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return smoothed |∂x| for both directions (shared if isotropic)."""
    if kind == "isotropic":
        shared = (down.square() + right.square() + smoothing**2).sqrt()
        return shared, shared
    down, right = (t.square().add(smoothing**2).sqrt() for t in (down, right))
    return down, right


@formula(
    r"\mathrm{TV}(x) = \sum_{c,i,j} \varphi(\partial_\downarrow x) + "
    r"\varphi(\partial_\rightarrow x),\quad \varphi(t) = \sqrt{t^2 + \epsilon^2} - "
    r"\epsilon",
    reference="Rudin, Osher and Fatemi 1992 (isotropic: φ of the gradient's length)",
)
def total_variation(
    images: Tensor, kind: Kind = "anisotropic", smoothing: float = 1e-3
) -> Tensor:
    """Sum the smoothed jumps between neighbouring pixels of a batch, a scalar.

    It is zero for every constant image: differences across the border do not exist.

    Args:
        images: x, shape [B, C, H, W].
        kind: ``anisotropic`` (both differences apart) or ``isotropic``.
        smoothing: ε > 0 in units of the data; jumps far below it count as their square.
    """
    down, right = _magnitudes(*_differences(images), kind, smoothing)
    if kind == "isotropic":
        return (down - smoothing).sum()
    return (down - smoothing).sum() + (right - smoothing).sum()


@formula(
    r"H(x)\, t = D^\top \mathrm{diag}\big(1 / \sqrt{|D x|^2 + \epsilon^2}\big) D\, t",
    reference="Vogel and Oman 1996 (lagged diffusivity)",
)
def lagged_diffusivity(
    images: Tensor,
    direction: Tensor,
    kind: Kind = "anisotropic",
    smoothing: float = 1e-3,
) -> Tensor:
    """Multiply by the curvature of the quadratic that touches TV from above at x.

    The gradient of the total variation is H(x) x.

    Args:
        images: x, shape [B, C, H, W].
        direction: t, same shape.
        kind: as in :func:`total_variation`.
        smoothing: ε > 0.
    """
    down, right = _differences(direction)
    over_down, over_right = _magnitudes(*_differences(images), kind, smoothing)
    down, right = down / over_down, right / over_right
    # Dᵀ: what leaves one pixel enters its neighbour; the far border holds zeros.
    return (down.roll(1, -2) - down) + (right.roll(1, -1) - right)


@formula(
    r"\hat\lambda = n \big/ \tfrac{1}{N} \textstyle\sum_i R(x_i)",
    reference="Pereyra, Bioucas-Dias and Figueiredo 2015, for R of degree 1",
)
def homogeneous_weight(freedom: int, mean_value: float) -> float:
    """Fit the weight λ of a prior p(x) ∝ exp(−λ R(x)) by maximum likelihood.

    R scales with x, R(c x) = c R(x), so the normalising constant is λ⁻ⁿ up to a factor.

    Args:
        freedom: n, the number of coordinates that R sees (constants cancel in TV).
        mean_value: mean of R over public examples, positive.
    """
    return freedom / mean_value


@dataclass(frozen=True, kw_only=True)
class TotalVariationDensity(Density):
    """p(x) ∝ exp(−w TV(x)), improper: it says nothing about an image's brightness.

    Attributes:
        weight: w, in inverse units of the data.
        kind: ``anisotropic`` or ``isotropic``.
        smoothing: ε of :func:`total_variation`.
    """

    name: ClassVar[str] = "total-variation"
    supports: ClassVar[frozenset[str]] = frozenset({"curvature"})
    weight: float
    kind: Kind = "anisotropic"
    smoothing: float = 1e-3

    def energy(self, inputs: Tensor) -> Tensor:
        """Return w TV(x) summed over the batch, a scalar."""
        _check_grid(inputs)
        return self.weight * total_variation(inputs, self.kind, self.smoothing)

    def curvature(self, inputs: Tensor, direction: Tensor) -> Tensor:
        """Return w H(x) t with H the lagged diffusivity, shape [B, C, H, W]."""
        _check_grid(inputs)
        product = lagged_diffusivity(inputs, direction, self.kind, self.smoothing)
        return self.weight * product


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Prior):
    """Penalise jumps between neighbouring pixels.

    Attributes:
        weight: w in inverse units of the data; None fits it to the public examples.
        kind: ``anisotropic`` (differences apart) or ``isotropic`` (gradient's length).
        smoothing: ε that makes the corner at zero differentiable, in units of the data.

    Raises:
        InvalidInput: an option is out of its range.
    """

    bibtex: ClassVar[str] = """
@article{rudin1992nonlinear,
  title = {Nonlinear Total Variation Based Noise Removal Algorithms},
  author = {Rudin, Leonid I. and Osher, Stanley and Fatemi, Emad},
  journal = {Physica D: Nonlinear Phenomena},
  volume = {60}, number = {1--4}, pages = {259--268}, year = {1992}
}
@article{vogel1996iterative,
  title = {Iterative Methods for Total Variation Denoising},
  author = {Vogel, Curtis R. and Oman, Mary E.},
  journal = {SIAM Journal on Scientific Computing},
  volume = {17}, number = {1}, pages = {227--238}, year = {1996}
}
@inproceedings{pereyra2015maximum,
  title = {Maximum-a-posteriori Estimation with Unknown Regularisation Parameters},
  author = {Pereyra, Marcelo and Bioucas-Dias, Jos{\\'e} M. and Figueiredo,
            M{\\'a}rio A. T.},
  booktitle = {European Signal Processing Conference (EUSIPCO)},
  year = {2015}
}
"""
    weight: float | None = None
    kind: Kind = "anisotropic"
    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < float("inf"):
            msg = f"weight is {self.weight}; expected a positive number, or None"
            raise InvalidInput(msg)
        if self.kind not in ("anisotropic", "isotropic"):
            msg = f"kind is {self.kind!r}; expected 'anisotropic' or 'isotropic'"
            raise InvalidInput(msg)
        if not 0 < self.smoothing < float("inf"):
            msg = (
                f"smoothing is {self.smoothing}; expected a small positive number, "
                f"0.001 for images in [0, 1], say"
            )
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a fitted weight, and a given one of the other kind."""
        return (cls(), cls(weight=2.0, kind="isotropic"))

    def fit(self, public: Batch, task: Task) -> TotalVariationDensity:
        """Fit the weight, unless it is given.

        Args:
            public: images.
            task: not used.

        Raises:
            InvalidInput: the examples are no images, or they are all constant.
        """
        del task
        if public.spec.grid is None:
            raise _no_grid(public.spec.shape)
        weight = self.weight if self.weight is not None else self._weight(public)
        return TotalVariationDensity(
            weight=weight, kind=self.kind, smoothing=self.smoothing
        )

    def _weight(self, public: Batch) -> float:
        total = total_variation(public.inputs.double(), self.kind, self.smoothing)
        if float(total) <= 0:
            msg = "every public image is constant; give the weight of total variation"
            raise InvalidInput(msg)
        assert public.spec.grid is not None  # `fit` has checked
        freedom = public.spec.dimension - public.spec.grid[0]
        return homogeneous_weight(freedom, float(total) / len(public))


def _check_grid(inputs: Tensor) -> None:
    if inputs.dim() != 4:
        raise _no_grid(tuple(inputs.shape[1:]))


def _no_grid(shape: tuple[int, ...]) -> InvalidInput:
    return InvalidInput(
        f"total variation needs images of shape [C, H, W], got examples of shape "
        f"{list(shape)}; use the prior 'gaussian' for other data"
    )
