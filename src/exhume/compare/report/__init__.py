"""The report of a comparison: one HTML page that works offline, and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from exhume.compare.findings import Comparison

__all__ = ["write_report"]


def write_report(comparison: Comparison) -> Path:
    """Write report.html and comparison.json into the folder of a comparison.

    Returns:
        path of report.html.
    """
    from exhume.compare.report.export import to_json
    from exhume.compare.report.page import page
    from exhume.runs.settings import write_text

    for name, text in (
        ("comparison.json", to_json(comparison)),
        ("report.html", page(comparison)),
    ):
        write_text(comparison.folder / name, text)
    return comparison.report
