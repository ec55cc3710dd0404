"""ConvNet of Inverting Gradients (Geiping et al. 2020): eight conv-BN-ReLU blocks."""

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

__all__ = ["Convnet"]

_WIDTHS = (1, 2, 2, 4, 4, 4, 4, 4)
_POOL = 3
_POOL_AFTER = (6, 8)


@dataclass(frozen=True, kw_only=True)
class Convnet(ModelSource):
    """Eight 3 x 3 blocks of widths w, 2w, 2w, 4w (five times), two poolings, a head.

    2,904,970 parameters for 3 x 32 x 32 images, 10 classes and w = 64; w = 32 is the
    ConvNet32 of the authors' code.

    Attributes:
        width: w ≥ 1, channels of the first block.
        mean: subtracted from every channel first; empty for none.
        std: every channel is divided by it then; empty for none.
    """

    width: int = 64
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    bibtex: ClassVar[str] = """\
@inproceedings{geiping2020inverting,
  title = {Inverting Gradients -- How easy is it to break privacy in federated
           learning?},
  author = {Geiping, Jonas and Bauermeister, Hartmut and Dr{\\"o}ge, Hannah and
            Moeller, Michael},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {33},
  year = {2020}
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
        """Return the network with fresh weights, for images of at least 9 x 9."""
        require_image(spec, "convnet", least_side=_POOL ** len(_POOL_AFTER))
        require_classes(classes)
        return fresh(lambda: self._layers(spec, classes), generator(key, "convnet"))

    def _layers(self, spec: EventSpec, classes: int) -> nn.Module:
        channels, height, width = spec.shape
        layers = normalising(self.mean, self.std)
        for block, factor in enumerate(_WIDTHS, start=1):
            layers[f"conv{block}"] = nn.Conv2d(
                channels, factor * self.width, 3, padding=1
            )
            channels = factor * self.width
            layers[f"bn{block}"] = nn.BatchNorm2d(channels)
            layers[f"relu{block}"] = nn.ReLU()
            if block in _POOL_AFTER:
                layers[f"pool{block}"] = nn.MaxPool2d(_POOL)
                height, width = height // _POOL, width // _POOL
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels * height * width, classes)
        return nn.Sequential(layers)
