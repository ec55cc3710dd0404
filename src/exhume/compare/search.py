"""Measure utilities until every family has met every budget, or is known not to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from exhume.compare.calibration import FIRST_ROUND, Settled, Step, rounds, settle
from exhume.compare.family import Family
from exhume.compare.settings import CompareSettings
from exhume.runs.records import Options
from exhume.trials.utility import MEASURE, UtilityResult, UtilitySpec, UtilityStore

__all__ = ["Searched", "Tell", "UtilityLoss", "replay", "search"]

#: measurements, how many there will be (an estimate), what was last, seconds left
Tell = Callable[[int, int, str, float | None], None]


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


class _Rounds:
    """All searches of a comparison: takes results, says what to measure next."""

    def __init__(self, loss: UtilityLoss, families: Sequence[Family]) -> None:
        self._loss, self._settings = loss, loss.settings
        self.known: dict[str, UtilityResult] = {}
        self.plain = Searched(None, waiting=[(0.0, loss.specs(()))])
        self.searches = [Searched(family) for family in families]
        for search in self.searches:
            self._ask(search)

    def missing(self) -> list[UtilitySpec]:
        """List what has to be measured now; other rounds follow from it."""
        while self._advance():
            pass
        specs = [
            spec
            for search in (self.plain, *self.searches)
            for _, listed in search.waiting
            for spec in listed
            if spec.id not in self.known
        ]
        return list({spec.id: spec for spec in specs}.values())

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
        found = [self.known.get(spec.id) for spec in specs]
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
    state = _Rounds(loss, families)
    missing = _feed(state, store, retry=False)
    return state.plain_results(), state.searches, not missing


def _feed(state: _Rounds, store: UtilityStore, *, retry: bool) -> list[UtilitySpec]:
    """Hand over what is stored, until something is missing."""
    stored = store.finished() if retry else store.ids()
    while True:
        missing = state.missing()
        here = [spec for spec in missing if spec.id in stored]
        if not here:
            return missing
        for spec in here:
            result = store.get(spec.id)
            assert result is not None
            state.known[spec.id] = result


def search(
    loss: UtilityLoss, families: Sequence[Family], store: UtilityStore, tell: Tell
) -> None:
    """Measure everything that is missing; each result is durable at once.

    Args:
        loss: how utility is measured.
        families: to calibrate.
        store: of results; what it holds is not measured again, failures are.
        tell: told after every measurement.
    """
    settings = loss.settings
    state = _Rounds(loss, families)
    queue = deque(_feed(state, store, retry=True))
    asked = {spec.id for spec in queue}
    clock = _Clock(settings)
    left = clock.measurements_left(state)
    tell(len(state.known), len(state.known) + left, "", None)
    if not queue:
        return
    with closing(settings.where.map(MEASURE, queue)) as jobs:
        for result in jobs:
            store.put(result)
            state.known[result.spec.id] = result
            fresh = [s for s in _feed(state, store, retry=True) if s.id not in asked]
            queue.extend(fresh)
            asked |= {spec.id for spec in fresh}
            left = clock.measurements_left(state)
            seconds = clock.seconds_left(result, left)
            tell(len(state.known), len(state.known) + left, _name(result), seconds)


def _name(result: UtilityResult) -> str:
    from exhume.report.naming import defense_label

    status = "" if result.status == "done" else f" ({result.status})"
    return f"{defense_label(result.spec.defenses)}, seed {result.spec.seed}{status}"


class _Clock:
    """Estimates what is left: strengths that families took so far × mean seconds."""

    def __init__(self, settings: CompareSettings) -> None:
        self._parallel = settings.where.parallel
        self._seeds = len(settings.training_seed_list)
        self._guess = (len(FIRST_ROUND) + settings.evaluations) / 2
        self._seconds: list[float] = []

    def measurements_left(self, state: _Rounds) -> int:
        ended = [len(s.steps) for s in state.searches if s.ended and not s.failure]
        usual = fmean(ended) if ended else self._guess
        steps = sum(
            max(usual - len(s.steps), len(s.waiting), 1)
            for s in state.searches
            if not s.ended
        )
        begun = sum(
            spec.id in state.known
            for s in state.searches
            for _, specs in s.waiting
            for spec in specs
        )
        return max(round(steps * self._seeds) - begun, 0)

    def seconds_left(self, result: UtilityResult, measurements: int) -> float:
        self._seconds.append(result.seconds)
        return measurements * fmean(self._seconds) / self._parallel
