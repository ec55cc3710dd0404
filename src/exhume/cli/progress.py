"""What every command that runs something has: where it runs, and how far it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from exhume.registry import names

__all__ = ["ExecutorOption", "OutOption", "WorkersOption", "overridden"]

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
