"""Count the labels of a batch: integer least squares on the bias gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.formula import formula

__all__ = ["expected_bias_gradient", "label_counts"]


@formula(
    r"\frac{\partial L}{\partial b} = \frac{1}{B} \sum_{\ell=1}^{K} c_\ell"
    r" \left(\mathbb{E}[p \mid y = \ell] - e_\ell\right)",
    reference="mean of p_i − e_{y_i} over the batch, grouped by label",
)
def expected_bias_gradient(counts: Tensor, conditional: Tensor) -> Tensor:
    """Return the bias gradient that label counts predict for the cross-entropy loss.

    Args:
        counts: c, shape [K], with Σ c = B.
        conditional: row ℓ is the mean softmax of examples of class ℓ, shape [K, K].

    Returns:
        shape [K]; its sum is 0.
    """
    counts = counts.to(conditional.dtype)
    return (counts @ conditional - counts) / counts.sum()


def label_counts(
    residual: Tensor,
    conditional: Tensor,
    batch_size: int,
    weights: Tensor,
    *,
    scaled: bool = False,
) -> Tensor:
    """Find the counts c whose predicted bias gradient is nearest to the observed one.

    minimise ‖s · expected_bias_gradient(c) − residual‖² over c ∈ ℕᴷ with Σ c = B:
    greedy allocation, then exchanges of one example between two classes while they
    help. That is exact where the mean softmax does not depend on the label, because the
    problem is separable then.

    Args:
        residual: observed mean of p − e_y, shape [K].
        conditional: mean softmax given the label, shape [K, K].
        batch_size: B.
        weights: trust in each entry of ``residual``, shape [K].
        scaled: the residual was multiplied by an unknown s ∈ (0, 1] (clipping), which
            is fitted too; otherwise s = 1.

    Returns:
        c, shape [K] int64.
    """
    root = weights.sqrt()
    one = torch.eye(len(residual), dtype=residual.dtype, device=residual.device)
    effects = (conditional - one) / batch_size * root
    target = residual * root
    if not scaled:
        return _allocate(effects, target, batch_size)
    # ‖p − e_y‖ ≤ √2 bounds the scale from below.
    least = max(float(torch.linalg.vector_norm(target)) / 2**0.5, 1e-12)
    best, error = None, float("inf")
    for s in torch.logspace(0, torch.log10(torch.tensor(min(least, 1.0))).item(), 40):
        counts = _allocate(effects, target / float(s), batch_size)
        found = _scaled_error(counts.to(effects) @ effects, target)
        if best is None or found < error - 1e-12:
            best, error = counts, found
    assert best is not None
    return best


def _scaled_error(predicted: Tensor, target: Tensor) -> float:
    """Return min over s ≥ 0 of ‖s · predicted − target‖²."""
    power = predicted.square().sum()
    s = ((predicted * target).sum() / power).clamp_min(0) if power > 0 else power
    return float((s * predicted - target).square().sum())


def _allocate(effects: Tensor, target: Tensor, batch_size: int) -> Tensor:
    """Minimise ‖c @ effects − target‖² over counts c with Σ c = B."""
    gram = effects @ effects.T
    power = gram.diagonal()
    counts = torch.zeros(len(effects), dtype=torch.int64, device=effects.device)
    slope = -(effects @ target)  # half the derivative of the error in each count
    for _ in range(batch_size):
        k = int((2 * slope + power).argmin())
        counts[k] += 1
        slope = slope + gram[k]
    for _ in range(4 * batch_size):
        gain = 2 * (slope[None] - slope[:, None]) + power[None] + power[:, None]
        gain = (gain - 2 * gram).masked_fill((counts == 0)[:, None], float("inf"))
        i, j = divmod(int(gain.argmin()), len(counts))
        if gain[i, j] >= -1e-9 * power.max():
            break
        counts[i] -= 1
        counts[j] += 1
        slope = slope + gram[j] - gram[i]
    return counts
