"""Ours beside theirs: curves of error against training loss, compared at equal loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from exhume.formula import formula

__all__ = ["Curve", "Point", "Row", "gain_at_equal_loss", "rows"]

#: losses at which the mean over the shared range is taken
_GRID = 201
_EXTREMES: tuple[tuple[str, Callable[[Iterable[float]], float]], ...] = (
    ("smallest", min),
    ("largest", max),
)


@dataclass(frozen=True)
class Point:
    """One strength of one curve.

    Attributes:
        strength: of the defense; None for a published point, where it is not known.
        error: mean squared error of the attack, in the units of the recipe.
        loss: training loss after training with the defense; infinite if it diverged,
            None if it could not be measured.
        errors: by seed.
        reason: why the error or the loss is missing, else "".
    """

    strength: float | None
    error: float | None
    loss: float | None
    errors: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Curve:
    """What was measured, and what was published, for one family of defenses.

    Attributes:
        name: of the series.
        option: of the defense that varies.
        ours: measured points, weak to strong.
        published: approximate (error, loss) pairs.
    """

    name: str
    option: str
    ours: tuple[Point, ...]
    published: tuple[tuple[float, float], ...]

    @property
    def measured(self) -> list[tuple[float, float]]:
        """Our (error, loss) pairs that are finite and positive."""
        return [
            (p.error, p.loss)
            for p in self.ours
            if p.error is not None
            and p.loss is not None
            and 0 < p.error < math.inf
            and 0 < p.loss < math.inf
        ]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        quantity: what.
        ours: measured, or None.
        published: approximate, or None.
        note: why one of them is missing.
    """

    quantity: str
    ours: float | None
    published: float | None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over theirs."""
        if self.ours is None or not self.published:
            return None
        return self.ours / self.published


@formula(
    r"G = \exp\Bigl( \frac{1}{b - a} \int_a^b \bigl(\log e_2(\ell) - "
    r"\log e_1(\ell)\bigr)\, d\log \ell \Bigr)",
    reference="definition: geometric mean over the losses ℓ that both curves reach",
)
def gain_at_equal_loss(
    first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]
) -> float | None:
    """Return how much larger the second curve's error is where the losses are equal.

    Args:
        first: (error, loss) pairs of the reference, positive, in any order.
        second: (error, loss) pairs.

    Returns:
        a ratio > 0, or None if the two share no range of losses.
    """
    import numpy as np

    if min(len(first), len(second)) < 2:
        return None
    lines = []
    for pairs in (first, second):
        by_loss: dict[float, list[float]] = {}
        for error, loss in pairs:
            by_loss.setdefault(math.log(loss), []).append(math.log(error))
        lines.append(sorted((loss, sum(e) / len(e)) for loss, e in by_loss.items()))
    low = max(line[0][0] for line in lines)
    high = min(line[-1][0] for line in lines)
    if not low < high:
        return None
    grid = np.linspace(low, high, _GRID)
    heights = [np.interp(grid, *np.array(line).T) for line in lines]
    return float(np.exp(np.trapezoid(heights[1] - heights[0], grid) / (high - low)))


def rows(
    curves: Sequence[Curve], undefended: Point, guess: float | None = None
) -> list[Row]:
    """List what can be put beside the published figure.

    Args:
        curves: the first is the reference.
        undefended: error and loss without a defense.
        guess: error of guessing without the update; an attack above it has failed.
    """
    listed = [
        Row("guessing without the update: error", guess, None),
        Row("no defense: error", undefended.error, None, undefended.reason),
        Row("no defense: training loss", undefended.loss, None, undefended.reason),
    ]
    for curve in curves:
        for place, what in ((0, "error"), (1, "training loss")):
            for name, pick in _EXTREMES:
                listed.append(
                    Row(
                        f"{curve.name}: {name} {what}",
                        _extreme(curve.measured, place, pick),
                        _extreme(curve.published, place, pick),
                        "" if curve.published else "not read off",
                    )
                )
    for curve in curves[1:]:
        reference = curves[0]
        listed.append(
            Row(
                f"error of {curve.name} over {reference.name}, at equal loss",
                gain_at_equal_loss(reference.measured, curve.measured),
                gain_at_equal_loss(reference.published, curve.published),
                _why(reference, curve),
            )
        )
    return listed


def _extreme(
    pairs: Sequence[tuple[float, float]],
    place: int,
    pick: Callable[[Iterable[float]], float],
) -> float | None:
    return pick(pair[place] for pair in pairs) if pairs else None


def _why(reference: Curve, curve: Curve) -> str:
    if gain_at_equal_loss(reference.measured, curve.measured) is None:
        return "our two curves share no range of training losses"
    if not (reference.published and curve.published):
        return "not read off"
    return ""
