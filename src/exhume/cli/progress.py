"""What every command that runs something has: where it runs, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from exhume.cli.console import warn
from exhume.registry import names

__all__ = [
    "Bar",
    "ExecutorOption",
    "OutOption",
    "WorkersOption",
    "kept",
    "overridden",
]

Settings = TypeVar("Settings", bound=Any)

OutOption = Annotated[
    Path | None, typer.Option(help="Folder of the run; runs/TITLE if omitted.")
]
ExecutorOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Where it runs: {', '.join(names('executor'))}, or a module of your own.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=0, help="Number of processes; 0 takes one per core."),
]


def overridden(settings: Settings, **given: Any) -> Settings:
    """Put options of the command line in the place of settings; None leaves them."""
    return replace(settings, **{k: v for k, v in given.items() if v is not None})


class Bar(AbstractContextManager["Bar"]):
    """A bar with the time left on a terminal, one plain line per step elsewhere.

    Ctrl-C within it becomes a sentence and the exit code 130.

    Args:
        stopped: what is said after Ctrl-C; it may look at ``phase``, ``done`` and
            ``total``.
    """

    def __init__(self, stopped: Callable[[Bar], str]) -> None:
        self.phase, self.done, self.total = "", 0, 0
        self._stopped = stopped
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.fields[phase]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", style="dim"),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, left="", phase="preparing")

    def __enter__(self) -> Bar:
        self._live = self._bar if self._console.is_terminal else nullcontext()
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)
        if isinstance(error, KeyboardInterrupt):
            warn(self._stopped(self), "stopped")
            raise typer.Exit(130) from None

    def __call__(
        self, phase: str, done: int, total: int, what: str, seconds_left: float | None
    ) -> None:
        """Show how far a run is, see :class:`exhume.runs.carry_out.Progress`."""
        self.phase, self.done, self.total = phase, done, total
        left = ""
        if seconds_left is not None:
            minutes, rest = divmod(round(seconds_left), 60)
            left = f"about {minutes}:{rest:02d} left"
        self._bar.update(
            self._task,
            description=what,
            completed=done,
            total=total,
            left=left,
            phase=phase,
        )
        if not self._console.is_terminal:
            line = ", ".join(filter(None, (f"{phase} {done}/{total}", what, left)))
            self._console.print(line, markup=False, soft_wrap=True)


def kept(settings: Any, out: Path | None) -> Callable[[Bar], str]:
    """Return the sentence of a run that was stopped."""
    sentence = (
        f"what has finished is kept in {settings.folder(out)}; run the same command "
        f"again to go on"
    )
    return lambda _: sentence
