"""Share of the numbers of an example that are recovered up to a tolerance."""

from dataclasses import dataclass
from typing import ClassVar

from exhume.problem.metric import Metric


@dataclass(frozen=True, kw_only=True)
class Within(Metric):
    higher_is_better: ClassVar[bool] = True
    bibtex: ClassVar[str] = "@misc{within2026, title = {Within}}"
    tolerance: float = 0.1

    def __call__(self, guess, truth, spec):
        near = (guess.double() - truth.double()).abs() <= self.tolerance
        return near.double().flatten(1).mean(dim=1)
