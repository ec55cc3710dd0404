"""``exhume compare``: defenses at equal utility, attacked, beside bounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from exhume.cli.console import say, show_table
from exhume.cli.progress import (
    Bar,
    ExecutorOption,
    OutOption,
    WorkersOption,
    kept,
    overridden,
)

if TYPE_CHECKING:
    from exhume.compare import Comparison
    from exhume.compare.leaderboard import Board

__all__ = ["compare", "show"]


def compare(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE.toml]",
            help="What to compare; without it, an embedded comparison on real digits.",
        ),
    ] = None,
    out: OutOption = None,
    executor: ExecutorOption = None,
    workers: WorkersOption = None,
) -> None:
    """Bring every defense to the same utility, then attack it with every attack.

    Each strength is calibrated by really training with the defense. What has finished
    is kept: stop with Ctrl-C, run the same command again to go on.
    """
    from exhume.compare.run import run
    from exhume.compare.settings import CompareSettings

    settings = overridden(
        CompareSettings.given(file),
        executor=executor,
        workers=workers,
    )
    with Bar(kept(settings, out)) as bar:
        done = run(settings, out=out, progress=bar)
    show(done)


def show(done: Comparison) -> None:
    """Print the leaderboards, what is missing from them, and recommendations."""
    from exhume.audit.report.results import described
    from exhume.compare.leaderboard import boards, undefended_row
    from exhume.compare.remarks import dropped
    from exhume.compare.report.page import recommendations
    from exhume.report.words import number, several

    bare = undefended_row(done)
    metric = described(done.metric)
    say(
        f"{done.settings.title}. Error: mean {metric.axis('of the strongest attack')}, "
        f"with 95 % intervals over seeds; larger is better. It is that at the budget "
        f"(≈: interpolated between attacked strengths); lost, measured, bound and ε "
        f"are of the strength beside them."
    )
    say(f"Without a defense: {bare.error} ({bare.attack}).")
    for sentence in dropped("no defense", [done.undefended]):
        say(sentence)
    if done.chance is not None:
        say(f"A guess without the update: {number(done.chance)}.")
    listed = boards(done)
    for board in listed:
        say()
        if board.rows:
            show_table(_table(board))
            if board.rivals:
                say(
                    f"Within the 95 % intervals of the differences, "
                    f"{several(list(board.rivals))} may be as good as the first."
                )
        else:
            say(f"{board.title}: no defense was brought to this utility.")
        for sentence in board.remarks:
            say(sentence)
    say()
    reasons: dict[str, dict[str, None]] = {}
    for row in (row for board in listed for row in board.rows):
        if row.reason:
            reasons.setdefault(row.reason, {})[row.defense] = None
    for reason, defenses in reasons.items():
        say(f"no bound ({', '.join(defenses)}): {reason}")
    for sentence in recommendations(done):
        say()
        say(sentence)
    say()
    say(f"report: {done.report}")


def _table(board: Board) -> Table:
    table = Table(title=board.title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("defense", overflow="fold")
    table.add_column("strength", no_wrap=True)
    for heading in ("lost", "measured", "error", "95 %", "PSNR"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("strongest attack", overflow="fold")
    table.add_column("no attack below", justify="right", overflow="fold")
    table.add_column("ε, one release", justify="right")
    for row in board.rows:
        table.add_row(
            str(row.place),
            row.defense,
            row.strength,
            row.loss,
            row.measured,
            row.shown_error,
            row.error_range,
            row.psnr,
            row.attack,
            row.bound,
            row.epsilon,
        )
    return table
