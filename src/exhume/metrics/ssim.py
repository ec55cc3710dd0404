"""Structural similarity of images (Wang et al. 2004), Gaussian window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from exhume.formula import formula
from exhume.problem.bound import NotApplicable
from exhume.problem.event import EventSpec
from exhume.problem.metric import Metric

__all__ = ["Ssim", "structural_similarities"]

_SIGMA: Final = 1.5
_RADIUS: Final = 5
_LEAST_SIDE: Final = 3


@formula(
    r"\mathrm{SSIM} = \operatorname{mean} \frac{(2 \mu_{\hat x} \mu_x + c_1)"
    r"(2 \sigma_{\hat x x} + c_2)}{(\mu_{\hat x}^2 + \mu_x^2 + c_1)"
    r"(\sigma_{\hat x}^2 + \sigma_x^2 + c_2)}, \quad c_k = (K_k p)^2",
    reference="Wang, Bovik, Sheikh and Simoncelli (2004), Eq. 13",
)
def structural_similarities(guess: Tensor, truth: Tensor, peak: float) -> Tensor:
    """Return the mean structural similarity of each image.

    Local means, variances and covariances are weighted by a Gaussian window of 11 × 11
    pixels, σ = 1.5, K₁ = .01, K₂ = .03, as published; channels are averaged. On an
    image with a side n below 11 the window shrinks to the largest odd size ≤ n and σ in
    proportion, so such values compare among themselves only.

    Args:
        guess: x̂, shape [B, C, H, W], H, W ≥ 3.
        truth: x, same shape.
        peak: p > 0, the peak-to-peak range of the data.

    Returns:
        shape [B], float64, in [−1, 1].
    """
    from skimage.metrics import structural_similarity

    radius = min(_RADIUS, (min(truth.shape[-2:]) - 1) // 2)
    values: list[Any] = []
    for one, true in zip(guess, truth, strict=True):
        value = structural_similarity(
            one.detach().double().cpu().numpy(),
            true.detach().double().cpu().numpy(),
            data_range=peak,
            channel_axis=0,
            gaussian_weights=True,
            sigma=_SIGMA * radius / _RADIUS,
            use_sample_covariance=False,
            win_size=2 * radius + 1,
        )
        values.append(value)
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Ssim(Metric):
    """Mean structural similarity, computed by scikit-image."""

    label: ClassVar[str] = "SSIM"
    higher_is_better: ClassVar[bool] = True
    bibtex: ClassVar[str] = """\
@article{wang2004image,
  title = {Image quality assessment: from error visibility to structural similarity},
  author = {Wang, Zhou and Bovik, Alan C. and Sheikh, Hamid R. and
            Simoncelli, Eero P.},
  journal = {IEEE Transactions on Image Processing},
  volume = {13},
  number = {4},
  pages = {600--612},
  year = {2004}
}"""

    def __call__(
        self, guess: Tensor, truth: Tensor, spec: EventSpec
    ) -> Tensor | NotApplicable:
        """Score each image."""
        if spec.grid is None:
            return NotApplicable(f"SSIM compares images; this is a {spec.kind}")
        if spec.peak is None:
            return NotApplicable("SSIM needs images with a known range; this has none")
        if min(spec.shape[-2:]) < _LEAST_SIDE:
            side = f"{spec.shape[-2]} x {spec.shape[-1]}"
            return NotApplicable(f"SSIM needs at least 3 x 3 pixels; this has {side}")
        return structural_similarities(guess, truth, spec.peak)
