"""One example as a picture: a PNG in a data address, or a small drawing of lines."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

__all__ = ["Picture", "limits", "line", "png", "polyline"]

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
