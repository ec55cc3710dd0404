"""One example as a picture: a PNG in a data address, or a small drawing of a vector."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Picture", "is_image", "limits", "png", "vector"]

_WIDTH, _HEIGHT = 120.0, 60.0
_MOST_POINTS = 240


@dataclass(frozen=True)
class Picture:
    """One example as the page shows it.

    Attributes:
        alt: what it is, for those who do not see it.
        captions: scores, one line each; or why there is no picture.
        png: data address of an image, or "".
        lines: polylines of a vector, or empty.
        original: it is the truth itself.
        width: pixels of the original image.
        best: the smallest error of its row, and better than every guess.
        reason: why there is no picture, in a sentence, or "".
    """

    alt: str
    captions: tuple[str, ...] = ()
    png: str = ""
    lines: dict[str, str] = field(default_factory=dict)
    original: bool = False
    width: int = 0
    best: bool = False
    reason: str = ""

    def across(self, target: int) -> int:
        """Return the width on the page: a whole multiple near ``target`` pixels."""
        return self.width * max(1, round(target / self.width))


def is_image(example: np.ndarray) -> bool:
    """Say whether one example is an image, of shape [C, H, W]."""
    return example.ndim == 3


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


def vector(example: np.ndarray, truth: np.ndarray) -> dict[str, str]:
    """Draw a vector over the truth: two polylines in a box of 120 × 60 units.

    Returns:
        "truth" and "guess", each the points of an SVG polyline, on the truth's scale.
    """
    low, high = limits(truth)
    margin = 0.08 * (high - low)
    return {
        "truth": _points(truth.reshape(-1), low - margin, high + margin),
        "guess": _points(example.reshape(-1), low - margin, high + margin),
    }


def _points(vector: np.ndarray, low: float, high: float) -> str:
    step = -(-len(vector) // _MOST_POINTS)
    kept = np.nan_to_num(vector[::step].astype(np.float64))
    x = np.linspace(2, _WIDTH - 2, len(kept)) if len(kept) > 1 else [_WIDTH / 2]
    y = _HEIGHT * (1 - ((kept - low) / (high - low)).clip(0, 1))
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
