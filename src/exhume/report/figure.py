"""Matplotlib figures as inline SVG that follows the page's fonts and colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exhume.report.words import ten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["INK", "MUTED", "SERIES", "Legend", "Plot", "canvas", "log_axis", "svg"]

# Placeholders: matplotlib draws with them, the page replaces them by its own colours,
# so that one SVG serves the light and the dark scheme.
INK, MUTED = "#010101", "#020202"
#: colour and marker of the attacks, in order; the page holds the colours
SERIES = tuple((f"#0300{i:02x}", marker) for i, marker in enumerate("osD^vPX*"))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    **{colour: f"var(--series-{i})" for i, (colour, _) in enumerate(SERIES)},
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
}

#: markers of the attacks as SVG paths, for the legend
_SHAPES = {
    "o": "M17 3a4 4 0 1 0 .01 0z",
    "s": "M13 3h8v8h-8z",
    "D": "M17 2l5 5-5 5-5-5z",
    "^": "M17 2l5 9h-10z",
    "v": "M17 12l5-9h-10z",
    "P": "M15 2h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "X": "M13 2l4 3 4-3 1 2-3 3 3 3-1 2-4-3-4 3-1-2 3-3-3-3z",
    "*": "M17 2l1.5 3.5 4 .3-3 2.5 1 3.7-3.500-2-3.500 2 1-3.700-3-2.500 4-.3z",
}


@dataclass(frozen=True)
class Plot:
    """A drawn figure: title, SVG text, and what it shows in words."""

    title: str
    svg: str
    alt: str


@dataclass(frozen=True)
class Legend:
    """One line of a legend: ``kind`` is curve, chance, other or bound."""

    kind: str
    index: int
    marker: str
    label: str

    @property
    def shape(self) -> str:
        """The marker as an SVG path around (17, 7)."""
        return _SHAPES[self.marker]


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Open a figure of some inches with one pair of axes, without touching pyplot."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=True, axis="y")
        axes.set_axisbelow(True)
        yield figure, axes


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the y axis logarithmic around positive values, with labels such as 10⁻³."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(min(values) / 3, max(values) * 3)
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def _power(value: float) -> str:
    return ten(round(math.log10(value))) if value > 0 else "0"


def svg(figure: Figure, name: str) -> str:
    """Render a figure as an SVG element whose ids start with ``name``.

    The same figure gives the same text: no date, no random ids, no addresses.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    return text.replace("<svg ", '<svg class="plot" aria-hidden="true" ', 1)
