"""Arithmetic on images before they become examples: grey, area resize, crops."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from exhume.formula import formula

__all__ = ["centre_square", "grid", "luminance", "resized", "short_side_to", "tensor"]


def tensor(image: np.ndarray) -> Tensor:
    """Turn an image [H, W] or [H, W, C] into a tensor [C, H, W] in [0, 1].

    Args:
        image: uint8, uint16 or bool (scaled by the type's maximum).
    """
    scale = 1 if image.dtype == np.bool_ else np.iinfo(image.dtype).max
    planes = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    return torch.from_numpy(planes.astype(np.float64) / scale).float()


@formula(
    r"Y = 0.2125\, R + 0.7154\, G + 0.0721\, B",
    reference="ITU-R BT.709, as in scikit-image",
)
def luminance(image: Tensor) -> Tensor:
    """Return the grey image Y = .2125 R + .7154 G + .0721 B.

    Args:
        image: shape [3, H, W], or [1, H, W], which is returned as it is.

    Returns:
        shape [1, H, W], in the range of the input.
    """
    if len(image) == 1:
        return image
    weights = image.new_tensor([0.2125, 0.7154, 0.0721])
    return torch.einsum("c,chw->hw", weights, image)[None]


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Shrink an image [C, H, W] by averaging the area under each new pixel."""
    return F.interpolate(image[None], (height, width), mode="area")[0]


def short_side_to(image: Tensor, side: int) -> Tensor:
    """Shrink an image so that its shorter side has ``side`` pixels."""
    height, width = image.shape[-2:]
    short = min(height, width)
    return resized(image, round(height * side / short), round(width * side / short))


def centre_square(image: Tensor, side: int | None = None) -> Tensor:
    """Cut the central square of a given side, or the largest one."""
    height, width = image.shape[-2:]
    side = min(height, width) if side is None else side
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


def grid(image: Tensor, size: int, stride: int) -> Tensor:
    """Cut square crops on a grid, row by row.

    Returns:
        shape [N, C, size, size].
    """
    crops = image.unfold(1, size, stride).unfold(2, size, stride)
    return crops.permute(1, 2, 0, 3, 4).reshape(-1, len(image), size, size).contiguous()
