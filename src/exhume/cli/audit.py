"""``exhume audit``: a sweep of attacks × defenses with bounds, ending in a report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exhume.cli.console import say, show_table, warn
from exhume.cli.progress import (
    Bar,
    ExecutorOption,
    OutOption,
    WorkersOption,
    overridden,
)

if TYPE_CHECKING:
    from exhume.audit.run import AuditRun
    from exhume.audit.settings import AuditSettings

__all__ = ["audit"]


def audit(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE.toml|NAME]",
            help="What to audit: a file, or an audit that comes with exhume (see "
            "exhume list audits); without it, a gradient on real faces.",
        ),
    ] = None,
    out: OutOption = None,
    executor: ExecutorOption = None,
    workers: WorkersOption = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds (private batches).")
    ] = None,
) -> None:
    """Run attacks against defenses, and write a report beside the bounds.

    What has finished is kept: stop with Ctrl-C, run the same command again to go on.
    """
    from exhume.audit.run import run

    settings = overridden(
        _settings(file), executor=executor, workers=workers, seeds=seeds
    )

    def stopped(bar: Bar) -> str:
        what = "trainings" if bar.phase == "training" else "trials"
        return (
            f"{bar.done} of {bar.total} {what} are kept in {settings.folder(out)}, and "
            f"report.html there shows them; run the same command again to go on"
        )

    with Bar(stopped) as bar:
        done = run(settings, out=out, progress=bar)
    _show(settings, done)


def _settings(file: str | None) -> AuditSettings:
    from exhume.audit.settings import AuditSettings, example_settings

    if file is None or file.endswith(".toml") or Path(file).exists():
        return AuditSettings.given(file)
    return example_settings(file)


def _show(settings: AuditSettings, done: AuditRun) -> None:
    from exhume.cli.tables import other_bounds, tables

    for table in tables(settings, done.results):
        show_table(table)
        say()
    for sentence in other_bounds(settings, done.results):
        say(sentence)
    _show_flags(done)
    failed = [r for r in done.results if r.status == "failed"]
    for reason in dict.fromkeys(r.reason for r in failed):
        warn(f"a trial failed: {reason}")
    say(f"report: {done.report}")
    if failed:
        warn(f"{len(failed)} of {len(done.results)} trials failed", "error")
        raise typer.Exit(1)


def _show_flags(done: AuditRun) -> None:
    """Count what a reader should know before believing a number."""
    from exhume.audit.flags import find_flags

    found = find_flags(done.results)
    counts = Counter((f.severity, f.kind) for flags in found.values() for f in flags)
    for (severity, kind), count in sorted(counts.items()):
        say(f"{severity}: {kind} in {count} of {len(done.results)} trials")
    if counts:
        say("The report says what each of these means.")
