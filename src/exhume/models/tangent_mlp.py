"""Multilayer perceptron in the tangent-kernel parametrisation, for wide networks."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.models._activations import ACTIVATIONS, ActivationName
from exhume.models._init import fresh, require_classes
from exhume.models._normalise import check_normalisation, normalising
from exhume.problem.event import EventSpec
from exhume.problem.source import ModelSource

__all__ = ["TangentMlp"]


class Scale(nn.Module):
    """x / √n, the fan-in of the layer that follows; it has no parameters."""

    def __init__(self, fan_in: int) -> None:
        super().__init__()
        self.factor = 1 / math.sqrt(fan_in)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale."""
        return self.factor * inputs


@dataclass(frozen=True, kw_only=True)
class TangentMlp(ModelSource):
    """z_l = W_l h_{l−1} / √n_{l−1} + b_l with W ~ N(0, 1), b ~ N(0, s²); no last bias.

    As the widths grow, the features ∇_Θ f move less and less during training, and a
    training is the kernel regression with the tangent kernel at the start.

    Attributes:
        hidden: sizes of the hidden layers.
        activation: after every hidden layer.
        sharpness: β of ``softplus``, log(1 + exp(βz)) / β; 4 stays smooth and is near
            to ReLU. Other activations ignore it.
        bias_std: s of the hidden biases at first; they are trained in any case.
        mean: of a fixed normalisation of the inputs; empty for none.
        std: likewise.
    """

    hidden: tuple[int, ...] = (1000,)
    activation: ActivationName = "softplus"
    sharpness: float = 4.0
    bias_std: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    bibtex: ClassVar[str] = """\
@inproceedings{jacot2018neural,
  title = {Neural Tangent Kernel: Convergence and Generalization in Neural Networks},
  author = {Jacot, Arthur and Gabriel, Franck and Hongler, Cl{\\'e}ment},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2018}
}"""

    def __post_init__(self) -> None:
        if min(self.hidden, default=0) < 1:
            msg = f"hidden is {list(self.hidden)}; expected one or more sizes from 1"
            raise InvalidInput(msg)
        if not 0 < self.sharpness < math.inf:
            msg = f"sharpness is {self.sharpness}; expected a positive number"
            raise InvalidInput(msg)
        if not 0 <= self.bias_std < math.inf:
            msg = f"bias_std is {self.bias_std}; expected at least 0"
            raise InvalidInput(msg)
        check_normalisation(self.mean, self.std)

    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return the network with fresh weights, for images and vectors."""
        require_classes(classes)
        source = generator(key, "tangent-mlp")
        net = fresh(lambda: self._layers(spec, classes), source)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                std = self.bias_std if name.endswith("bias") else 1.0
                parameter.normal_(generator=source).mul_(std)
        return net

    def _layers(self, spec: EventSpec, classes: int) -> nn.Module:
        layers = normalising(self.mean, self.std)
        layers["flatten"] = nn.Flatten()
        size = spec.dimension
        for i, width in enumerate(self.hidden, start=1):
            layers[f"scale{i}"] = Scale(size)
            layers[f"fc{i}"] = nn.Linear(size, width)
            layers[f"act{i}"] = self._activation()
            size = width
        last = len(self.hidden) + 1
        layers[f"scale{last}"] = Scale(size)
        layers[f"fc{last}"] = nn.Linear(size, classes, bias=False)
        return nn.Sequential(OrderedDict(layers))

    def _activation(self) -> nn.Module:
        if self.activation == "softplus":
            return nn.Softplus(beta=self.sharpness)
        return ACTIVATIONS[self.activation]()
