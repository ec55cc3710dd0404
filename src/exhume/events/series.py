"""A time series: T steps of C channels, in the order of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from exhume.problem.event import EventSpec

if TYPE_CHECKING:
    import numpy as np

    from exhume.report.pictures import Picture

__all__ = ["Series"]

# Space above and below the truth, as a share of its range: estimates may leave it.
_MARGIN = 0.15


@dataclass(frozen=True)
class Series(EventSpec):
    """A series of shape [T, C], such as what a forecaster reads.

    Attributes:
        shape: steps of time T, and channels C.
        low: smallest value, or None if unbounded.
        high: largest value, or None if unbounded.
    """

    axes: ClassVar[int] = 2
    error: ClassVar[str] = "smape"
    bibtex: ClassVar[str] = """\
@inproceedings{meijer2025tsinverse,
  title = {{TS-Inverse}: A gradient inversion attack tailored for federated time
           series forecasting models},
  author = {Meijer, Caspar and Huang, Jiyue and Sharma, Shreshtha and
            Lazovik, Elena and Chen, Lydia Y.},
  booktitle = {IEEE Conference on Secure and Trustworthy Machine Learning (SaTML)},
  year = {2025}
}"""

    def draw(self, example: np.ndarray, truth: np.ndarray) -> Picture:
        """Draw every channel over time, an estimate above the truth.

        All channels have one scale, the truth's own range; what leaves it is cut.
        """
        from exhume.report.pictures import Picture, polyline

        low, high = float(truth.min()), float(truth.max())
        margin = _MARGIN * (high - low) or 0.5  # a constant series is drawn as a line
        ends = low - margin, high + margin
        lines = [polyline(channel, *ends, "truth") for channel in truth.T]
        if example is not truth:
            lines += [polyline(channel, *ends, "guess") for channel in example.T]
        return Picture(svg="\n".join(lines))
