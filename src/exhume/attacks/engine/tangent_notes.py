"""What an explanation by tangent features is worth, in words for the report."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from exhume.attacks.engine.candidates import correlations

__all__ = ["agreement", "tangent_notes"]

# Residual from which the features do not explain the observation at all.
_FOREIGN = 0.9
# With fewer parameters per unknown than this, labels are fitted but data are not held.
_FEW = 10.0
# Solutions within this factor of the smallest residual fit equally well.
_EQUAL = 2.0
# Starts that agree less than this found different data.
_DISAGREE = 0.8


def agreement(found: Sequence[tuple[float, Tensor]], centre: Tensor) -> float | None:
    """Return the mean best correlation between starts that fit equally well.

    Args:
        found: residual and candidates [M, *event] of every start.
        centre: common to all examples, subtracted before correlating.

    Returns:
        a mean over ordered pairs of starts; None if fewer than two fit equally well.
    """
    least = min(residual for residual, _ in found)
    equal = [x - centre for residual, x in found if residual <= _EQUAL * least]
    shares = [
        float(correlations(one, other).max(dim=1).values.mean())
        for i, one in enumerate(equal)
        for j, other in enumerate(equal)
        if i != j
    ]
    return sum(shares) / len(shares) if shares else None


def tangent_notes(
    residual: float, scores: Tensor, per_unknown: float, spread: float | None
) -> tuple[str, ...]:
    """Return sentences on the fit, the candidates, identifiability and uniqueness.

    Args:
        residual: ‖O − Σ a φ‖² / ‖O‖² of the answer.
        scores: energy of every candidate, shape [M].
        per_unknown: p/(nd).
        spread: of :func:`agreement`.
    """
    return (
        _fit(residual),
        _spectrum(scores),
        _identifiable(per_unknown),
        _unique(spread),
    )


def _fit(residual: float) -> str:
    if residual < _FOREIGN:
        return f"The answer leaves {residual:.2g} of the observation unexplained."
    return (
        f"The answer leaves {residual:.2g} of the observation unexplained: what was "
        f"shared is not in the span of tangent features found, so the answer may be "
        f"anything. The network left its tangent features, or the search failed."
    )


def _spectrum(scores: Tensor) -> str:
    largest = float(scores.max())
    weak = int((scores < 1e-3 * largest).sum())
    return (
        f"{len(scores) - weak} of {len(scores)} candidates contribute more than a "
        f"thousandth of what the strongest does."
    )


def _identifiable(per_unknown: float) -> str:
    text = f"There are {per_unknown:.3g} weights per unknown number (p/(nd))"
    if per_unknown >= _FEW:
        return f"{text}."
    return f"{text}: few, so that other data may explain the observation as well."


def _unique(spread: float | None) -> str:
    if spread is None:
        return (
            "No two starts were compared, so whether other data explain the "
            "observation as well is not known; restarts = 3 would tell."
        )
    text = f"Starts that fit equally well agree to a mean correlation of {spread:.2f}"
    if spread >= _DISAGREE:
        return f"{text}."
    return (
        f"{text}: other data explain the observation as well, so that a single picture "
        f"proves little."
    )
