"""The report of an audit: one HTML page that works offline, with JSON and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exhume.audit.settings import AuditSettings
    from exhume.runs.records import TrialResult

__all__ = ["write_report"]


def write_report(
    settings: AuditSettings, results: Sequence[TrialResult], folder: Path
) -> Path:
    """Write report.html, results.json and results.csv into a folder.

    The same results give the same bytes, whatever order they come in.

    Args:
        settings: of the audit.
        results: the trials that ended; an interrupted audit may lack some.
        folder: of the run; made if absent.

    Returns:
        path of report.html.
    """
    from exhume.audit.flags import find_flags
    from exhume.audit.report.build import page
    from exhume.audit.report.export import to_csv, to_json
    from exhume.audit.report.grouping import ordered
    from exhume.runs.settings import write_text

    in_order = ordered(settings, results)
    flags = find_flags(in_order)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("results.json", to_json(settings, in_order, flags)),
        ("results.csv", to_csv(in_order, flags)),
        ("report.html", page(settings, in_order, flags)),
    ):
        write_text(folder / name, text)
    return folder / "report.html"
