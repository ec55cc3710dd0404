"""The command line: ``exhume audit | compare | advise | attack | recipe | …``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from exhume.cli.advise import advise
from exhume.cli.attack import attack
from exhume.cli.audit import audit
from exhume.cli.compare import compare
from exhume.cli.console import fail
from exhume.cli.inspect import inspect
from exhume.cli.list import list_
from exhume.cli.recipe import app as recipe
from exhume.cli.report import report
from exhume.cli.theory import theory
from exhume.errors import ExhumeError

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Turns an error that the user can mend into one sentence and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ExhumeError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            fail(str(error))
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from exhume import __version__

        typer.echo(f"exhume {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="EXHUME_DEBUG", help="Show tracebacks."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """What of the private data can be read back, and what can no attacker read back.

    Start with `exhume audit`: it needs no arguments.
    """
    del debug, version  # read by `_Commands` and `_version`
    # Own modules are found beside one's files, as with `python -m`; last, so that none
    # of them takes the place of a library.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


app.command("audit")(audit)
app.command("compare")(compare)
app.command("advise")(advise)
app.command("attack")(attack)
app.command("list")(list_)
app.command("report")(report)
app.add_typer(recipe, name="recipe")
app.command("theory")(theory)
app.command("inspect")(inspect)


def main() -> None:
    """Run the command line; the entry point of the package."""
    app(prog_name="exhume")
