"""Random walks of three to six steps, with their last step as the target."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from audit_lab.ragged import Ragged
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.source import DataSource


@dataclass(frozen=True, kw_only=True)
class Sequences(DataSource):
    """Padded to six steps."""

    count: int = 40

    def load(self) -> Batch:
        draws = generator(0, "sequences")
        walks = torch.randn(self.count, 6, generator=draws).cumsum(dim=1)
        lengths = torch.randint(3, 7, (self.count,), generator=draws)
        held = (torch.arange(6) < lengths[:, None]).float()
        targets = walks.gather(1, lengths[:, None] - 1)
        return Batch(torch.stack([walks * held, held], dim=1), targets, Ragged((2, 6)))
