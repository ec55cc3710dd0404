"""Carry out a plan: run what is missing, keep each result at once, say how far it is.

Audits, comparisons, scaling experiments and recipes are plans. Which specs are missing
is a function of the results so far and of nothing else, so that a run that was
interrupted takes the same way again, and nothing is computed twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Generic, Protocol

from exhume.runs.executor import Executor, Job, Result, Spec

__all__ = [
    "FixedPlan",
    "Known",
    "Plan",
    "Progress",
    "Remaining",
    "Results",
    "carry_out",
    "silent",
]


class Progress(Protocol):
    """Called once at the start of each phase of a run, and after each result."""

    def __call__(
        self, phase: str, done: int, total: int, what: str, seconds_left: float | None
    ) -> None:
        """Tell how far the run is.

        Args:
            phase: ``attacking`` (done and total count trials), ``calibrating`` or
                ``training`` (trainings), ``measuring`` (points of an experiment).
            done: what ended, earlier runs included.
            total: of the phase; an estimate while calibrating.
            what: just ended; "" at the start.
            seconds_left: of the phase, or None while there is nothing to go by.
        """


def silent(
    phase: str, done: int, total: int, what: str, seconds_left: float | None
) -> None:
    """Show no progress."""


class Results(Protocol[Result]):
    """Where results are kept by the id of their spec, such as a ``ResultFile``."""

    def finished(self) -> set[str]:
        """List the results that need not be computed again."""
        ...

    def get(self, spec_id: str, /) -> Result | None:
        """Return a result, or None if there is none."""
        ...

    def put(self, result: Result, /) -> None:
        """Keep a result for good."""


@dataclass(frozen=True)
class Known(Mapping[str, Result]):
    """Results by the id of their spec, read from where they are kept on demand.

    Attributes:
        kept: all results.
        ids: of those that count as known; it may grow.
    """

    kept: Results[Result]
    ids: set[str]

    def __contains__(self, spec_id: object) -> bool:
        return spec_id in self.ids

    def __getitem__(self, spec_id: str) -> Result:
        found = self.kept.get(spec_id) if spec_id in self.ids else None
        if found is None:
            raise KeyError(spec_id)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Remaining(Generic[Spec]):
    """What is left of a plan.

    Attributes:
        missing: specs to run, by id.
        done: how many specs of the plan have a result.
        later: how many specs will follow from results that are missing; an estimate.
    """

    missing: Mapping[str, Spec]
    done: int
    later: int = 0

    @property
    def total(self) -> int:
        """How many specs the plan has, as far as can be told."""
        return self.done + len(self.missing) + self.later


class Plan(ABC, Generic[Spec, Result]):
    """What is to be run.

    Attributes:
        phase: see :class:`Progress`.
    """

    phase: str

    @abstractmethod
    def remaining(self, known: Mapping[str, Result]) -> Remaining[Spec]:
        """Say what is left; the results so far may lead to further specs.

        Args:
            known: results by id; those of specs that are not of the plan do not matter.
        """

    def label(self, spec: Spec, /) -> str:
        """Name a spec in a few words; by its id unless this is overridden."""
        return spec.id

    def weight(self, spec: Spec, /) -> float:
        """Return how long a spec takes, in any unit that its kind has in common."""
        return 1.0

    def kind(self, spec: Spec, /) -> str:
        """Name the kind of a spec; the time per weight of a kind is measured."""
        return ""


class FixedPlan(Plan[Spec, Result]):
    """A plan that is a list of specs.

    Args:
        phase: see :class:`Progress`.
        specs: to run in this order, each once.
        label: names a spec.
        weight: see :meth:`Plan.weight`; all weigh the same without it.
        kind: see :meth:`Plan.kind`; all are of one kind without it.
    """

    def __init__(
        self,
        phase: str,
        specs: Iterable[Spec],
        *,
        label: Callable[[Spec], str],
        weight: Callable[[Spec], float] = lambda _: 1.0,
        kind: Callable[[Spec], str] = lambda _: "",
    ) -> None:
        self.phase = phase
        self.label, self.weight, self.kind = label, weight, kind
        self._specs = {spec.id: spec for spec in specs}

    def remaining(self, known: Mapping[str, Result]) -> Remaining[Spec]:
        """List the specs without a result."""
        missing = {i: spec for i, spec in self._specs.items() if i not in known}
        return Remaining(missing, len(self._specs) - len(missing))


def carry_out(
    plan: Plan[Spec, Result],
    job: Job[Spec, Result],
    kept: Results[Result],
    *,
    where: Executor,
    tell: Progress = silent,
) -> None:
    """Run what is missing of a plan until nothing is; each result is durable at once.

    Specs that failed in an earlier run are tried again, once.

    Args:
        plan: what to run.
        job: how to run a spec.
        kept: results of this and earlier runs.
        where: the executor.
        tell: told at the start and after every result.

    Raises:
        InvalidInput: nothing can run there, or a result cannot be kept.
        KeyboardInterrupt: what had ended is kept.
    """
    known = Known(kept, kept.finished())
    left = plan.remaining(known)
    waiting = dict(left.missing)
    queue, asked = deque(waiting.values()), set(waiting)
    clock = _Clock(plan, where.parallel)
    tell(plan.phase, left.done, left.total, "", None)
    with closing(where.map(job, queue)) as results:
        for result in results:
            kept.put(result)
            known.ids.add(result.spec.id)
            waiting.pop(result.spec.id, None)
            left = plan.remaining(known)
            fresh = {i: s for i, s in left.missing.items() if i not in asked}
            waiting |= fresh
            asked |= fresh.keys()
            queue.extend(fresh.values())
            seconds = clock.seconds_left(result, waiting.values(), left.later)
            status = "" if result.status == "done" else f" ({result.status})"
            what = plan.label(result.spec) + status
            tell(plan.phase, left.done, left.total, what, seconds)


@dataclass
class _Clock(Generic[Spec, Result]):
    """Estimates the time left from the time per weight of each kind so far."""

    plan: Plan[Spec, Result]
    parallel: int
    spent: dict[str, tuple[float, float]] = field(default_factory=dict)
    count: int = 0

    def seconds_left(
        self, result: Result, waiting: Collection[Spec], later: int
    ) -> float:
        kind, weight = self.plan.kind(result.spec), self.plan.weight(result.spec)
        seconds, weights = self.spent.get(kind, (0.0, 0.0))
        self.spent[kind] = seconds + result.seconds, weights + weight
        self.count += 1
        rates = {kind: s / w for kind, (s, w) in self.spent.items() if w}
        # Unknown kinds are taken to be as slow as the slowest known: what is cheap runs
        # first, and an estimate that falls is better than one that grows.
        slowest = max(rates.values(), default=0.0)
        total = sum(
            self.plan.weight(spec) * rates.get(self.plan.kind(spec), slowest)
            for spec in waiting
        )
        mean = sum(seconds for seconds, _ in self.spent.values()) / self.count
        at_once = max(min(self.parallel, len(waiting) + later), 1)
        return (total + later * mean) / at_once
