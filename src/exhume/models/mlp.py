"""Multilayer perceptron on flattened examples."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Self

from torch import nn

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.models._activations import ACTIVATIONS, ActivationName
from exhume.models._init import fresh, require_classes
from exhume.problem.event import EventSpec
from exhume.problem.source import ModelSource

__all__ = ["Mlp"]


@dataclass(frozen=True, kw_only=True)
class Mlp(ModelSource):
    """Linear layers with an activation between them; images are flattened.

    Attributes:
        hidden: sizes of the hidden layers; empty gives a linear model.
        activation: after every hidden layer.
        bias: whether the layers have biases; with one in the first layer, a single
            example can be read off its gradient in closed form.
    """

    hidden: tuple[int, ...] = (256,)
    activation: ActivationName = "relu"
    bias: bool = True

    def __post_init__(self) -> None:
        if min(self.hidden, default=1) < 1:
            msg = f"hidden is {list(self.hidden)}; expected sizes of at least 1"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return two narrow layers."""
        return (cls(hidden=(16, 8)),)

    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return the network with fresh weights, for images and vectors."""
        require_classes(classes)
        return fresh(lambda: self._layers(spec, classes), generator(key, "mlp"))

    def _layers(self, spec: EventSpec, classes: int) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        size = spec.dimension
        for i, width in enumerate(self.hidden, start=1):
            layers[f"fc{i}"] = nn.Linear(size, width, bias=self.bias)
            layers[f"act{i}"] = ACTIVATIONS[self.activation]()
            size = width
        layers[f"fc{len(self.hidden) + 1}"] = nn.Linear(size, classes, bias=self.bias)
        return nn.Sequential(layers)
