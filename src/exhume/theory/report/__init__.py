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
    from exhume.theory.report.export import to_json
    from exhume.theory.report.page import page
    from exhume.theory.report.picture import write_picture

    for name, text in (("theory.json", to_json(found)), ("report.html", page(found))):
        # Written beside and moved, so that a crash leaves the earlier report intact.
        fresh = found.folder / f".{name}.new"
        fresh.write_text(text, encoding="utf-8", newline="\n")
        fresh.replace(found.folder / name)
    write_picture(found.curves, found.folder / "theory.png")
    return found.report
