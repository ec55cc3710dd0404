"""Run a recipe by the engines of the audit and the comparison, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exhume.config import validate
from exhume.recipes.agreement import Point, Row, rows
from exhume.recipes.book import load, path_of, placed, reduced
from exhume.recipes.outcome import Outcome
from exhume.recipes.recipe import Gain
from exhume.runs.carry_out import Progress, silent

if TYPE_CHECKING:
    from exhume.compare import Comparison
    from exhume.compare.frontier import Frontier
    from exhume.compare.frontier import Point as CalibratedPoint

__all__ = ["Outcome", "run"]

_ATTACKS, _COMPARISON, _TRAINING = "attacks", "comparison", "training.sqlite"
_NATURAL = "mean squared error per number of the data"
_NORMALISED = "mean squared error per pixel in the model's normalised units"
_UNATTACKED = "no attack finished"


def run(
    name: str,
    *,
    full: bool = False,
    data: str | None = None,
    out: str | Path | None = None,
    executor: str = "processes",
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
        executor: where trials and trainings run, as in an audit.
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
    tell = progress or silent
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


def _curves(
    shell: Outcome, source: dict[str, Any], where: dict[str, Any], tell: Progress
) -> Outcome:
    """Attack every stack, train with every stack, and put the two together."""
    from exhume import audit
    from exhume.recipes.curves import (
        attack_settings,
        curves_of,
        guess_error,
        normalised,
        train_missing,
        training_specs,
    )

    recipe = shell.recipe
    settings = attack_settings(recipe, shell.name, {**where, "data": source})
    specs = training_specs(recipe, settings, source)
    attacks = audit.run(settings, out=shell.folder / _ATTACKS, progress=tell)
    losses = train_missing(specs, shell.folder / _TRAINING, settings.where, tell)
    curves, undefended = curves_of(recipe, settings, attacks.results, losses)
    guess = guess_error(attacks.results, settings)
    return replace(
        shell,
        units=_NORMALISED if normalised(settings) else shell.units,
        rows=tuple(rows(curves, undefended, guess)),
        curves=curves,
        undefended=undefended,
    )


def _compared(
    shell: Outcome, source: dict[str, Any], where: dict[str, Any], tell: Progress
) -> Outcome:
    """Compare at equal utility, and divide errors as the recipe asks."""
    from exhume import compare
    from exhume.compare import CompareSettings
    from exhume.compare.wording import AXIS

    recipe = shell.recipe
    given = {**recipe.compare, **where, "title": recipe.title, "data": source}
    settings = validate(CompareSettings, given, what=f"{shell.name}, [compare]")
    comparison = compare.run(settings, out=shell.folder / _COMPARISON, progress=tell)
    bare, why = _strongest(comparison.undefended)
    return replace(
        shell,
        rows=tuple(_budget_rows(comparison, recipe.gains)),
        undefended=Point(None, bare, None, reason=why if bare is None else ""),
        units=f"{_units(comparison)}; behind ‘at’: {AXIS[settings.utility]}",
        comparison=comparison,
    )


def _units(comparison: Comparison) -> str:
    from exhume.audit.report.results import described
    from exhume.runs.records import BOUNDED_METRIC

    if comparison.metric == BOUNDED_METRIC:
        return _NATURAL
    return described(comparison.metric).axis("of an example")


def _budget_rows(comparison: Comparison, gains: Sequence[Gain]) -> list[Row]:
    from exhume.compare.wording import shown

    bare, why = _strongest(comparison.undefended)
    listed = [Row(f"no defense: error ({why})", bare, None)]
    utility = comparison.settings.utility
    for budget in comparison.settings.budgets:
        at = shown(utility, budget)
        found = [
            (f.family.label, *_error_at(f, budget, utility))
            for f in comparison.frontiers
        ]
        listed += [
            Row(f"at {at}, {label}: error ({how})", error, None)
            for label, error, how in found
        ]
        for gain in gains:
            name, error, _ = found[gain.family - 1]
            other, reference, _ = found[gain.over - 1]
            ratio = error / reference if error is not None and reference else None
            what = f"at {at}, {name} over {other}"
            listed.append(Row(what, ratio, gain.published or None))
    return listed


def _error_at(
    frontier: Frontier, budget: float, utility: str
) -> tuple[float | None, str]:
    """Return the error at a budget, and by which attack, or why there is none."""
    from exhume.compare.leaderboard import attack_names
    from exhume.compare.places import at_budget
    from exhume.compare.wording import shown

    if frontier.failure:
        return None, frontier.failure
    place = at_budget(frontier, budget)
    if place is None:
        (settled,) = [s for s in frontier.settled if s.budget == budget]
        return None, settled.reason or _UNATTACKED
    how = attack_names(place)
    if place.interpolated:
        return place.error, f"{how}, interpolated"
    if place.loss != budget:
        return place.error, f"{how}, measured at {shown(utility, place.loss)}"
    return place.error, how


def _strongest(point: CalibratedPoint) -> tuple[float | None, str]:
    from exhume.compare.leaderboard import attack_name

    if point.strongest is None:
        return None, _UNATTACKED
    return point.strongest.error, attack_name(point.strongest)
