"""``exhume theory``: how errors scale, beside the rates and the exact lower bound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from exhume.cli.console import say, show_table, warn
from exhume.cli.progress import (
    Bar,
    ExecutorOption,
    OutOption,
    WorkersOption,
    kept,
    overridden,
)
from exhume.errors import InvalidInput

if TYPE_CHECKING:
    from exhume.theory import Findings, TheorySettings

__all__ = ["show", "theory"]


def theory(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE.toml]",
            help="What to sweep; without it, every defense of the table, small.",
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Figure 2 of the paper, and real images too."),
    ] = False,
    mnist: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="MNIST, for the images of --full."),
    ] = None,
    out: OutOption = None,
    executor: ExecutorOption = None,
    workers: WorkersOption = None,
) -> None:
    """Measure how errors of the tensor attack scale, under every defense.

    The exponents stand beside those that the theory predicts. What has finished is
    kept: stop with Ctrl-C, run the same command again to go on.
    """
    from exhume.theory.run import run

    chosen = _settings(file, full=full, mnist=mnist)
    settings = overridden(chosen, executor=executor, workers=workers)
    with Bar(kept(settings, out)) as bar:
        done = run(settings, out=out, progress=bar)
    show(done)


def _settings(file: Path | None, *, full: bool, mnist: Path | None) -> TheorySettings:
    from exhume.theory.settings import TheorySettings, full_settings

    if full and file is not None:
        msg = "--full has settings of its own; leave out the file, or --full"
        raise InvalidInput(msg)
    if mnist is not None and not full:
        msg = "--mnist belongs to --full; give both"
        raise InvalidInput(msg)
    if full:
        return full_settings(mnist)
    return TheorySettings.given(file)


def show(done: Findings) -> None:
    """Print predicted and measured exponents, and what to think of them."""
    from exhume.theory.report.page import unfinished
    from exhume.theory.verdict import HEADINGS, rows, summary

    say(
        f"{done.settings.title}. Exponents of the root-mean-square error of an input; "
        f"for a clip in 1/C, for a mask in 1/(1 − ρ)."
    )
    table = Table(box=None, pad_edge=False)
    numeric = {"upper rate", "measured", "95 %", "lower rate", "exact bound"}
    for heading in HEADINGS:
        right = heading in numeric
        table.add_column(heading, justify="right" if right else "left", no_wrap=right)
    for row in rows(done.curves):
        table.add_row(*row.cells)
    show_table(table)
    if any(c.rate.upper.origin == "second-hand" for c in done.curves):
        say("* a statement that was not read in a paper")
    say()
    if done.missing:
        say(unfinished(done))
    for sentence in summary(done.curves):
        say(sentence)
    for curve in done.curves:
        for reason in curve.failures:
            warn(f"{curve.title}: {reason}")
    say(f"report: {done.report}")
