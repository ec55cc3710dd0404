"""Measure utilities until every family has met every budget, or is known not to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from exhume.compare.calibration import FIRST_ROUND, Settled, Step, rounds, settle
from exhume.compare.family import Family
from exhume.compare.settings import CompareSettings
from exhume.runs.carry_out import Known, Plan, Remaining
from exhume.runs.records import Options
from exhume.trials.utility import UtilityResult, UtilitySpec, UtilityStore

__all__ = ["Rounds", "Searched", "UtilityLoss", "label", "replay"]


@dataclass(frozen=True)
class UtilityLoss:
    """How the results of one setting become utility losses.

    Attributes:
        settings: of the comparison.
        common: fields of every spec but defense and seed.
    """

    settings: CompareSettings
    common: dict[str, Any]

    def specs(self, stack: tuple[Options, ...]) -> list[UtilitySpec]:
        """List the measurements of one stack, one per seed."""
        return [
            UtilitySpec(**self.common, defenses=stack, seed=seed)
            for seed in self.settings.training_seed_list
        ]

    def losses(
        self, plain: Sequence[UtilityResult], defended: Sequence[UtilityResult]
    ) -> tuple[float, ...]:
        """Subtract, seed by seed, from the undefended training; U1 and U2 are costs."""
        name = self.settings.utility
        sign = -1 if name == "accuracy" else 1
        return tuple(
            sign * (d.values[name] - p.values[name])
            for p, d in zip(plain, defended, strict=True)
        )


@dataclass(eq=False)
class Searched:
    """The search of one family, and what came of it.

    Attributes:
        family: that is calibrated; None for no defense.
        steps: measured strengths, in the order of the search.
        failure: one sentence if a measurement failed, else "".
        ended: nothing is left to measure.
    """

    family: Family | None
    steps: list[Step] = field(default_factory=list)
    failure: str = ""
    ended: bool = False
    waiting: list[tuple[float, list[UtilitySpec]]] = field(default_factory=list)

    def settled(self, settings: CompareSettings) -> list[Settled]:
        """Return what became of every budget; nothing if a measurement failed."""
        if self.failure or not self.steps:
            return []
        tolerance = settings.tolerance
        return [settle(self.steps, budget, tolerance) for budget in settings.budgets]


class Rounds(Plan[UtilitySpec, UtilityResult]):
    """The plan of all searches of a comparison: what is measured says what to measure.

    Args:
        loss: how utility is measured.
        families: to calibrate.
    """

    phase = "calibrating"

    def __init__(self, loss: UtilityLoss, families: Sequence[Family]) -> None:
        self._loss, self._settings = loss, loss.settings
        self._results: dict[str, UtilityResult] = {}
        self.plain = Searched(None, waiting=[(0.0, loss.specs(()))])
        self.searches = [Searched(family) for family in families]
        for search in self.searches:
            self._ask(search)

    def remaining(self, known: Mapping[str, UtilityResult]) -> Remaining[UtilitySpec]:
        """Walk on through what is known; other rounds follow from what is missing."""
        while True:
            missing = self._missing()
            here = {i: known[i] for i in missing if i in known}
            if not here:
                done, later = len(self._results), self._left() - len(missing)
                return Remaining(missing, done, max(later, 0))
            self._results |= here

    def label(self, spec: UtilitySpec) -> str:
        """Name a measurement in a few words."""
        return label(spec)

    def _missing(self) -> dict[str, UtilitySpec]:
        while self._advance():
            pass
        listed = {
            spec.id: spec
            for search in (self.plain, *self.searches)
            for _, specs in search.waiting
            for spec in specs
        }
        return {i: spec for i, spec in listed.items() if i not in self._results}

    def _left(self) -> int:
        """Estimate how many measurements are left: as many as others have taken."""
        settings = self._settings
        ended = [len(s.steps) for s in self.searches if s.ended and not s.failure]
        guess = (len(FIRST_ROUND) + settings.evaluations) / 2
        usual = fmean(ended) if ended else guess
        steps = sum(
            max(usual - len(s.steps), len(s.waiting), 1)
            for s in self.searches
            if not s.ended
        )
        begun = sum(
            spec.id in self._results
            for s in self.searches
            for _, specs in s.waiting
            for spec in specs
        )
        return round(steps * len(settings.training_seed_list)) - begun

    def _ask(self, search: Searched) -> None:
        s, family = self._settings, search.family
        assert family is not None
        positions = rounds(search.steps, s.budgets, s.tolerance, s.evaluations)
        asked = dict.fromkeys(family.strength(p) for p in positions)
        measured = {step.strength for step in search.steps}
        # Rounding can lead to a strength that was measured already: nothing is between.
        search.waiting = [
            (strength, self._loss.specs(family.at(strength)))
            for strength in asked
            if strength not in measured
        ]
        search.ended = not search.waiting

    def _advance(self) -> bool:
        """Move every search on whose round is complete; tell whether any has moved."""
        if not self.plain.ended:
            found = self._found(self.plain.waiting[0][1])
            if found is None:
                return False
            self.plain.ended, self.plain.failure = True, _failure(found)
        moved = False
        for search in self.searches:
            moved = (not search.ended and self._complete(search)) or moved
        return moved

    def _complete(self, search: Searched) -> bool:
        assert search.family is not None
        rows = [(strength, self._found(specs)) for strength, specs in search.waiting]
        if any(found is None for _, found in rows):
            return False
        plain = self._found(self.plain.waiting[0][1]) or []
        for strength, found in rows:
            results = found or []
            search.failure = search.failure or _failure(plain) or _failure(results)
            if search.failure:
                search.ended, search.waiting = True, []
                return True
            position = search.family.position(strength)
            losses = self._loss.losses(plain, results)
            search.steps.append(Step(position, strength, losses))
        self._ask(search)
        return True

    def _found(self, specs: Sequence[UtilitySpec]) -> list[UtilityResult] | None:
        found = [self._results.get(spec.id) for spec in specs]
        return None if None in found else [result for result in found if result]

    def plain_results(self) -> list[UtilityResult]:
        """Return the undefended measurements, one per seed."""
        return self._found(self.plain.waiting[0][1]) or []


def _failure(results: Sequence[UtilityResult]) -> str:
    return next((r.reason for r in results if r.status == "failed"), "")


def replay(
    loss: UtilityLoss, families: Sequence[Family], store: UtilityStore
) -> tuple[list[UtilityResult], list[Searched], bool]:
    """Take the way of a search through what is stored, measuring nothing.

    Returns:
        the undefended results, the searches, and whether nothing is missing.
    """
    plan = Rounds(loss, families)
    left = plan.remaining(Known(store, store.ids()))
    return plan.plain_results(), plan.searches, not left.missing


def label(spec: UtilitySpec) -> str:
    """Name a measurement in a few words."""
    from exhume.report.words import defense_label

    return f"{defense_label(spec.defenses)}, seed {spec.seed}"
