"""What an attack returns: estimates, its own objective, how it ended, what it cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

__all__ = ["Cost", "Outcome", "Reconstruction", "Stopwatch", "TracePoint"]


class Outcome(Enum):
    """How an attack ended, as a sentence."""

    CLOSED_FORM = "A closed form gave the answer; nothing was iterated."
    CONVERGED = "The objective stopped decreasing."
    TOLERANCE = "The objective fell below the tolerance."
    ITERATION_LIMIT = "The iteration budget ended first; more may help."
    TIME_LIMIT = "The time budget ended first; more may help."
    DIVERGED = "The objective grew or became infinite; the answer means nothing."
    NOT_APPLICABLE = "The attack does not apply to this model or observation."


@dataclass(frozen=True)
class Cost:
    """What a run cost.

    Attributes:
        cpu_seconds: process time.
        wall_seconds: elapsed time.
        evaluations: gradients of the model at a candidate (a Jacobian-vector or
            vector-Jacobian product counts as one).
    """

    cpu_seconds: float
    wall_seconds: float
    evaluations: int


@dataclass(frozen=True)
class TracePoint:
    """One point of the course of a run: restart, iteration, seconds, objective."""

    restart: int
    iteration: int
    cpu_seconds: float
    objective: float


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """An attack's answer.

    Attributes:
        inputs: x̂, shape [B̂, *event], finite, within the range of the event.
        targets: ŷ, shape [B̂, ...]: known labels, or the ones that were estimated.
        objective: the attack's own objective at exactly (inputs, targets); None for a
            method that has none.
        outcome: how it ended.
        cost: time and evaluations over all restarts.
        trace: the objective over time.
        adaptive: the attack used the declared law of the defense.
        notes: sentences for the report (a label that was guessed, a fallback).
    """

    inputs: Tensor
    targets: Tensor
    objective: float | None
    outcome: Outcome
    cost: Cost
    trace: tuple[TracePoint, ...] = ()
    adaptive: bool = False
    notes: tuple[str, ...] = field(default=())


class Stopwatch:
    """Measure one run: CPU and wall seconds since creation, and evaluations."""

    def __init__(self) -> None:
        self.evaluations = 0
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    @property
    def cpu_seconds(self) -> float:
        """Process time since creation."""
        return time.process_time() - self._cpu

    def count(self, evaluations: int = 1) -> None:
        """Add to the number of model gradients taken."""
        self.evaluations += evaluations

    def cost(self) -> Cost:
        """Return what has been spent so far."""
        wall = time.perf_counter() - self._wall
        return Cost(self.cpu_seconds, wall, self.evaluations)
