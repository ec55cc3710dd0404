"""One log-log plot per experiment: measured errors, upper rate, exact lower bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from exhume.report.pictures import (
    INK,
    MUTED,
    SERIES,
    Legend,
    Plot,
    canvas,
    log_axis,
    svg,
)
from exhume.report.words import number
from exhume.theory.collect import EXACT, Curve, Measured
from exhume.theory.measure import ARMS
from exhume.theory.plan import place
from exhume.theory.slopes import anchored
from exhume.theory.verdict import exponent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "legend", "plot", "style"]

#: a random guess of a unit vector is this far away, on average
_GUESS = 2**0.5
_PUBLISHED = len(ARMS)
#: an exact reconstruction is drawn this far below the smallest error that is not
_BELOW = 10.0


def style(name: str) -> tuple[str, str]:
    """Return colour and marker of an arm, the same in every plot."""
    return SERIES[list(ARMS).index(name)]


def legend(curves: Sequence[Curve]) -> list[Legend]:
    """List what the lines mean."""
    used = [n for n in ARMS if any(a.name == n for c in curves for a in c.arms)]
    items = [
        Legend("curve", list(ARMS).index(n), style(n)[1], f"attack, {n}") for n in used
    ]
    if any(c.experiment.published for c in curves):
        items.append(Legend("curve", _PUBLISHED, SERIES[_PUBLISHED][1], "published"))
    if any(c.upper is not None for c in curves):
        items.append(Legend("other", 0, "", "upper rate, up to its constant"))
    if any(c.floor for c in curves):
        items.append(Legend("bound", 0, "", "exact lower bound, unbiased attacks"))
    items.append(Legend("chance", 0, "", "a random guess"))
    return items


def plot(curve: Curve, name: str) -> Plot | None:
    """Draw one experiment; None if nothing of it has ended.

    Args:
        curve: of the experiment.
        name: start of every id in the drawing, unique on the page.
    """
    if not curve.arms:
        return None
    with canvas(3.8, 3.0) as (figure, axes):
        draw(axes, curve)
        text = svg(figure, name)
    told = "; ".join(_told(arm) for arm in curve.arms)
    heading = f"{curve.title}: {curve.axis}"
    return Plot(heading, text, f"Error against {curve.axis}. {told}.")


def _told(arm: Measured) -> str:
    ends = [arm.means[0], arm.means[-1]]
    told = " to ".join(f"{number(e)} at {number(q)}" for q, e in ends)
    slope = "" if arm.slope is None else f", exponent {exponent(arm.slope.value)}"
    return f"{arm.name}: {told}{slope}"


def draw(axes: Axes, curve: Curve) -> None:
    """Draw one experiment into given axes."""
    lines = [*curve.arms, *([curve.floor] if curve.floor else [])]
    found = [v for line in lines for one in line.values.values() for v in one.values()]
    # What is exact is drawn below all else, not where its rounding happens to be.
    least = min((v for v in found if v >= EXACT), default=EXACT) / _BELOW
    shown = [max(v, least) for v in found]
    shown += [value for _, value in curve.experiment.published]
    axes.set_xscale("log")
    log_axis(axes, [*shown, _GUESS])
    axes.set_ylim(min(shown) / 2, 2 * max(*shown, _GUESS))
    _ticks(axes, curve)
    axes.axhline(_GUESS, color=MUTED, linewidth=1.0, zorder=0)
    first = curve.first
    if curve.upper is not None and first is not None and first.fitted:
        upper = anchored(first.fitted, curve.upper)
        axes.plot(*_pairs(upper), color=MUTED, linestyle=":", linewidth=2, zorder=2)
    for arm in curve.arms:
        _line(axes, arm, least)
    if curve.floor is not None:
        axes.plot(
            *_pairs(curve.floor.means),
            color=INK,
            linestyle=(0, (4, 2.5)),
            linewidth=1.7,
            zorder=4,
        )
    if curve.experiment.published:
        _published(axes, curve)
    axes.set_xlabel(_label(curve))
    axes.set_ylabel("RMS error of an input")


def _line(axes: Axes, arm: Measured, least: float) -> None:
    colour, marker = style(arm.name)
    for at, seeds in arm.values.items():
        low, high = (max(end(seeds.values()), least) for end in (min, max))
        axes.vlines(at, low, high, color=colour, alpha=0.35)
    axes.plot(
        *_pairs([(at, max(value, least)) for at, value in arm.means]),
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.6,
        zorder=3,
    )


def _published(axes: Axes, curve: Curve) -> None:
    colour, marker = SERIES[_PUBLISHED]
    pairs = [
        (place(curve.experiment, at), error) for at, error in curve.experiment.published
    ]
    axes.plot(
        *_pairs(pairs),
        color=colour,
        marker=marker,
        linestyle="none",
        markerfacecolor="none",
        zorder=5,
    )


def _pairs(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [at for at, _ in points], [value for _, value in points]


def _ticks(axes: Axes, curve: Curve) -> None:
    """Mark the values of the sweep as they were asked for."""
    from matplotlib.ticker import NullFormatter, NullLocator

    values = sorted(curve.experiment.values, key=lambda v: place(curve.experiment, v))
    places = [place(curve.experiment, v) for v in values]
    axes.set_xlim(places[0] / 1.15, places[-1] * 1.15)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    turned = 30 if len(places) > 5 or max(values) >= 1e4 else 0
    axes.set_xticks(places, [f"{v:g}" for v in values], rotation=turned)


def _label(curve: Curve) -> str:
    name = {"C": "clip C", "rho": "ratio ρ"}.get(curve.experiment.sweep, curve.axis)
    return f"{name} (stronger →)" if curve.experiment.sweep in ("C", "rho") else name
