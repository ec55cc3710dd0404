"""``exhume recipe``: run a published experiment again, ours beside theirs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from exhume.cli.console import columns, say, show_table, warn
from exhume.cli.progress import Bar, ExecutorOption, WorkersOption

if TYPE_CHECKING:
    from exhume.recipes import Outcome

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Run published experiments again, ours beside theirs.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
def list_() -> None:
    """List the recipes, with the data set that each of them needs."""
    from exhume.recipes import load, names

    listed = []
    for name in names():
        recipe = load(name)
        place = f"data: {recipe.data['name']}"
        place += f" at ${recipe.place}" if recipe.place else ", embedded"
        listed.append((name, recipe.title, place))
    columns(listed, indent="")


@app.command("run")
def run_(
    name: Annotated[str, typer.Argument(help="Of a recipe, or the path of a file.")],
    full: Annotated[
        bool, typer.Option("--full", help="As published; else a reduced version.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Of the data set; else from a variable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; runs/recipes/NAME if omitted.")
    ] = None,
    executor: ExecutorOption = None,
    workers: WorkersOption = None,
) -> None:
    """Run a recipe and print ours | published | ratio.

    What has finished is kept: stop with Ctrl-C, run the same command again to go on.
    """
    from exhume.recipes import run

    sentence = "what has finished is kept; run the same command to go on"
    with Bar(lambda _: sentence) as bar:
        done = run(
            name,
            full=full,
            data=data,
            out=out,
            executor=executor or "processes",
            workers=workers or 0,
            progress=bar,
        )
    show(done)


def show(done: Outcome) -> None:
    """Print what was run, what was reduced, and the table."""
    from exhume.recipes.page import HEADINGS, cells, points

    recipe = done.recipe
    say(f"{recipe.title}. {recipe.reproduces}")
    say()
    if done.less:
        say("Reduced version; --full has:")
        for line in done.less:
            say(f"  {line.replace('→', 'and here')}")
        say()
    say(f"Errors: {done.units}.")
    say(f"Published values are approximate: {recipe.source}")
    say()
    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if index else "left")
    for row in done.rows:
        table.add_row(*cells(row))
    show_table(table)
    for curve in done.curves:
        say()
        say(f"{curve.name}: error and training loss")
        columns(points(curve))
    say()
    say(f"Agreement: {recipe.agreement}")
    for sentence in recipe.corrections:
        say(f"corrected: {sentence}")
    for sentence in recipe.deviations:
        say(f"not as published: {sentence}")
    reasons = [p.reason for c in done.curves for p in c.ours if p.reason]
    for reason in dict.fromkeys(reasons):
        warn(f"a point is missing: {reason}")
    say(f"report: {done.report}")
