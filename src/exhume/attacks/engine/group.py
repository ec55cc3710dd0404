"""Group consistency: seeds that are optimised together and pulled to their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.formula import formula

__all__ = ["consensus", "group_consistency", "match_order", "translation"]


@formula(
    r"\tfrac{1}{Bd} \lVert x - \mathbb{E}_g\, x_g \rVert_2^2",
    reference="Yin et al., CVPR 2021 (GradInversion), R_group, as a mean square",
)
def group_consistency(inputs: Tensor, mean: Tensor) -> Tensor:
    """Return the mean squared distance of a batch from the mean of all seeds.

    Args:
        inputs: x of one seed, shape [B, *event].
        mean: the consensus, same shape and units.
    """
    return (inputs - mean).square().mean()


def consensus(
    seeds: list[Tensor], leader: int, labels: Tensor | None, *, align: bool
) -> list[Tensor]:
    """Return the mean of all seeds, once for each seed in its own order of examples.

    Examples are matched to those of the leader, within equal labels, by least squared
    distance: the observation does not tell their order. With ``align`` every image is
    first shifted by whole pixels to where it correlates best with the leader's, and the
    mean is shifted back.

    Args:
        seeds: inputs of every seed, shape [B, *event] each.
        leader: the seed whose order and position count.
        labels: of the examples, the same for all seeds, or None to match freely.
        align: estimate translations (images only).
    """
    reference = seeds[leader]
    orders = [match_order(seed, reference, labels) for seed in seeds]
    moved, shifts = [], []
    for seed, order in zip(seeds, orders, strict=True):
        matched = seed[order]
        shift = translation(matched, reference) if align else None
        shifts.append(shift)
        moved.append(matched if shift is None else _roll(matched, shift))
    mean = torch.stack(moved).mean(dim=0)
    result = []
    for order, shift in zip(orders, shifts, strict=True):
        own = mean if shift is None else _roll(mean, -shift)
        result.append(own[torch.argsort(order)])
    return result


def match_order(
    inputs: Tensor, reference: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Return the order of examples that is nearest to a reference, shape [B].

    Args:
        inputs: shape [B, *event].
        reference: same shape.
        labels: shape [B, ...]; only examples with equal labels change places.
    """
    if labels is None:
        labels = torch.zeros(len(inputs))
    apart = _differ(labels)
    if not bool((~apart).triu(1).any()):
        return torch.arange(len(inputs), device=inputs.device)
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(reference.flatten(1), inputs.flatten(1)).square()
    cost = cost + (1 + cost.sum()) * apart.to(cost)
    order = linear_sum_assignment(cost.detach().cpu().double().numpy())[1]
    return torch.as_tensor(order, device=inputs.device)


def _differ(labels: Tensor) -> Tensor:
    rows = labels.reshape(len(labels), -1)
    return (rows[:, None] != rows[None, :]).any(dim=2)


def translation(images: Tensor, reference: Tensor) -> Tensor:
    """Return the whole-pixel shift that best lays each image on a reference, [B, 2].

    The peak of the circular cross-correlation, summed over channels.

    Args:
        images: shape [B, C, H, W].
        reference: same shape.
    """
    centred = images - images.mean(dim=(-2, -1), keepdim=True)
    anchor = reference - reference.mean(dim=(-2, -1), keepdim=True)
    spectrum = torch.fft.fft2(anchor) * torch.fft.fft2(centred).conj()
    correlation = torch.fft.ifft2(spectrum).real.sum(dim=1)
    peak = correlation.flatten(1).argmax(dim=1)
    width = images.shape[-1]
    return torch.stack([peak // width, peak % width], dim=1)


def _roll(images: Tensor, shifts: Tensor) -> Tensor:
    pairs = zip(images, shifts.tolist(), strict=True)
    return torch.stack([image.roll((a, b), (-2, -1)) for image, (a, b) in pairs])
