"""Open a report in headless Chromium: take its picture, or count what it shows.

``python -m exhume.report.browser RUN_FOLDER`` writes report.png beside
report.html.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from exhume.errors import InvalidInput

__all__ = ["find_browser", "rendered", "screenshot"]

_NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_WIDTH, _HEIGHT = 1280, 900
#: taller pages are cut: browsers refuse larger surfaces
_TALLEST = 16000
_TIMEOUT_SECONDS = 120


def find_browser() -> str | None:
    """Return the path of Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def screenshot(report: Path, png: Path) -> None:
    """Write a picture of a whole report page.

    Args:
        report: path of report.html.
        png: path to write.

    Raises:
        InvalidInput: there is no report, no browser, or the browser failed.
    """
    found = re.search(r'data-height="(\d+)"', _run(report, "--dump-dom"))
    height = min(int(found[1]), _TALLEST) if found else _HEIGHT
    png.unlink(missing_ok=True)
    _run(report, f"--screenshot={png.resolve()}", height=height)
    if not png.is_file():
        msg = f"the browser ended without writing {png}; open {report} yourself"
        raise InvalidInput(msg)


def rendered(report: Path) -> dict[str, tuple[int, int]]:
    """Count what a browser shows of a report: (drawn, present) pictures and plots.

    Raises:
        InvalidInput: there is no report, no browser, or its script did not run.
    """
    found = re.search(r'data-rendered="([^"]*)"', _run(report, "--dump-dom"))
    if found is None:
        msg = f"the script of {report} did not run in the browser"
        raise InvalidInput(msg)
    pairs = re.findall(r"(\w+):(\d+)/(\d+)", found[1])
    return {name: (int(drawn), int(present)) for name, drawn, present in pairs}


def _run(report: Path, *options: str, height: int = _HEIGHT) -> str:
    browser = find_browser()
    if browser is None:
        msg = "no Chromium or Chrome is on the PATH; install one, or open the report"
        raise InvalidInput(msg)
    if not report.is_file():
        msg = f"there is no report at {report}; run `exhume report` first"
        raise InvalidInput(msg)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            browser,
            *_FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={_WIDTH},{height}",
            *options,
            report.resolve().as_uri(),
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            msg = f"the browser could not open {report}: {error}"
            raise InvalidInput(msg) from error
    return done.stdout


if __name__ == "__main__":
    screenshot(Path(sys.argv[1]) / "report.html", Path(sys.argv[1]) / "report.png")
