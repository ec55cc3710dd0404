"""What a recovery cannot know, or is not to be trusted with, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from exhume.attacks.two_layer.activation import NORMS
from exhume.attacks.two_layer.fit import Fitted, Neurons
from exhume.attacks.two_layer.subspace import Subspace
from exhume.attacks.two_layer.view import TwoLayerView, blind

__all__ = ["limits", "within_reach"]

_PARALLEL = 10.0  # condition of the span from which inputs count as nearly parallel
_LOST = 1.1  # gap below which the span is noise
_EXPLAINED = 1e-4  # misfit below which least squares found all there is
_NOISELESS = 1e3  # gap of a gradient to which nothing was added
_EXACT = 1e-6  # misfit that is rounding of single precision
_END = 1.02  # how near to an end of the norms that are searched counts as there
_AGREE = 0.9  # |cos| between halves of the neurons below which a direction is doubted


def within_reach(neurons: Neurons, fitted: Fitted, norm: float | None) -> Tensor:
    """Return which inputs lie where the activation tells their norm, shape [B].

    Near 0 every smooth activation is a line and far from it most are constant; an
    estimate at an end of the norms that were searched is that of neither.

    Args:
        neurons: in the coordinates of the estimate.
        fitted: the estimate.
        norm: ‖x_i‖ if it is the same and known.
    """
    size = neurons.scale * fitted.inputs.norm(dim=1)
    inside = (size > NORMS[0] * _END) & (size < NORMS[1] / _END)
    told = norm is not None or neurons.homogeneous or fitted.misfit < _EXACT
    return inside | told


def limits(
    view: TwoLayerView,
    space: Subspace,
    fitted: Fitted,
    confidence: Tensor,
    norm: float | None,
    reached: Tensor,
) -> Iterator[str]:
    """Say what cannot be known, or is not to be trusted."""
    batch, sigma = space.basis.shape[1], view.sigma
    if view.output_gradient is None and blind(view.output.T):
        yield (
            "The weights of the output units are not independent, and the gradient of "
            "these weights is not released: residuals and labels are not identified."
        )
    if view.width < 2 * view.dimension:
        yield (
            f"The network is narrow: {view.width} neurons for {view.dimension} "
            f"dimensions; the theory needs at least twice as many."
        )
    if batch > 1 and space.condition > _PARALLEL:
        yield (
            f"The inputs are nearly parallel or of very different weight (the span has "
            f"condition {space.condition:.0f}); errors grow with it."
        )
    if space.gap < _LOST:
        yield (
            f"The span of the batch does not stand out of the noise (gap "
            f"{space.gap:.2f}): the estimates may mean nothing."
        )
    if not bool(fitted.sign_known.all()):
        why = "is odd up to a constant" if sigma.odd else "hardly tells the signs apart"
        yield (
            f"The activation {sigma.name!r} {why}, so that (x, r) and (−x, −r) give "
            f"the same gradient: signs are not identified by it."
        )
    if sigma.homogeneous and view.offset is None and norm is None:
        yield (
            f"With {sigma.name!r} only the product of residual and norm shows; norms "
            f"are set to 1."
        )
    if not bool(reached.all()):
        yield (
            f"The activation {sigma.name!r} is nearly a polynomial of low degree, or a "
            f"constant, where the inputs fall: {int((~reached).sum())} of {batch} are "
            f"not reliable, in norm or direction."
        )
    doubted = int((confidence < _AGREE).sum())
    if doubted:
        told = "they are not reliable"
        if fitted.misfit < _EXPLAINED and space.gap > _NOISELESS:
            told = f"yet the gradient is explained up to {fitted.misfit:.0e}"
        yield (
            f"{doubted} of {batch} directions differ between two halves of the neurons "
            f"(|cos| below {_AGREE}): {told}."
        )
