"""Three convolutions over time and a linear layer: a small forecaster."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.models._activations import ACTIVATIONS, ActivationName
from exhume.models._init import fresh, require_classes
from exhume.problem.event import EventSpec
from exhume.problem.source import ModelSource

__all__ = ["CnnForecaster"]


class _TimeLast(nn.Module):
    """[B, T, C], as data have it, to [B, C, T], as convolutions read it."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class CnnForecaster(ModelSource):
    """History [T, C] → K real targets, by convolutions that keep the length T.

    The published forecaster has three convolutions of kernel 5, sigmoids, and a linear
    layer on all steps.

    Attributes:
        width: channels of every convolution.
        layers: number of convolutions.
        kernel: steps that a convolution reads; odd.
        activation: after every convolution.
    """

    width: int = 64
    layers: int = 3
    kernel: int = 5
    activation: ActivationName = "sigmoid"

    bibtex: ClassVar[str] = """\
@inproceedings{meijer2025tsinverse,
  title = {{TS-Inverse}: A gradient inversion attack tailored for federated time
           series forecasting models},
  author = {Meijer, Caspar and Huang, Jiyue and Sharma, Shreshtha and
            Lazovik, Elena and Chen, Lydia Y.},
  booktitle = {IEEE Conference on Secure and Trustworthy Machine Learning (SaTML)},
  year = {2025}
}"""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "kernel"):
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}; expected at least 1"
                raise InvalidInput(msg)
        if self.kernel % 2 == 0:
            msg = f"kernel is {self.kernel}; expected an odd number, which keeps T"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a small network."""
        return (cls(width=4, layers=2, kernel=3),)

    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return the network with fresh weights, for series.

        Raises:
            InvalidInput: an example has no time axis and channel axis.
        """
        require_classes(classes)
        if len(spec.shape) != 2:
            msg = (
                f"the model 'cnn-forecaster' reads series of shape [T, C], but the "
                f"data are of kind {spec.kind!r} with shape {list(spec.shape)}; use "
                f"'mlp'"
            )
            raise InvalidInput(msg)
        return fresh(
            lambda: self._layers(spec, classes), generator(key, "cnn-forecaster")
        )

    def _layers(self, spec: EventSpec, classes: int) -> nn.Module:
        steps, channels = spec.shape
        parts: OrderedDict[str, nn.Module] = OrderedDict(time=_TimeLast())
        for i in range(1, self.layers + 1):
            parts[f"conv{i}"] = nn.Conv1d(
                channels, self.width, self.kernel, padding="same"
            )
            parts[f"act{i}"] = ACTIVATIONS[self.activation]()
            channels = self.width
        parts["flatten"] = nn.Flatten()
        parts["fc"] = nn.Linear(channels * steps, classes)
        return nn.Sequential(parts)
