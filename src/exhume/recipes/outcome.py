"""What a recipe found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exhume.recipes.agreement import Curve, Point, Row
from exhume.recipes.recipe import Recipe

if TYPE_CHECKING:
    from exhume.compare import Comparison

__all__ = ["Outcome"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a recipe found.

    Attributes:
        name: of the recipe.
        recipe: as it ran, in full or reduced.
        full: whether it ran in full.
        less: what the reduced version has less of, in words.
        folder: of the run.
        units: of the errors, in words.
        rows: ours beside theirs.
        curves: of a recipe with series; empty otherwise.
        undefended: error and loss without a defense.
        comparison: of a recipe with a comparison, or None.
        report: path of recipe.md.
    """

    name: str
    recipe: Recipe
    full: bool
    less: tuple[str, ...]
    folder: Path
    units: str
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    undefended: Point
    comparison: Comparison | None
    report: Path
