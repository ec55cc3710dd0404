"""Signs from the sum of all residuals, which an output layer shows besides inputs."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from exhume.attacks.two_layer.locate import Located
from exhume.attacks.two_layer.recovery import Recovered
from exhume.formula import formula

__all__ = ["residual_total", "signs_of_total"]

_MOST = 12  # examples whose signs are tried in all combinations
_WORSE = 3.0  # times as large an error as the best one counts as ruled out
_LEAST = 0.01  # share of a residual by which it has to be larger at the very least


def residual_total(located: Located, found: Recovered) -> Tensor | None:
    """Return Σ_i r_ic as the output layer shows it, shape [K]; None if it does not.

    It is ∂L/∂c for biases c that are trained. Otherwise, where σ is odd but for its
    value at 0, the odd part of ∂L/∂A_cj = Σ_i r_ic σ(w_j·x_i) does not depend on the
    signs (those of x and r change together), and what is left is σ(0) Σ_i r_ic.

    Args:
        located: the last two layers.
        found: an estimate whose signs are open.
    """
    if located.output_bias_gradient is not None:
        return located.output_bias_gradient.double()
    view, sigma = located.view, located.view.sigma
    at_zero = float(sigma.value(torch.zeros((), dtype=torch.float64)))
    if view.output_gradient is None or not sigma.odd or abs(at_zero) < 1e-6:
        return None
    total = torch.zeros(len(view.output), dtype=torch.float64)
    for block in view.chunks():
        arguments = view.weight[block].double() @ found.inputs.T
        odd = (sigma.value(arguments) - at_zero) @ found.residuals
        total += (view.output_gradient[:, block].double().T - odd).sum(dim=0)
    return total / (view.width * at_zero)


@formula(
    r"\min_{s \in \{\pm 1\}^B} \Big\| \textstyle\sum_i s_i \hat r_i - R \Big\|,\quad "
    r"R = \partial L/\partial c = \sum_i r_i",
    reference="ours; chain rule for the biases of the last layer",
)
def signs_of_total(
    residuals: Tensor,
    total: Tensor | None,
    negative: int | None = None,
    *,
    accuracy: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the signs whose residuals have a known sum, and which of them are sure.

    Args:
        residuals: ± r, shape [B, K].
        total: R, shape [K]; None if it is not known.
        negative: how many rows have a first entry below 0, as known labels of two
            classes tell; None if it is not known.
        accuracy: relative error of the residuals, about.

    Returns:
        ±1 and whether the other sign is ruled out, both of shape [B].
    """
    size = len(residuals)
    if size > _MOST:
        return torch.ones(size).to(residuals), torch.zeros(size, dtype=torch.bool)
    patterns = torch.tensor(
        list(itertools.product((1.0, -1.0), repeat=size)), dtype=torch.float64
    )
    signed = patterns.unsqueeze(2) * residuals.double()
    errors = torch.zeros(len(patterns), dtype=torch.float64)
    if total is not None:
        errors = (signed.sum(dim=1) - total.double()).norm(dim=1)
    if negative is not None:
        allowed = (signed[:, :, 0] < 0).sum(dim=1) == negative
        if bool(allowed.any()):
            errors = errors.where(allowed, torch.inf)
    best = int(errors.argmin())
    other = torch.stack(
        [errors[patterns[:, i] != patterns[best, i]].min() for i in range(size)]
    )
    sizes = residuals.double().norm(dim=1)
    least = _WORSE * errors[best] + max(_LEAST, accuracy) * sizes
    return patterns[best].to(residuals), other > least
