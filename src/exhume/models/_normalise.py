"""A fixed normalisation as the first layer, for data that come in natural units."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from exhume.problem.task import Normalisation

__all__ = ["Normalise", "check_normalisation", "normalising"]


class Normalise(nn.Module):
    """(x − mean) / std, channel by channel; it has no parameters.

    Args:
        fixed: the map.
    """

    def __init__(self, fixed: Normalisation) -> None:
        super().__init__()
        self.fixed = fixed

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the map."""
        return self.fixed(inputs)


def check_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise unless both are empty, or means go with as many positive stds.

    Raises:
        InvalidInput: they do not go together.
    """
    if mean or std:
        Normalisation(mean, std)


def normalising(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> OrderedDict[str, nn.Module]:
    """Return the layers that a network starts with: one, or none.

    Args:
        mean: one value per channel, or one for all; empty for none.
        std: likewise, positive.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if mean:
        layers["normalise"] = Normalise(Normalisation(mean, std))
    return layers
