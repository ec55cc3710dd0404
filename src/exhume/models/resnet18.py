"""ResNet-18 for small images (He et al. 2016): 3 x 3 stem, no max-pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.models._init import fresh, require_classes, require_image
from exhume.problem.event import EventSpec
from exhume.problem.source import ModelSource

__all__ = ["Resnet18"]


@dataclass(frozen=True, kw_only=True)
class Resnet18(ModelSource):
    """Four stages of two residual blocks, widths w, 2w, 4w, 8w, strides 1, 2, 2, 2.

    11,173,962 parameters for 3 channels, 10 classes and w = 64. The average pooling
    before the head takes images of any size.

    Attributes:
        width: w ≥ 1, channels of the first stage.
    """

    width: int = 64

    bibtex: ClassVar[str] = """\
@inproceedings{he2016deep,
  title = {Deep Residual Learning for Image Recognition},
  author = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  pages = {770--778},
  year = {2016}
}"""

    def __post_init__(self) -> None:
        if self.width < 1:
            msg = f"width is {self.width}; expected at least 1"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a narrow network."""
        return (cls(width=4),)

    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return the network with fresh weights."""
        require_image(spec, "resnet18")
        require_classes(classes)
        return fresh(
            lambda: SmallImageResnet18(spec.shape[0], self.width, classes),
            generator(key, "resnet18"),
        )


class BasicBlock(nn.Module):
    """x ↦ relu(BN(conv(relu(BN(conv(x))))) + shortcut(x))."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False),
                nn.BatchNorm2d(width),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, width, ⌈H / stride⌉, ⌈W / stride⌉]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallImageResnet18(nn.Module):
    """The network: stem, four stages, average pooling, linear head."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, K]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def _stage(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(channels, width, stride), BasicBlock(width, width, stride=1)
    )
