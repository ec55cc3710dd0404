"""What a run of scaling experiments found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exhume.theory.settings import TheorySettings

if TYPE_CHECKING:
    from exhume.theory.collect import Curve

__all__ = ["Findings", "to_toml"]


@dataclass(frozen=True, eq=False)
class Findings:
    """What a run found.

    Attributes:
        folder: of the run.
        settings: of the run.
        curves: one per experiment.
        missing: points that have not ended.
        report: path of report.html.
    """

    folder: Path
    settings: TheorySettings
    curves: tuple[Curve, ...]
    missing: int
    report: Path


def to_toml(settings: TheorySettings) -> str:
    """Write the settings as the TOML that asks for the same run."""
    from exhume.runs.settings import to_toml as write_toml
    from exhume.theory.settings import as_plain

    plain: Any = [as_plain(one) for one in settings.experiments]
    return write_toml(replace(settings, experiments=plain), complete=True)
