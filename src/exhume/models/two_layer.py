"""Two-layer network f(x) = A σ(W x) with Gaussian weights, as theory assumes it."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.models._activations import ACTIVATIONS, ActivationName
from exhume.models._init import fresh, require_classes
from exhume.problem.event import EventSpec
from exhume.problem.source import ModelSource

__all__ = ["TwoLayer"]


@dataclass(frozen=True, kw_only=True)
class TwoLayer(ModelSource):
    """Hidden layer W ~ N(0, s²) of shape [m, d], output layer A ~ N(0, t²) of [K, m].

    Attributes:
        width: m ≥ 1, number of hidden units.
        activation: σ.
        bias: whether both layers have biases, drawn like the weights beside them.
        hidden_std: s > 0; None takes 1/√d, which keeps Wx of the order of x. The paper
            takes 1.
        output_std: t > 0; None takes 1/√m.
    """

    width: int = 256
    activation: ActivationName = "tanh"
    bias: bool = False
    hidden_std: float | None = None
    output_std: float | None = None

    bibtex: ClassVar[str] = """\
@inproceedings{wang2023reconstructing,
  title = {Reconstructing Training Data from Model Gradient, Provably},
  author = {Wang, Zihan and Lee, Jason D. and Lei, Qi},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year = {2023}
}"""

    def __post_init__(self) -> None:
        if self.width < 1:
            msg = f"width is {self.width}; expected at least 1"
            raise InvalidInput(msg)
        for name in ("hidden_std", "output_std"):
            std = getattr(self, name)
            if std is not None and not 0 < std < float("inf"):
                msg = f"{name} is {std}; expected a positive number"
                raise InvalidInput(msg)

    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return the network with fresh weights, for images and vectors."""
        require_classes(classes)
        source = generator(key, "two-layer")
        net = fresh(lambda: self._layers(spec, classes), source)
        hidden, output = net.get_submodule("hidden"), net.get_submodule("output")
        _normal_(hidden, self.hidden_std or 1 / math.sqrt(spec.dimension), source)
        _normal_(output, self.output_std or 1 / math.sqrt(self.width), source)
        return net

    def _layers(self, spec: EventSpec, classes: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                hidden=nn.Linear(spec.dimension, self.width, bias=self.bias),
                act=ACTIVATIONS[self.activation](),
                output=nn.Linear(self.width, classes, bias=self.bias),
            )
        )


def _normal_(layer: nn.Module, std: float, source: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, std, generator=source)
