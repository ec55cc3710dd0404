"""The curves of a recipe: attacks by the audit, losses by the trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from exhume.audit.settings import AuditSettings, as_options
from exhume.config import validate
from exhume.recipes.agreement import Curve, Point
from exhume.recipes.recipe import Recipe, Series, Stack
from exhume.runs.carry_out import FixedPlan, Progress, carry_out

if TYPE_CHECKING:
    from exhume.runs.executor import Executor
    from exhume.runs.records import TrialResult
    from exhume.trials.utility import UtilityResult, UtilitySpec

__all__ = [
    "attack_settings",
    "curves_of",
    "guess_error",
    "normalised",
    "train_missing",
    "training_specs",
]

#: the trainer wants some; the loss on the training data does not use them
_HELD_OUT = 8
_GUESS = "prior-mean"
#: fields that a recipe's training and a measurement of utility share
_SHARED = (
    "mode",
    "batch_size",
    "steps",
    "optimiser",
    "learning_rate",
    "schedule",
    "order",
    "public_examples",
    "examples",
)


def attack_settings(recipe: Recipe, name: str, given: dict[str, Any]) -> AuditSettings:
    """Write the audit of every stack of a recipe, and of no defense.

    Args:
        recipe: with series.
        name: for messages.
        given: data, executor and workers.

    Raises:
        InvalidInput: a setting is wrong.
    """
    stacks = [list(stack) for series in recipe.series for stack in series.attacked]
    title = f"{recipe.title}: the attacks"
    settings = {**recipe.audit, **given, "title": title, "defenses": [[], *stacks]}
    return validate(AuditSettings, settings, what=f"{name}, [audit]")


def normalised(settings: AuditSettings) -> list[float]:
    """Return what the model divides each channel by; nothing if it does not."""
    return list(as_options(settings.model).get("std", []))


def _key(stack: Sequence[dict[str, Any]]) -> Any:
    """Return a stack as a key: names and options, completed, in any order."""
    from exhume.audit.settings import Checked

    checked = Checked()
    full = [checked.options("defense", options) for options in stack]
    checked.report()
    return json.dumps(full, sort_keys=True) if full else ()


def training_specs(
    recipe: Recipe, settings: AuditSettings, source: dict[str, Any]
) -> dict[Any, list[UtilitySpec]]:
    """List the trainings of every stack, by the key of the stack that is attacked."""
    from exhume.audit.settings import Checked
    from exhume.trials.utility import UtilitySpec

    training = recipe.training
    assert training is not None  # a recipe with series has one
    pairs: list[tuple[Stack, Stack]] = [((), ())]
    for series in recipe.series:
        pairs += zip(series.attacked, series.trained, strict=True)
    checked = Checked()
    common: dict[str, Any] = {
        "data": checked.options("data", source),
        "model": checked.options("model", settings.model),
        "observation": checked.options("observation", settings.observation),
        "loss": settings.loss,
        "dtype": settings.dtype,
        "classes": settings.classes,
        "kind": "training",
        "held_out": _HELD_OUT,
        "recalibrate": 0,
        "loss_batch": training.batch_size // training.clients,
    }
    for name in _SHARED:
        common[name] = getattr(training, name)
    mean = {"name": "secure-aggregation", "clients": training.clients}
    found = {}
    for attacked, trained in pairs:
        stack = [*trained, mean] if training.clients > 1 else trained
        options = tuple(checked.options("defense", o) for o in stack)
        checked.report()
        found[_key(attacked)] = [
            UtilitySpec(**common, defenses=options, seed=seed)
            for seed in range(training.seeds)
        ]
    return found


def train_missing(
    specs: dict[Any, list[UtilitySpec]], path: Path, where: Executor, tell: Progress
) -> dict[Any, list[UtilityResult]]:
    """Train what is missing; every result is durable at once."""
    from exhume.compare.search import label
    from exhume.trials.utility import MEASURE, UtilityStore

    wanted = [spec for listed in specs.values() for spec in listed]
    plan = FixedPlan("training", wanted, label=label)
    with UtilityStore(path) as store:
        carry_out(plan, MEASURE, store, where=where, tell=tell)
        return {
            key: [r for spec in listed if (r := store.get(spec.id)) is not None]
            for key, listed in specs.items()
        }


def _errors(
    results: Sequence[TrialResult], stds: list[float]
) -> dict[Any, dict[int, float]]:
    """Return the error of the strongest attack on every stack, by seed.

    Chance levels are not attacks: the paper has none.
    """
    table: dict[Any, dict[str, dict[int, float]]] = {}
    for result in results:
        if result.status == "done" and result.spec.attack and not result.baseline:
            attack = json.dumps(result.spec.attack, sort_keys=True)
            row = table.setdefault(_key(result.spec.defenses), {}).setdefault(
                attack, {}
            )
            row[result.spec.seed] = _error(result, stds)
    return {
        key: min(rows.values(), key=lambda row: fmean(row.values()))
        for key, rows in table.items()
    }


def guess_error(
    results: Sequence[TrialResult], settings: AuditSettings
) -> float | None:
    """Return the error of the prior mean (grey without a prior), None if it is missing.

    Args:
        results: of the attacks.
        settings: of the attacks.
    """
    found = [
        _error(result, normalised(settings))
        for result in results
        if result.status == "done"
        and (result.spec.attack or {}).get("name") == _GUESS
        and not result.spec.defenses
    ]
    return fmean(found) if found else None


def _error(result: TrialResult, stds: list[float]) -> float:
    import numpy as np

    gap = result.arrays["guess"].astype(float) - result.arrays["truth"].astype(float)
    if stds:
        shape = (1, -1) + (1,) * (gap.ndim - 2)
        gap = gap / np.array(stds).reshape(shape)
    return float(np.mean(gap**2))


def curves_of(
    recipe: Recipe,
    settings: AuditSettings,
    results: Sequence[TrialResult],
    losses: dict[Any, list[UtilityResult]],
) -> tuple[tuple[Curve, ...], Point]:
    """Put errors and losses together; return the curves, and the point of no defense.

    Args:
        recipe: with series.
        settings: of the attacks.
        results: of the attacks.
        losses: of the trainings, see :func:`train_missing`.
    """
    errors = _errors(results, normalised(settings))
    undefended = _point(None, errors.get((), {}), losses[()])
    curves = tuple(_curve(series, errors, losses) for series in recipe.series)
    return curves, undefended


def _curve(
    series: Series,
    errors: dict[Any, dict[int, float]],
    losses: dict[Any, list[UtilityResult]],
) -> Curve:
    points = [
        _point(strength, errors.get(_key(stack), {}), losses[_key(stack)])
        for strength, stack in zip(series.strengths, series.attacked, strict=True)
    ]
    return Curve(series.name, series.option, tuple(points), tuple(series.published))


def _point(
    strength: float | None, errors: dict[int, float], trained: Sequence[UtilityResult]
) -> Point:
    reasons = [r.reason for r in trained if r.reason]
    values = [r.values["loss"] for r in trained if r.status == "done"]
    if not errors:
        reasons.insert(0, "no attack finished")
    return Point(
        strength,
        fmean(errors.values()) if errors else None,
        fmean(values) if values else None,
        tuple(errors[seed] for seed in sorted(errors)),
        reasons[0] if reasons else "",
    )
