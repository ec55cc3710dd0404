"""All plots of a run as one PNG, for a page of documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exhume.report.pictures import INK, MUTED, SERIES
from exhume.theory.collect import Curve
from exhume.theory.report.plot import draw, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["write_picture"]

_COLUMNS = 4
# The page's colours in the light scheme; a PNG cannot follow the reader's.
_COLOURS = {
    INK: "#1d1c1a",
    MUTED: "#6d6a64",
    **dict(
        zip(
            (colour for colour, _ in SERIES),
            (
                "#0072b2", "#d55e00", "#009e73", "#b8629b",
                "#c98a00", "#3d9fd6", "#6a5acd", "#7d7a73",
            ),
            strict=True,
        )
    ),
}  # fmt: skip


def write_picture(curves: Sequence[Curve], path: Path) -> None:
    """Draw every experiment that has ended into one figure.

    Args:
        curves: of a run.
        path: of the PNG; nothing is written if no experiment has ended.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [curve for curve in curves if curve.arms]
    if not shown:
        return
    across = min(_COLUMNS, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(3.0 * across, 2.5 * down + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    for index, curve in enumerate(shown):
        axes = figure.add_subplot(down, across, index + 1)
        draw(axes, curve)
        axes.set_title(curve.title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_xlabel(axes.get_xlabel(), fontsize=8)
        axes.set_ylabel("RMS error" if index % across == 0 else "", fontsize=8)
    handles = [_handle(item.kind, item.index, item.label) for item in legend(shown)]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    _recolour(figure)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG of few colours, a third of the size that matplotlib makes."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80)
    image = Image.open(stream).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(path, "png", optimize=True)


def _handle(kind: str, index: int, label: str) -> Line2D:
    from matplotlib.lines import Line2D

    if kind == "curve":
        colour, marker = SERIES[index]
        style = "none" if label == "published" else "-"
        return Line2D([], [], color=colour, marker=marker, ls=style, label=label)
    colour = INK if kind == "bound" else MUTED
    style = {"bound": "--", "other": ":", "chance": "-"}[kind]
    return Line2D([], [], color=colour, ls=style, label=label)


def _recolour(figure: Figure) -> None:
    """Put real colours in the place of those that the page replaces."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    for line in figure.findobj(Line2D):
        line.set_color(_real(line.get_color()))
    for group in figure.findobj(LineCollection):
        group.set_color([_real(colour) for colour in group.get_color()])


def _real(colour: Any) -> Any:
    from matplotlib.colors import to_hex

    return _COLOURS.get(to_hex(colour), colour)
