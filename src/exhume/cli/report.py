"""``exhume report``: write the report of a run again from its stored results."""

from __future__ import annotations

import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from exhume.cli.console import say
from exhume.errors import InvalidInput

__all__ = ["report"]


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, runs/TITLE.")],
    open_: Annotated[
        bool, typer.Option("--open", help="Open it in the web browser.")
    ] = False,
    screenshot: Annotated[
        bool,
        typer.Option(
            "--screenshot", help="Write report.png beside it (needs Chromium)."
        ),
    ] = False,
) -> None:
    """Write the report of an audit, comparison or theory run again, from its results.

    Nothing is computed anew; an interrupted run gives a report of what had finished.
    """
    path = _rebuild(folder)
    say(f"report: {path}")
    if screenshot:
        from exhume.report.browser import screenshot as take

        picture = path.with_suffix(".png")
        take(path, picture)
        say(f"screenshot: {picture}")
    if open_:
        webbrowser.open(path.resolve().as_uri())


def _rebuild(folder: Path) -> Path:
    from exhume.audit.report.export import write_report
    from exhume.audit.run import RESULTS_FILE, SETTINGS_FILE
    from exhume.audit.settings import AuditSettings, expand
    from exhume.compare.run import SETTINGS_FILE as COMPARISON
    from exhume.runs.store import Store
    from exhume.theory.run import SETTINGS_FILE as THEORY

    if (folder / COMPARISON).is_file():
        from exhume.compare import load

        return load(folder).report
    if (folder / THEORY).is_file():
        from exhume.theory import load as load_theory

        return load_theory(folder).report
    missing = [n for n in (SETTINGS_FILE, RESULTS_FILE) if not (folder / n).is_file()]
    if missing:
        msg = (
            f"{str(folder)!r} is not the folder of a run: it has no "
            f"{' and no '.join(missing)}; exhume audit, compare and theory make such "
            f"folders, under runs/"
        )
        raise InvalidInput(msg)
    settings = AuditSettings.read(folder / SETTINGS_FILE)
    with Store(folder / RESULTS_FILE, create=False) as store:
        found = store.results()
    recorded = [result.spec for result in found]
    wanted = {spec.id for spec in expand(settings, recorded=recorded)}
    # A placebo belongs to the run that asked for its trial.
    asked = [r for r in found if replace(r.spec, placebo=False).id in wanted]
    results = asked or found
    if not results:
        msg = f"no trial has finished in {str(folder)!r}; run the audit again"
        raise InvalidInput(msg)
    return write_report(settings, results, folder)
