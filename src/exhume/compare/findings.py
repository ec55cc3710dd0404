"""What a comparison found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exhume.compare.settings import CompareSettings

if TYPE_CHECKING:
    from exhume.compare.advice import Advice
    from exhume.compare.frontier import Frontier, Point

__all__ = ["ATTACKS", "Comparison"]

#: folder of the audit of the calibrated defenses, in that of the run
ATTACKS = "attacks"


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found.

    Attributes:
        folder: of the run; ``attacks/`` in it is an audit of the calibrated defenses.
        settings: of the comparison.
        undefended: what the attacks reach without a defense.
        frontiers: of the families, in the order of the settings.
        baseline: accuracy and training loss without a defense, over the seeds.
        chance: error of the prior mean, which never looks at the update, or None.
        metric: whose mean over examples the error is.
        report: path of report.html.
    """

    folder: Path
    settings: CompareSettings
    undefended: Point
    frontiers: tuple[Frontier, ...]
    baseline: dict[str, float]
    chance: float | None
    report: Path
    metric: str = "mse"

    def advise(self, *, min_error: float, max_loss: float) -> Advice:
        """Recommend a defense that keeps an error for a utility loss.

        Args:
            min_error: mean over examples of :attr:`metric` (of the squared error per
                number of the data, say) that the strongest attack must not get below;
                > 0.
            max_loss: utility to lose at most, in units of the comparison's utility.

        Raises:
            InvalidInput: a number is out of range.
        """
        from exhume.compare.advice import advise

        return advise(
            self.undefended,
            self.frontiers,
            min_error=min_error,
            max_loss=max_loss,
            utility=self.settings.utility,
            tolerance=self.settings.tolerance,
            chance=self.chance,
        )
