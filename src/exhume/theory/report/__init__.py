"""The report of scaling experiments: one HTML page that works offline, JSON, a PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from exhume.theory.findings import Findings

__all__ = ["write_report"]


def write_report(found: Findings) -> Path:
    """Write report.html, theory.json and theory.png into the folder of a run.

    Returns:
        path of report.html.
    """
    from exhume.runs.settings import write_text
    from exhume.theory.report.export import to_json
    from exhume.theory.report.page import page
    from exhume.theory.report.picture import write_picture

    for name, text in (("theory.json", to_json(found)), ("report.html", page(found))):
        write_text(found.folder / name, text)
    write_picture(found.curves, found.folder / "theory.png")
    return found.report
