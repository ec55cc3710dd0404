"""Homogeneous ReLU network with a small first layer, as theory of margins assumes."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.models._init import fresh, require_classes
from exhume.models._normalise import check_normalisation, normalising
from exhume.problem.event import EventSpec
from exhume.problem.source import ModelSource

__all__ = ["HomogeneousMlp"]


@dataclass(frozen=True, kw_only=True)
class HomogeneousMlp(ModelSource):
    """ReLU layers with a bias in the first alone, whose weights start at N(0, s²).

    f(x; cΘ) = c^L f(x; Θ). Trained for long, its weights become a combination of
    gradients at the training data (Lyu and Li, 2020), and with a small start nothing
    else is left in the first layer.

    Attributes:
        hidden: sizes of the hidden layers, at least one.
        first_std: s > 0 of the first layer; the others start as PyTorch's do.
        bias: whether the first layer has a bias.
        mean: fixed shift of the inputs, a value per channel or one for all; empty for
            none. Trained networks see centred inputs.
    """

    hidden: tuple[int, ...] = (500,)
    first_std: float = 1e-3
    bias: bool = True
    mean: tuple[float, ...] = ()

    bibtex: ClassVar[str] = """\
@inproceedings{lyu2020gradient,
  title = {Gradient Descent Maximizes the Margin of Homogeneous Neural Networks},
  author = {Lyu, Kaifeng and Li, Jian},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2020}
}"""

    def __post_init__(self) -> None:
        if min(self.hidden, default=0) < 1:
            msg = f"hidden is {list(self.hidden)}; expected one size or more, all ≥ 1"
            raise InvalidInput(msg)
        if not 0 < self.first_std < math.inf:
            msg = f"first_std is {self.first_std}; expected a positive number"
            raise InvalidInput(msg)
        check_normalisation(self.mean, (1.0,) * len(self.mean))

    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return the network with fresh weights, for images and vectors."""
        require_classes(classes)
        source = generator(key, "homogeneous-mlp")
        net = fresh(lambda: self._layers(spec, classes), source)
        with torch.no_grad():
            for parameter in net.get_submodule("fc1").parameters():
                parameter.normal_(0, self.first_std, generator=source)
        return net

    def _layers(self, spec: EventSpec, classes: int) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = normalising(
            self.mean, (1.0,) * len(self.mean)
        )
        layers["flatten"] = nn.Flatten()
        size = spec.dimension
        for i, width in enumerate((*self.hidden, classes), start=1):
            layers[f"fc{i}"] = nn.Linear(size, width, bias=self.bias and i == 1)
            if i <= len(self.hidden):
                layers[f"act{i}"] = nn.ReLU()
            size = width
        return nn.Sequential(layers)
