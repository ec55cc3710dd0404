"""Another data source with its classes put together in groups, or smaller images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from exhume.config import build
from exhume.errors import InvalidInput
from exhume.problem.batch import Batch
from exhume.problem.source import DataSource

__all__ = ["Relabelled"]


@dataclass(frozen=True, kw_only=True)
class Relabelled(DataSource):
    """Group the classes of a source, and average blocks of pixels.

    ``source = {name = "digits"}, classes = [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]`` tells
    odd digits from even ones. Examples of classes that are in no group are left out.

    Attributes:
        source: name and options of another data source.
        classes: groups of its classes, the first becomes class 0; empty keeps them.
        pool: side of the squares of pixels that are averaged; 1 keeps images.

    Raises:
        InvalidInput: a class is in two groups, or in none that has examples; the images
            are too small, or the data are no images.
    """

    source: Mapping[str, Any] = field(default_factory=lambda: {"name": "digits"})
    classes: tuple[tuple[int, ...], ...] = ()
    pool: int = 1

    licence: ClassVar[str] = "that of the source"

    def __post_init__(self) -> None:
        listed = list(chain.from_iterable(self.classes))
        if len(set(listed)) < len(listed):
            twice = sorted({c for c in listed if listed.count(c) > 1})
            msg = f"class {twice[0]} is in two groups of classes; each has one label"
            raise InvalidInput(msg)
        if self.pool < 1:
            msg = f"pool is {self.pool}; expected at least 1"
            raise InvalidInput(msg)

    def load(self) -> Batch:
        """Load the source, group and shrink."""
        return self._derived(build("data", self.source).load())[0]

    def private_pool(self, batch: Batch) -> list[int]:
        """List the examples that the source lets become private ones."""
        del batch
        source: DataSource = build("data", self.source)
        whole = source.load()
        kept = self._derived(whole)[1].tolist()
        allowed = set(source.private_pool(whole))
        return [new for new, old in enumerate(kept) if old in allowed]

    def _derived(self, whole: Batch) -> tuple[Batch, Tensor]:
        """Return the batch, and which examples of the source are in it."""
        kept, targets = torch.arange(len(whole)), whole.targets
        if self.classes:
            targets, kept = self._grouped(targets)
        inputs, spec = whole.inputs[kept], whole.spec
        if self.pool > 1:
            if spec.grid is None or min(spec.grid[1:]) < self.pool:
                msg = (
                    f"pool is {self.pool}, but the examples are of kind {spec.kind!r} "
                    f"with shape {list(spec.shape)}; it averages squares of pixels"
                )
                raise InvalidInput(msg)
            inputs = F.avg_pool2d(inputs, self.pool)
            spec = replace(spec, shape=tuple(inputs.shape[1:]))
        return Batch(inputs, targets, spec), kept

    def _grouped(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        if targets.is_floating_point():
            msg = "the source has real targets, which no groups of classes fit"
            raise InvalidInput(msg)
        found = torch.full_like(targets, -1)
        for label, group in enumerate(self.classes):
            rows = torch.isin(targets, torch.tensor(group))
            if not bool(rows.any()):
                msg = (
                    f"no example has a class of the group {list(group)}; the data has "
                    f"classes {sorted(set(targets.tolist()))}"
                )
                raise InvalidInput(msg)
            found[rows] = label
        kept = (found >= 0).nonzero().flatten()
        return found[kept], kept
