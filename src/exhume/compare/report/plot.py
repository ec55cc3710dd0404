"""The frontiers: utility lost against the error of the strongest attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exhume.audit.report.results import described
from exhume.compare.findings import Comparison
from exhume.compare.frontier import Frontier, Point
from exhume.compare.wording import AXIS, shown
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["frontier_plot", "legend"]

#: errors smaller than this part of the largest are drawn at the lower edge
_DEPTH = 1e-3


def _style(index: int) -> tuple[str, str]:
    """Return colour and marker of a family; colours that return change the marker."""
    count = len(SERIES)
    return SERIES[index % count][0], SERIES[(index + index // count) % count][1]


def legend(comparison: Comparison) -> list[Legend]:
    """List what the lines mean."""
    items = [
        Legend("curve", index % len(SERIES), _style(index)[1], frontier.family.label)
        for index, frontier in enumerate(comparison.frontiers)
        if frontier.points
    ]
    if comparison.chance is not None:
        items.append(Legend("chance", 0, "", "guessing without the update"))
    if any(p.floor.value for f in comparison.frontiers for p in f.points):
        items.append(
            Legend(
                "bound",
                0,
                "",
                "no attack goes below on average, if data follow the prior",
            )
        )
    return items


def frontier_plot(comparison: Comparison) -> Plot:
    """Draw one line per family, its bound dashed in the same colour."""
    drawn = [p for f in comparison.frontiers for p in f.points if p.strongest]
    errors = [p.strongest.error for p in drawn if p.strongest]
    top = max([*errors, comparison.chance or 0.0], default=1.0) or 1.0
    floor = max(min([*errors, top]), top * _DEPTH)
    percent = 100 if comparison.settings.utility in ("accuracy", "u1") else 1
    with canvas(9.2, 4.8) as (figure, axes):
        log_axis(axes, [floor, top])
        axes.set_ylim(floor / 2, top * 2)
        if comparison.chance is not None:
            axes.axhline(comparison.chance, color=MUTED, linewidth=1.3, zorder=1)
        for budget in comparison.settings.budgets:
            axes.axvline(
                percent * budget, color=INK, linewidth=0.7, alpha=0.25, zorder=0
            )
        for index, frontier in enumerate(comparison.frontiers):
            _draw(axes, frontier, index, percent, floor)
        axes.set_xlabel(f"{AXIS[comparison.settings.utility]} →")
        metric = described(comparison.metric)
        axes.set_ylabel(f"mean {metric.axis('of the strongest attack')}")
        text = svg(figure, "frontier")
    told = "; ".join(_told(comparison, f) for f in comparison.frontiers if f.points)
    return Plot("Frontiers", text, f"Error against utility lost. {told}.")


def _told(comparison: Comparison, frontier: Frontier) -> str:
    utility = comparison.settings.utility
    points = ", ".join(
        f"{number(p.strongest.error)} at {shown(utility, p.loss)}"
        for p in frontier.points
        if p.strongest
    )
    return f"{frontier.family.label}: {points}"


def _draw(
    axes: Axes, frontier: Frontier, index: int, percent: float, floor: float
) -> None:
    colour, marker = _style(index)
    points = [p for p in frontier.points if p.strongest]
    if not points:
        return
    x = [percent * p.loss for p in points]
    y = [max(p.strongest.error, floor) for p in points if p.strongest]
    axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.8, zorder=3)
    for place, point in zip(x, points, strict=True):
        _whiskers(axes, place, point, colour, floor)
    bound = [
        (place, p.floor.value)
        for place, p in zip(x, points, strict=True)
        if p.floor.value is not None and p.floor.value >= floor / 2
    ]
    if bound:
        axes.plot(
            [place for place, _ in bound],
            [value for _, value in bound],
            color=colour,
            linestyle=(0, (4, 2.5)),
            marker="_",
            linewidth=1.4,
            zorder=2,
        )


def _whiskers(
    axes: Axes, place: float, point: Point, colour: str, floor: float
) -> None:
    assert point.strongest is not None
    low, high = point.strongest.interval
    top = axes.get_ylim()[1]
    axes.vlines(
        place, max(low, floor / 2), min(high, top), color=colour, alpha=0.35, zorder=2
    )
