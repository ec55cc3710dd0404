"""LeNet of Deep Leakage from Gradients (Zhu et al. 2019), sigmoid activations."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.models._activations import ACTIVATIONS, ActivationName
from exhume.models._init import fresh, require_classes, require_image, uniform_
from exhume.problem.event import EventSpec
from exhume.problem.source import ModelSource

__all__ = ["LenetZhu"]

_CHANNELS = 12


@dataclass(frozen=True, kw_only=True)
class LenetZhu(ModelSource):
    """Three 5 x 5 convolutions of 12 channels (strides 2, 2, 1) and a linear layer.

    15,826 parameters for 3 x 32 x 32 images and 10 classes.

    Attributes:
        weight_range: r > 0; all weights and biases are drawn from U(−r, r).
        activation: after every convolution; the paper's is the sigmoid, because the
            attack differentiates twice.
    """

    weight_range: float = 0.5
    activation: ActivationName = "sigmoid"

    bibtex: ClassVar[str] = """\
@inproceedings{zhu2019deep,
  title = {Deep Leakage from Gradients},
  author = {Zhu, Ligeng and Liu, Zhijian and Han, Song},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {32},
  year = {2019}
}"""

    def __post_init__(self) -> None:
        if not 0 < self.weight_range < float("inf"):
            msg = f"weight_range is {self.weight_range}; expected a positive number"
            raise InvalidInput(msg)

    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return the network with fresh weights, for images of any size."""
        require_image(spec, "lenet-zhu")
        require_classes(classes)
        source = generator(key, "lenet-zhu")
        net = fresh(lambda: self._layers(spec, classes), source)
        uniform_(net, self.weight_range, source)
        return net

    def _layers(self, spec: EventSpec, classes: int) -> nn.Module:
        channels, height, width = spec.shape
        act = ACTIVATIONS[self.activation]
        # Each stride of 2 with padding 2 halves a side, rounding up.
        features = _CHANNELS * -(-height // 4) * -(-width // 4)
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, _CHANNELS, 5, padding=2, stride=2),
                act1=act(),
                conv2=nn.Conv2d(_CHANNELS, _CHANNELS, 5, padding=2, stride=2),
                act2=act(),
                conv3=nn.Conv2d(_CHANNELS, _CHANNELS, 5, padding=2, stride=1),
                act3=act(),
                flatten=nn.Flatten(),
                fc=nn.Linear(features, classes),
            )
        )
