"""What a page draws: one example as a picture, and figures as inline SVG."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exhume.report.words import ten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "INK",
    "MUTED",
    "SERIES",
    "Legend",
    "Picture",
    "Plot",
    "canvas",
    "limits",
    "line",
    "log_axis",
    "png",
    "polyline",
    "svg",
]

#: size of a drawing, in units of its own
_WIDTH, _HEIGHT = 120.0, 60.0
# Space above and below the truth's own range, which estimates may leave.
_MARGIN = 0.08
_MOST_POINTS = 240


@dataclass(frozen=True)
class Picture:
    """One example as the page shows it: what an event draws, and what is said of it.

    Attributes:
        alt: what it is, for those who do not see it.
        captions: scores, one line each; or why there is no picture.
        png: data address of an image, or "".
        svg: elements of a drawing in a box of 120 × 60 units, or ""; the page colours
            the classes ``truth`` and ``guess``.
        width: pixels of the original image.
        best: the smallest error of its row, and better than every guess.
        reason: why there is no picture, in a sentence, or "".
    """

    alt: str = ""
    captions: tuple[str, ...] = ()
    png: str = ""
    svg: str = ""
    width: int = 0
    best: bool = False
    reason: str = ""

    @property
    def drawn(self) -> bool:
        """Whether there is a picture."""
        return bool(self.png or self.svg)

    def alone(self) -> str:
        """Return the drawing as an SVG file of its own."""
        style = "polyline { fill: none; stroke: #0072b2; stroke-width: 1 }"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} '
            f'{_HEIGHT:g}"><style>{style}</style>\n{self.svg}\n</svg>\n'
        )

    def across(self, target: int) -> int:
        """Return the width on the page: a whole multiple near ``target`` pixels."""
        return self.width * max(1, round(target / self.width))


def limits(truth: np.ndarray) -> tuple[float, float]:
    """Return the values shown as black and white: 0 and 1, or the truth's own range."""
    low, high = float(truth.min()), float(truth.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1.0


def png(example: np.ndarray, black: float, white: float) -> str:
    """Write an image [C, H, W] as a PNG data address, one pixel per pixel.

    Channels other than one or three are averaged to gray.
    """
    from PIL import Image

    scaled = (np.asarray(example, dtype=np.float64) - black) / (white - black)
    levels = np.rint(255 * np.nan_to_num(scaled).clip(0, 1)).astype(np.uint8)
    if len(levels) != 3:
        levels = np.rint(levels.mean(axis=0, keepdims=True)).astype(np.uint8)
    pixels = levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def line(example: np.ndarray, truth: np.ndarray) -> Picture:
    """Draw the numbers of an example in their order, over those of the truth.

    Args:
        example: of any shape; drawn only once if it is the truth itself.
        truth: of the same shape; its range is the scale.
    """
    drawn = [("truth", truth), ("guess", example)][: 1 if example is truth else 2]
    low, high = limits(truth)
    margin = _MARGIN * (high - low)
    ends = low - margin, high + margin
    return Picture(svg="\n".join(polyline(v.reshape(-1), *ends, n) for n, v in drawn))


def polyline(values: np.ndarray, low: float, high: float, name: str) -> str:
    """Return numbers as an SVG polyline from left to right; its class is ``name``.

    Args:
        values: shape [n]; long ones are thinned.
        low: value at the lower edge of the box; what is below is cut.
        high: value at the upper edge.
        name: ``truth`` or ``guess``, which the page colours.
    """
    step = -(-len(values) // _MOST_POINTS)
    kept = np.nan_to_num(values[::step].astype(np.float64))
    x = np.linspace(2, _WIDTH - 2, len(kept)) if len(kept) > 1 else [_WIDTH / 2]
    y = _HEIGHT * (1 - ((kept - low) / (high - low)).clip(0, 1))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline class="{name}" points="{points}"/>'


# --- figures --------------------------------------------------------------------------

# Placeholders: matplotlib draws with them, the page replaces them by its own colours,
# so that one SVG serves the light and the dark scheme.
INK, MUTED = "#010101", "#020202"
#: colour and marker of the attacks, in order; the page holds the colours
SERIES = (
    ("#030000", "o"),
    ("#030001", "s"),
    ("#030002", "D"),
    ("#030003", "^"),
    ("#030004", "v"),
    ("#030005", "P"),
    ("#030006", "X"),
    ("#030007", "*"),
)
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
    axes.yaxis.set_major_formatter(FuncFormatter(_power))


def _power(value: float, _: int | None) -> str:
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
    text = text.replace(INK, "var(--ink)").replace(MUTED, "var(--muted)")
    for i, (colour, _) in enumerate(SERIES):
        text = text.replace(colour, f"var(--series-{i})")
    return text.replace("<svg ", '<svg class="plot" aria-hidden="true" ', 1)
