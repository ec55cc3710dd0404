"""Outputs and targets that estimated inputs and residuals imply."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.attacks.two_layer.locate import Located
from exhume.formula import formula

__all__ = ["implied_targets", "outputs"]


def outputs(located: Located, values: Tensor) -> Tensor:
    """Return f = A σ(W h + b) + c of estimated features, shape [B, K].

    Args:
        located: the last two layers.
        values: h, shape [B, d], or [B, d + 1] with the column of the hidden bias.
    """
    view, weight = located.view, located.view.weight[slice(None)].double()
    if values.shape[1] < weight.shape[1]:
        column = values.new_full((len(values), 1), located.bias_column or 0.0)
        values = torch.cat([values, column], dim=1)
    arguments = values @ weight.T
    if view.offset is not None:
        arguments = arguments + view.offset.double()
    hidden = view.sigma.value(arguments)
    return hidden @ view.output.T.double() + located.output_bias.double()


@formula(
    r"\hat y_i = f(\hat x_i) - \tfrac{BK}{2}\, \hat r_i",
    reference="gradient of the mean squared error; Wang, Lee and Lei (AISTATS 2023)",
)
def implied_targets(located: Located, values: Tensor, residuals: Tensor) -> Tensor:
    """Return the targets at which estimates have their residuals, shape [B, K].

    Args:
        located: the last two layers.
        values: ĥ, shape [B, d].
        residuals: r̂ = ∂L/∂f of the mean squared error, shape [B, K].
    """
    return outputs(located, values) - residuals * residuals.numel() / 2
