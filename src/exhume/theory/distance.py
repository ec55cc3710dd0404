"""The distance of the theory: root-mean-square over the best assignment and signs."""

from __future__ import annotations

import math

from scipy.optimize import linear_sum_assignment
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula

__all__ = ["aligned", "rms_distance"]


@formula(
    r"d(S, \hat S) = \min_{\pi, s} \sqrt{ \tfrac{1}{B} \sum_i "
    r"\| x_i - s_i \hat x_{\pi(i)} \|^2 }",
    reference="Liu, Wang, Chen and Lei, AISTATS 2025, the distance of a batch",
)
def rms_distance(guess: Tensor, truth: Tensor, *, signed: bool = True) -> float:
    """Measure how far estimates are from the truth, whatever their order.

    Args:
        guess: x̂, shape [B, d].
        truth: x, shape [B, d].
        signed: count a wrong sign; False takes the better sign of every estimate, where
            the activation is odd and signs are not identified.

    Raises:
        InvalidInput: the shapes differ, or an estimate is not finite.
    """
    gap = aligned(guess, truth, signed=signed) - truth
    return math.sqrt(float(gap.double().square().sum()) / len(truth))


def aligned(guess: Tensor, truth: Tensor, *, signed: bool = True) -> Tensor:
    """Return the estimates in the order, and with the signs, nearest to the truth."""
    if guess.shape != truth.shape or not bool(guess.isfinite().all()):
        msg = (
            f"estimates of shape {list(guess.shape)} (finite: "
            f"{bool(guess.isfinite().all())}) cannot be compared with inputs of shape "
            f"{list(truth.shape)}"
        )
        raise InvalidInput(msg)
    inner = truth.double() @ guess.double().T
    likeness = inner if signed else inner.abs()
    norms = guess.double().square().sum(dim=1)
    _, order = linear_sum_assignment((norms - 2 * likeness).cpu().numpy())
    ordered = guess[order]
    if signed:
        return ordered
    same = (ordered.double() * truth.double()).sum(dim=1, keepdim=True) >= 0
    return ordered.where(same, -ordered)
