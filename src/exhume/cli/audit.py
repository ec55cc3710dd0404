"""``exhume audit``: a sweep of attacks × defenses with bounds, ending in a report."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from exhume.cli.console import say, warn
from exhume.cli.progress import ExecutorOption, OutOption, WorkersOption, overridden

if TYPE_CHECKING:
    from exhume.audit.run import AuditRun
    from exhume.audit.settings import AuditSettings
    from exhume.runs.records import TrialResult

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
    progress = _Progress()
    try:
        with progress:
            done = run(settings, out=out, progress=progress)
    except KeyboardInterrupt:
        warn(
            f"{progress.done} of {progress.total} trials are kept in "
            f"{settings.folder(out)}, and report.html there shows them; run the same "
            f"command again to go on",
            "stopped",
        )
        raise typer.Exit(130) from None
    _show(settings, done)


def _settings(file: str | None) -> AuditSettings:
    from exhume.audit.sweep import default_settings, example_settings, load_settings

    if file is None:
        return default_settings()
    if file.endswith(".toml") or Path(file).exists():
        return load_settings(file)
    return example_settings(file)


def _show(settings: AuditSettings, done: AuditRun) -> None:
    from exhume.cli.tables import other_bounds, tables

    console = Console()
    if not console.is_terminal:
        # A pipe has no width: keep every row on one line.
        console = Console(width=160)
    for table in tables(settings, done.results):
        console.print(table)
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


class _Progress(AbstractContextManager["_Progress"]):
    """A bar with the time left on a terminal, one plain line per trial elsewhere."""

    def __init__(self) -> None:
        self.done = self.total = 0
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("preparing", total=None, left="")

    def __enter__(self) -> _Progress:
        self._live = self._bar if self._console.is_terminal else nullcontext()
        self._live.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._live.__exit__(*details)

    def __call__(
        self,
        done: int,
        total: int,
        result: TrialResult | None,
        seconds_left: float | None,
    ) -> None:
        self.done, self.total = done, total
        left = "" if seconds_left is None else f"{_clock(seconds_left)} left"
        name = "starting" if result is None else _name(result)
        self._bar.update(
            self._task, description=name, completed=done, total=total, left=left
        )
        if not self._console.is_terminal:
            line = ", ".join(filter(None, (f"{done}/{total} {name}", left)))
            self._console.print(line, markup=False, soft_wrap=True)


def _name(result: TrialResult) -> str:
    from exhume.report.naming import defense_label

    spec = result.spec
    method = (spec.attack or spec.bound or {}).get("name", "")
    defense = defense_label(spec.defenses) if spec.defenses else "no defense"
    status = "" if result.status == "done" else f" ({result.status})"
    return f"{method}, {defense}, seed {spec.seed}{status}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
