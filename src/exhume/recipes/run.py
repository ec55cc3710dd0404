"""Run a recipe by the engines of the audit and the comparison, resumable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from exhume.config import validate
from exhume.errors import InvalidInput
from exhume.recipes.agreement import Curve, Point, Row, rows
from exhume.recipes.book import load, path_of, placed, reduced
from exhume.recipes.recipe import Recipe

if TYPE_CHECKING:
    from exhume.compare import CompareSettings, Comparison

__all__ = ["Outcome", "Progress", "run"]

_ATTACKS, _COMPARISON, _TRAINING = "attacks", "comparison", "training.sqlite"
_NATURAL = "mean squared error per number of the data"
_NORMALISED = "mean squared error per pixel in the model's normalised units"


class Progress(Protocol):
    """Called after everything that ends."""

    def __call__(
        self, phase: str, done: int, total: int, what: str, seconds_left: float | None
    ) -> None:
        """Tell how far the recipe is, as ``compare.run.Progress`` does."""


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


def run(
    name: str,
    *,
    full: bool = False,
    data: str | None = None,
    out: str | Path | None = None,
    executor: Literal["serial", "processes"] = "processes",
    workers: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Run a recipe, or what is missing of it, and write its table and figure.

    Args:
        name: of a recipe, or the path of a TOML file.
        full: as published; otherwise the reduced version.
        data: path of the data set; by default the recipe's environment variable.
        out: folder; by default ``runs/recipes/NAME``, with ``-reduced`` behind it for
            the reduced version.
        executor: ``serial`` or ``processes``.
        workers: number of processes; 0 takes one per core.
        progress: told how far it is.

    Raises:
        InvalidInput: the recipe, its settings or its data are wrong; nothing ran.
        KeyboardInterrupt: what had finished is kept.
    """
    from exhume.recipes.page import write

    recipe, less = load(name), []
    if not full:
        recipe, less = reduced(recipe)
    source = placed(recipe, data)
    plain = path_of(name).stem
    default = Path("runs", "recipes", plain if full else f"{plain}-reduced")
    folder = Path(out or default)
    where = {"executor": executor, "workers": workers}
    tell: Progress = progress or _silent
    shell = Outcome(
        plain,
        recipe,
        full,
        tuple(less),
        folder,
        _NATURAL,
        (),
        (),
        Point(None, None, None),
        None,
        folder / "recipe.md",
    )
    done = (_compared if recipe.compare else _curves)(shell, source, where, tell)
    write(done)
    return done


def _silent(
    phase: str, done: int, total: int, what: str, seconds_left: float | None
) -> None:
    """Tell nobody."""


def _curves(
    shell: Outcome, source: dict[str, Any], where: dict[str, Any], tell: Progress
) -> Outcome:
    """Attack every stack, train with every stack, and put the two together."""
    from exhume import audit
    from exhume.recipes.curves import (
        attack_settings,
        curves_of,
        normalised,
        train_missing,
        training_specs,
    )

    recipe = shell.recipe
    settings = attack_settings(recipe, shell.name, {**where, "data": source})
    specs = training_specs(recipe, settings, source)
    attacks = audit.run(
        settings, out=shell.folder / _ATTACKS, progress=_attacking(tell)
    )
    losses = train_missing(specs, shell.folder / _TRAINING, where, tell)
    curves, undefended = curves_of(recipe, settings, attacks.results, losses)
    return replace(
        shell,
        units=_NORMALISED if normalised(settings) else shell.units,
        rows=tuple(rows(curves, undefended)),
        curves=curves,
        undefended=undefended,
    )


def _attacking(tell: Progress) -> Any:
    from exhume.audit.naming import defense_label

    def told(done: int, total: int, result: Any, left: float | None) -> None:
        what = ""
        if result is not None:
            spec = result.spec
            method = (spec.attack or spec.bound or {}).get("name", "")
            what = f"{method}, {defense_label(spec.defenses)}, seed {spec.seed}"
        tell("attacking", done, total, what, left)

    return told


def _compared(
    shell: Outcome, source: dict[str, Any], where: dict[str, Any], tell: Progress
) -> Outcome:
    """Compare at equal utility; each family beside the first, at every budget."""
    from exhume import compare
    from exhume.compare import CompareSettings

    recipe = shell.recipe
    given = {**recipe.compare, **where, "title": recipe.title, "data": source}
    settings = validate(CompareSettings, given, what=f"{shell.name}, [compare]")
    _check_gains(settings, recipe.published_gains)
    comparison = compare.run(settings, out=shell.folder / _COMPARISON, progress=tell)
    bare = comparison.undefended.strongest
    return replace(
        shell,
        rows=tuple(_budget_rows(comparison, recipe.published_gains)),
        undefended=Point(None, bare.error if bare else None, None),
        comparison=comparison,
    )


def _check_gains(settings: CompareSettings, published: dict[str, float]) -> None:
    from exhume.audit.sweep import Checked
    from exhume.compare.family import families

    checked = Checked()
    known = [family.label for family in families(settings, checked)]
    checked.report()
    unknown = set(published) - set(known)
    if unknown:
        msg = (
            f"[published_gains] names {', '.join(sorted(unknown))}; the families are "
            f"{', '.join(known)}"
        )
        raise InvalidInput(msg)


def _budget_rows(comparison: Comparison, published: dict[str, float]) -> list[Row]:
    from exhume.compare.units import told_loss

    listed = []
    utility = comparison.settings.utility
    for budget in comparison.settings.budgets:
        told = f"{told_loss(utility, budget)} lost"
        found = [(f.family.label, *_error_at(f, budget)) for f in comparison.frontiers]
        listed += [
            Row(f"{told}, {label}: error", error, None, why)
            for label, error, why in found
        ]
        name, first, _ = found[0]
        for label, error, why in found[1:]:
            gain = error / first if error is not None and first else None
            over = f"{told}, error of {label} over {name}"
            listed.append(Row(over, gain, published.get(label), why))
    return listed


def _error_at(frontier: Any, budget: float) -> tuple[float | None, str]:
    """Return the error where a family was brought to a budget, or why it was not."""
    if frontier.failure:
        return None, frontier.failure
    (settled,) = [s for s in frontier.settled if s.budget == budget]
    if not settled.within:
        return None, settled.reason
    point = next(p for p in frontier.points if p.strength == settled.step.strength)
    if point.strongest is None:
        return None, "no attack finished"
    return point.strongest.error, ""
