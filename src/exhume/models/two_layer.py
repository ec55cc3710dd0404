"""Two-layer network f(x) = A σ(W x) with Gaussian weights, as theory assumes it."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Self

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
        output_constant: c, added to every output and not trained (to a bias that is
            trained where there is one): the bias trick of a server that chooses the
            weights. Above twice the largest target, residuals of the mean squared error
            have one sign and similar sizes; the cross-entropy does not see it.

    Raises:
        InvalidInput: a number is out of range.
    """

    width: int = 256
    activation: ActivationName = "tanh"
    bias: bool = False
    hidden_std: float | None = None
    output_std: float | None = None
    output_constant: float = 0.0

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
        if not math.isfinite(self.output_constant):
            msg = f"output_constant is {self.output_constant}; expected a finite number"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a narrow network."""
        return (cls(width=16),)

    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return the network with fresh weights, for images and vectors."""
        require_classes(classes)
        source = generator(key, "two-layer")
        net = fresh(lambda: self._layers(spec, classes), source)
        hidden, output = net.get_submodule("hidden"), net.get_submodule("output")
        _normal_(hidden, self.hidden_std or 1 / math.sqrt(spec.dimension), source)
        _normal_(output, self.output_std or 1 / math.sqrt(self.width), source)
        assert isinstance(output, nn.Linear)
        if self.output_constant != 0:
            _add_constant(output, self.output_constant)
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


def _add_constant(layer: nn.Linear, constant: float) -> None:
    if not isinstance(layer.bias, nn.Parameter):
        zeros = layer.weight.new_zeros(len(layer.weight))
        layer.bias = nn.Parameter(zeros, requires_grad=False)
    with torch.no_grad():
        layer.bias.add_(constant)
