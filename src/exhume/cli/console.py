"""Where output goes: results to stdout, progress and errors to stderr."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

__all__ = ["columns", "fail", "rows", "say", "show_table", "warn"]


def say(text: str = "", style: str | None = None) -> None:
    """Print a line to stdout, never wrapped, so that other programs can read it."""
    console = Console(highlight=False)
    console.print(text, style=style, markup=False, soft_wrap=True)


def show_table(table: Table) -> None:
    """Print a table to stdout; a pipe has no width, and gets every row on one line."""
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def warn(text: str, label: str = "warning") -> None:
    """Print a labelled line to stderr."""
    console = Console(stderr=True, highlight=False)
    styles = {"error": "bold red", "warning": "yellow"}
    console.print(f"{label}: ", style=styles.get(label, "dim"), end="")
    console.print(text, markup=False, soft_wrap=True)


def fail(sentence: str) -> None:
    """Print what went wrong to stderr."""
    warn(sentence, "error")


def rows(table: Iterable[Sequence[str]], indent: str = "  ") -> list[str]:
    """Align the columns of a table of words as plain lines."""
    listed = [list(row) for row in table]
    if not listed:
        return []
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    return [
        indent
        + "  ".join(w.ljust(n) for w, n in zip(row, widths, strict=True)).rstrip()
        for row in listed
    ]


def columns(table: Iterable[Sequence[str]], indent: str = "  ") -> None:
    """Print a table of words, one line per row."""
    for line in rows(table, indent):
        say(line)
