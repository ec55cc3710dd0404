"""Peak signal-to-noise ratio per example, in decibels, capped at 300 dB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from torch import Tensor

from exhume.formula import formula
from exhume.metrics.mse import mean_squared_errors
from exhume.problem.bound import NotApplicable
from exhume.problem.event import EventSpec
from exhume.problem.metric import Metric

__all__ = ["CAP_DB", "Psnr", "peak_signal_to_noise_ratios"]

#: PSNR of an exact copy. Double precision reaches about 320 dB, so nothing that is
#: distinguishable from the truth is cut, and no reduction meets an infinity.
CAP_DB: Final = 300.0


@formula(
    r"\mathrm{PSNR}_i = 10 \log_{10} \frac{p^2}{\max(\mathrm{MSE}_i,\, 10^{-30} p^2)}",
    reference="definition, with a floor under the error",
)
def peak_signal_to_noise_ratios(guess: Tensor, truth: Tensor, peak: float) -> Tensor:
    """Return the peak signal-to-noise ratio of each example.

    PSNR_i = 10 log₁₀(p² / max(MSE_i, 10⁻³⁰ p²)); the floor makes an exact copy 300 dB.

    Args:
        guess: x̂, shape [B, *event].
        truth: x, shape [B, *event].
        peak: p > 0, the peak-to-peak range of the data.

    Returns:
        shape [B], float64, in dB, at most :data:`CAP_DB`.
    """
    relative = mean_squared_errors(guess, truth) / peak**2
    return -10 * relative.clamp_min(10 ** (-CAP_DB / 10)).log10()


@dataclass(frozen=True, kw_only=True)
class Psnr(Metric):
    """Peak signal-to-noise ratio of each example by itself, never of a batch mean."""

    unit: ClassVar[str] = "dB"
    label: ClassVar[str] = "PSNR"
    higher_is_better: ClassVar[bool] = True

    def __call__(
        self, guess: Tensor, truth: Tensor, spec: EventSpec
    ) -> Tensor | NotApplicable:
        """Score each example of bounded data."""
        if spec.peak is None:
            return NotApplicable("PSNR needs data with a known range; this has none")
        return peak_signal_to_noise_ratios(guess, truth, spec.peak)
