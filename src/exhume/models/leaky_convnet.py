"""Small ConvNet of Optimal Defenses (Chen et al. 2024) for MNIST, with leaky ReLUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import nn

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.models._init import fresh, require_classes, require_image
from exhume.models._normalise import check_normalisation, normalising
from exhume.problem.event import EventSpec
from exhume.problem.source import ModelSource

__all__ = ["LeakyConvnet"]

_KERNEL = 3
_POOLINGS = 2
_LEAST_SIDE = 4


@dataclass(frozen=True, kw_only=True)
class LeakyConvnet(ModelSource):
    """Conv(w), pool, Conv(2w), pool, two dense layers; LeakyReLU behind each but last.

    Leaky units have no exact zeros, which optimal noise needs: a coordinate of the
    gradient that is zero on a whole block has no finite ratio a/h. Kernels are 3 x 3
    with padding 1 and the poolings take the maximum of 2 x 2, which the paper does not
    state. 119,530 parameters for 1 x 28 x 28 images, 10 classes and w = 32.

    Attributes:
        width: w ≥ 1, channels of the first block; the hidden dense layer has as many.
        mean: subtracted from every channel first; empty for none.
        std: every channel is divided by it then; empty for none.
    """

    width: int = 32
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    bibtex: ClassVar[str] = """\
@misc{chen2024optimal,
  title = {Optimal Defenses Against Gradient Reconstruction Attacks},
  author = {Chen, Yuxiao and G{\\"u}rsoy, Gamze and Lei, Qi},
  year = {2024}, eprint = {2411.03746}, archivePrefix = {arXiv}
}"""

    def __post_init__(self) -> None:
        if self.width < 1:
            msg = f"width is {self.width}; expected at least 1"
            raise InvalidInput(msg)
        check_normalisation(self.mean, self.std)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a narrow network."""
        return (cls(width=4),)

    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return the network with fresh weights, for images of at least 4 x 4."""
        require_image(spec, "leaky-convnet", least_side=_LEAST_SIDE)
        require_classes(classes)
        source = generator(key, "leaky-convnet")
        return fresh(lambda: self._layers(spec, classes), source)

    def _layers(self, spec: EventSpec, classes: int) -> nn.Module:
        channels, height, width = spec.shape
        layers = normalising(self.mean, self.std)
        for block in range(1, _POOLINGS + 1):
            layers[f"conv{block}"] = nn.Conv2d(
                channels, block * self.width, _KERNEL, padding=_KERNEL // 2
            )
            layers[f"act{block}"] = nn.LeakyReLU()
            layers[f"pool{block}"] = nn.MaxPool2d(2)
            channels, height, width = block * self.width, height // 2, width // 2
        layers["flatten"] = nn.Flatten()
        layers["hidden"] = nn.Linear(channels * height * width, self.width)
        layers["act3"] = nn.LeakyReLU()
        layers["fc"] = nn.Linear(self.width, classes)
        return nn.Sequential(layers)
