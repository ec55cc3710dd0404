"""Signs of all inputs at once, where only the output gradient is released."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from exhume.formula import formula

__all__ = ["joint_signs"]

_MOST = 10  # inputs whose signs are tried in all combinations
_AMBIGUOUS = 1e-3  # relative difference of fits below which two signs are equal
_ROUNDING = 1e-6  # the same, relative to what is fitted
_RIDGE = 1e-12


@formula(
    r"\min_{s \in \{\pm 1\}^B,\, r} \Big\| \tfrac{\partial L}{\partial A_c} - "
    r"\textstyle\sum_i r_{ic}\, \sigma(s_i\, w \cdot x_i) \Big\|",
    reference="ours; chain rule for the output weights",
)
def joint_signs(
    values: Tensor, mirrored: Tensor, shown: Tensor
) -> tuple[Tensor, Tensor]:
    """Choose signs with which inputs explain the output gradient together.

    Alone an input does not: constants and even parts of all the others are taken for
    its own. Beyond ten inputs signs are turned one at a time while that helps; where σ
    is odd up to a constant they stay open.

    Args:
        values: σ(w_j·x_i), shape [m, B].
        mirrored: σ(−w_j·x_i), shape [m, B].
        shown: ∂L/∂A_cj, shape [m, K].

    Returns:
        ±1 and whether the other sign is ruled out, both of shape [B].
    """
    features = torch.cat([values, mirrored], dim=1)
    problem = features.T @ features, features.T @ shown, float(shown.square().sum())
    size = values.shape[1]
    if size <= _MOST:
        pairs = itertools.product((False, True), repeat=size)
        turned = torch.tensor(list(pairs))
        errors = _errors(turned, *problem)
        best = turned[int(errors.argmin())]
        other = torch.stack(
            [errors[turned[:, i] != best[i]].min() for i in range(size)]
        )
        least = errors.min()
    else:
        best, least, other = _turned_singly(size, problem)
    margin = _AMBIGUOUS * other + _ROUNDING * problem[2] ** 0.5
    return 1.0 - 2.0 * best.to(values), other - least > margin


def _turned_singly(
    size: int, problem: tuple[Tensor, Tensor, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Start from the larger one of both residuals that are fitted at once.

    Where σ is odd up to a constant they are not unique, and no sign is sure.
    """
    gram, cross, _ = problem
    both = torch.linalg.lstsq(gram, cross, driver="gelsd").solution.norm(dim=1)
    flips, best = torch.eye(size, dtype=torch.bool), both[size:] > both[:size]
    unique = int(torch.linalg.matrix_rank(gram, rtol=_ROUNDING)) == 2 * size
    least = _errors(best[None], *problem)[0]
    while True:
        other = _errors(best ^ flips, *problem)
        which = int(other.argmin())
        if not bool(other[which] < (1 - _ROUNDING) * least):
            return best, least, other if unique else least.expand(size)
        best, least = best ^ flips[which], other[which]


def _errors(turned: Tensor, gram: Tensor, cross: Tensor, total: float) -> Tensor:
    """Return what is left by the best residuals for patterns of signs, shape [P]."""
    size = turned.shape[1]
    at = torch.arange(size) + size * turned.long()
    own = gram[at.unsqueeze(2), at.unsqueeze(1)]
    ridge = _RIDGE * own.diagonal(dim1=1, dim2=2).mean(dim=1) + torch.finfo().tiny
    own = own + ridge[:, None, None] * torch.eye(size).to(own)
    explained = (cross[at] * torch.linalg.solve(own, cross[at])).sum(dim=(1, 2))
    return (total - explained).clamp_min(0).sqrt()
