"""Vectors of unequal length, padded with zeros; a second row says where numbers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.problem.event import EventSpec
from exhume.report.pictures import Picture, line


@dataclass(frozen=True)
class Ragged(EventSpec):
    """Shape [2, T]: the numbers, and 1 where there is one."""

    axes: ClassVar[int] = 2
    noun: ClassVar[str] = "sequence"

    def mask(self, inputs: Tensor) -> Tensor:
        held = inputs[:, 1] > 0.5
        return torch.stack([held, torch.zeros_like(held)], dim=1)

    def check(self, inputs: Tensor) -> None:
        super().check(inputs)
        numbers, held = inputs.unbind(dim=1)
        whole = bool(((held == 0) | (held == 1)).all())
        first = bool((held.diff(dim=1) <= 0).all())
        if not (whole and first) or bool((numbers[held == 0] != 0).any()):
            msg = "the numbers of a sequence come first, then zeros"
            raise InvalidInput(msg)

    def draw(self, example: np.ndarray, truth: np.ndarray) -> Picture:
        held = truth[1] > 0.5
        own = truth[0, held]
        return line(own if example is truth else example[0, held], own)
