"""Closed forms for z in ∂L/∂W = δ zᵀ, ∂L/∂b = δ: the input of a biased linear layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.formula import formula

__all__ = [
    "Isolated",
    "class_split",
    "input_of_linear_layer",
    "isolated_inputs",
    "rank_one_input",
]

_SWEEPS = 200


@formula(
    r"\hat z = \frac{\sum_k \partial_{b_k} L \; \partial_{W_k} L}"
    r"{\sum_k (\partial_{b_k} L)^2}",
    reference="least squares over the rows of Phong et al. (2018), Section III; "
    "exactness: Geiping et al. (2020), Proposition 3.1",
)
def input_of_linear_layer(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """Return the input of a biased linear layer from its gradient, for one example.

    Exact if one example alone makes the gradient; a weighted mean of inputs otherwise,
    with weights that may be negative.

    Args:
        weight_gradient: ∂L/∂W, shape [m, d].
        bias_gradient: ∂L/∂b, shape [m], not all zero.

    Returns:
        ẑ, shape [d]; not finite if the bias gradient vanishes.
    """
    return bias_gradient @ weight_gradient / bias_gradient.square().sum()


@formula(
    r"\min_{\delta, z} \; \sum_{kj} w_{kj}"
    r" \left([\partial_W L \mid \partial_b L]_{kj} - \delta_k [z, 1]_j\right)^2",
    reference="maximum likelihood of a rank-one matrix under independent Gaussian "
    "noise; weighted low-rank approximation, Srebro and Jaakkola (2003)",
)
def rank_one_input(
    weight_gradient: Tensor,
    bias_gradient: Tensor,
    weight_trust: Tensor,
    bias_trust: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fit the input of a linear layer to a noisy or pruned gradient of one example.

    Alternating least squares. With all trust equal to 1 and no noise it is exact, and
    so it is where every coordinate keeps one entry in a row that is tied to a kept
    bias.

    Args:
        weight_gradient: ∂L/∂W, shape [m, d].
        bias_gradient: ∂L/∂b, shape [m].
        weight_trust: inverse variance, 0 where void, shape [m, d].
        bias_trust: likewise, shape [m].

    Returns:
        ẑ, shape [d], and a mask of the coordinates that the gradient determines.
    """
    matrix = torch.cat([weight_gradient, bias_gradient[:, None]], dim=1)
    trust = torch.cat([weight_trust, bias_trust[:, None]], dim=1)
    tiny = torch.finfo(matrix.dtype).tiny
    delta = bias_gradient * (bias_trust > 0)
    z = matrix.new_zeros(matrix.shape[1])
    for _ in range(_SWEEPS):
        power = delta.square() @ trust
        new = (delta @ (trust * matrix)) / power.clamp_min(tiny)
        done = torch.linalg.vector_norm(new - z) <= 8 * torch.finfo(
            z.dtype
        ).eps * torch.linalg.vector_norm(new)
        z = new
        if bool(done):
            break
        delta = (trust * matrix) @ z / (trust @ z.square()).clamp_min(tiny)
    determined = (delta.square() @ trust > 0) & (z[-1] != 0)
    return z[:-1] / z[-1], determined[:-1] & torch.isfinite(z[:-1] / z[-1])


@dataclass(frozen=True, eq=False)
class Isolated:
    """An input that several rows of the gradient agree on, and these rows."""

    input: Tensor
    rows: Tensor


def isolated_inputs(weight_gradient: Tensor, bias_gradient: Tensor) -> list[Isolated]:
    """Find inputs of a batch that are alone in some rows (ReLU units that they own).

    Row k gives ∂_{W_k} L / ∂_{b_k} L, a weighted mean of the inputs that are active in
    it. Rows that only one example activates give that example, all the same; means of
    several differ from row to row. So equal quotients are exact examples (with two
    classes or one output means may agree too: verify them).

    Args:
        weight_gradient: ∂L/∂W, shape [m, d].
        bias_gradient: ∂L/∂b, shape [m].

    Returns:
        groups of at least two rows, the largest first.
    """
    size = bias_gradient.abs()
    eps = torch.finfo(size.dtype).eps
    active = (size > eps**0.75 * size.max()).nonzero().flatten()
    if len(active) < 2:
        return []
    quotients = weight_gradient[active] / bias_gradient[active, None]
    # Equal rows are neighbours once sorted along any direction.
    direction = torch.linspace(-1, 1, quotients.shape[1]).to(quotients).sin() + 0.5
    order = (quotients @ direction).argsort()
    gap = torch.linalg.vector_norm(quotients[order].diff(dim=0), dim=1)
    length = torch.linalg.vector_norm(quotients[order], dim=1)
    new_group = gap > 4 * eps**0.5 * length[1:]
    group = torch.cat([new_group.new_zeros(1), new_group]).cumsum(0)
    found = []
    for index in group.unique():
        rows = active[order[group == index]]
        if len(rows) > 1:
            z = input_of_linear_layer(weight_gradient[rows], bias_gradient[rows])
            found.append(Isolated(z, rows))
    return sorted(found, key=lambda f: -len(f.rows))


def class_split(
    weight_gradient: Tensor,
    bias_gradient: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Split the gradient of a linear softmax classifier into one input per example.

    ∂L/∂W = δᵀ z / B with δ_i = softmax(W z_i + b) − e_{y_i}: solve for z with δ fixed,
    then update δ, until they agree. Examples that share a label come out as their mean.

    Args:
        weight_gradient: ∂L/∂W, shape [K, d], up to a factor.
        bias_gradient: ∂L/∂b, shape [K], up to the same factor.
        labels: y, shape [B].
        weight: W, shape [K, d].
        bias: b, shape [K].

    Returns:
        z, shape [B, d].
    """
    classes, members = labels.unique(return_inverse=True)
    share = torch.bincount(members).to(weight) / len(labels)
    truth = torch.nn.functional.one_hot(classes, len(bias)).to(weight)
    p = (bias + 0 * truth).softmax(-1)
    best, error = torch.zeros(len(classes), weight.shape[1]).to(weight), torch.inf
    for _ in range(_SWEEPS):
        delta = (p - truth) * share[:, None]
        predicted = delta.sum(dim=0)
        factor = (predicted @ bias_gradient) / predicted.square().sum()
        z = torch.linalg.lstsq(factor * delta.T, weight_gradient).solution
        p = (z @ weight.T + bias).softmax(-1)
        delta = (p - truth) * share[:, None]
        misfit = float(
            (factor * delta.T @ z - weight_gradient).square().sum()
            + (factor * delta.sum(dim=0) - bias_gradient).square().sum()
        )
        if not misfit < error:
            break
        best, error = z, misfit
    return best[members]
