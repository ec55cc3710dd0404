"""What a recovery cannot know, or is not to be trusted with, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from exhume.attacks.two_layer.fit import Fitted
from exhume.attacks.two_layer.subspace import Subspace
from exhume.attacks.two_layer.view import TwoLayerView

__all__ = ["limits"]

_PARALLEL = 10.0  # condition of the span from which inputs count as nearly parallel
_LOST = 1.1  # gap below which the span is noise
_AGREE = 0.9  # |cos| between halves of the neurons below which a direction is doubted


def limits(
    view: TwoLayerView,
    space: Subspace,
    fitted: Fitted,
    confidence: Tensor,
    norm: float | None,
) -> Iterator[str]:
    """Say what cannot be known, or is not to be trusted."""
    batch, sigma = space.basis.shape[1], view.sigma
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
    doubted = int((confidence < _AGREE).sum())
    if doubted:
        yield (
            f"{doubted} of {batch} directions differ between two halves of the neurons "
            f"(|cos| below {_AGREE}): they are not reliable."
        )
