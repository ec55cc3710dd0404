"""The outcome of a recipe on disk: a table in words, the same as JSON, and a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from exhume.report.words import number, several
from exhume.runs.records import dumps
from exhume.runs.settings import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from exhume.recipes.agreement import Curve, Row
    from exhume.recipes.outcome import Outcome

__all__ = ["HEADINGS", "cells", "figure", "points", "write"]

HEADINGS = ("", "ours", "published", "ours / published")
_MARKERS = "osD^vPX*"


def write(done: Outcome) -> None:
    """Write recipe.json, recipe.md and, for curves, curves.png into the folder."""
    done.folder.mkdir(parents=True, exist_ok=True)
    write_text(done.folder / "recipe.json", dumps(_record(done)))
    if done.curves:
        figure(done)
    write_text(done.report, "\n".join(_page(done)) + "\n")


def cells(row: Row) -> tuple[str, str, str, str]:
    """Write one line of the table; what was read off a figure is marked ≈."""
    published = f"≈ {number(row.published)}" if row.published else "–"
    return row.quantity, number(row.ours), published, number(row.ratio, 2)


def points(curve: Curve) -> list[tuple[str, str, str]]:
    """Write our points of a curve: strength, error, training loss."""
    return [
        (
            f"{curve.option.replace('_', ' ')} {number(p.strength)}",
            number(p.error),
            number(p.loss, 4),
        )
        for p in curve.ours
    ]


def _record(done: Outcome) -> dict[str, Any]:
    recipe = done.recipe
    return {
        "recipe": done.name,
        "reproduces": recipe.reproduces,
        "bibtex": recipe.bibtex,
        "full": done.full,
        "reduced": list(done.less),
        "units": done.units,
        "source": recipe.source,
        "published_values": "approximate",
        "rows": [{**asdict(row), "ratio": row.ratio} for row in done.rows],
        "undefended": asdict(done.undefended),
        "curves": [asdict(curve) for curve in done.curves],
    }


def _page(done: Outcome) -> list[str]:
    recipe = done.recipe
    lines = [f"# {recipe.title}", "", recipe.reproduces, ""]
    if done.full:
        lines += ["This is the full version.", ""]
    else:
        lines += ["This is the reduced version. Less than in the full one:", ""]
        lines += [f"* {line}" for line in done.less]
        lines += ["", f"In full: `exhume recipe run {done.name} --full`.", ""]
    lines += [
        "## Ours beside theirs",
        "",
        f"Errors: {done.units}. Published values are approximate: {recipe.source}",
        "",
        *_table(HEADINGS, [cells(row) for row in done.rows]),
        "",
        *_notes(done.rows),
        f"Agreement: {recipe.agreement}",
        "",
    ]
    if done.curves:
        lines += ["![curves](curves.png)", ""]
    for curve in done.curves:
        lines += [f"### {curve.name[0].upper()}{curve.name[1:]}", ""]
        lines += _table(("strength", "error", "training loss"), points(curve))
        reasons = dict.fromkeys(p.reason for p in curve.ours if p.reason)
        lines += ["", *(f"Missing: {reason}" for reason in reasons), ""]
    for title, listed in (
        ("Defects of the published experiment that this one does not have", "c"),
        ("What else is not as published", "d"),
    ):
        sentences = recipe.corrections if listed == "c" else recipe.deviations
        if sentences:
            lines += [f"## {title}", "", *(f"* {s}" for s in sentences), ""]
    inside = "attacks" if done.curves else "comparison"
    lines += [
        f"The pictures, flags and every trial: [{inside}]({inside}/report.html).",
        "",
        "```bibtex",
        recipe.bibtex.strip(),
        "```",
    ]
    return lines


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return [f"| {' | '.join(line)} |" for line in (headings, rule, *lines)]


def _notes(rows: Sequence[Row]) -> list[str]:
    by_note: dict[str, list[str]] = {}
    for row in rows:
        if row.note and (row.ours is None or row.published is None):
            by_note.setdefault(row.note, []).append(row.quantity)
    if not by_note:
        return []
    told = [f"* {note}: {several(names)}." for note, names in by_note.items()]
    return ["Missing:", "", *told, ""]


def figure(done: Outcome) -> None:
    """Draw our curves as lines and the published points as hollow marks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    for index, curve in enumerate(done.curves):
        _draw(axes, curve, index)
    bare = done.undefended
    if bare.error and bare.loss and math.isfinite(bare.loss):
        axes.plot(bare.loss, bare.error, "kP", label="no defense (ours)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("training loss after training with the defense")
    axes.set_ylabel("error of the attack")
    axes.set_title(done.recipe.title, fontsize=10)
    axes.legend(fontsize=8)
    picture.savefig(done.folder / "curves.png", dpi=110)


def _draw(axes: Axes, curve: Curve, index: int) -> None:
    colour, marker = f"C{index}", _MARKERS[index % len(_MARKERS)]
    measured = curve.measured
    if measured:
        errors, losses = zip(*measured, strict=True)
        label = f"{curve.name} (ours)"
        axes.plot(losses, errors, color=colour, marker=marker, label=label)
    if curve.published:
        errors, losses = zip(*curve.published, strict=True)
        axes.plot(
            losses,
            errors,
            color=colour,
            marker=marker,
            linestyle=":",
            markerfacecolor="none",
            label=f"{curve.name} (published, approximate)",
        )
