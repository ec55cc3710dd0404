"""Minimise in rounds: between them order and hardness of the local steps change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from exhume.attacks.engine.adam import Adam
from exhume.attacks.engine.driver import Design, reconstruct
from exhume.attacks.engine.local_steps import LocalSteps, schedule_notes
from exhume.attacks.engine.objective import Objective
from exhume.attacks.engine.softened_adam import softened_adam
from exhume.keys import fold
from exhume.observations.update import Update
from exhume.problem.knowledge import Problem
from exhume.problem.reconstruction import (
    Outcome,
    Reconstruction,
    Stopwatch,
    TracePoint,
)

__all__ = ["not_lost", "reconstruct_in_rounds"]

# A run has found something if its best point is below this share of its start.
_FOUND = 0.99


def reconstruct_in_rounds(
    problem: Problem, design: Design, rounds: int, key: int, inputs: Tensor | None
) -> Reconstruction:
    """Minimise the objective of local steps; return the best point of all restarts.

    Args:
        problem: what the attacker sees.
        design: the parts of the attack; its solver is ``Adam``, whose step size is
            halved from round to round, and its iterations are divided among them.
        rounds: where the order of the examples is open; one otherwise. Clients with
            Adam get four, in all but the last of which ε is larger than theirs.
        key: all randomness.
        inputs: start of the first restart, shape [B, *event]; drawn if None.
    """
    watch, limits = Stopwatch(), design.limits
    objective = design.objective
    open_order = isinstance(objective, LocalSteps) and objective.searches
    best: tuple[float, Reconstruction] | None = None
    trace: list[TracePoint] = []
    for restart in range(limits.restarts):
        left = math.inf if limits.seconds is None else limits.seconds
        left -= watch.cpu_seconds
        if best is not None and left <= 0:
            break
        share = left / (limits.restarts - restart)
        found = _one_restart(
            problem,
            replace(design, limits=replace(limits, restarts=1, seconds=share)),
            rounds if open_order else 1,
            fold(key, "restart", restart),
            inputs if restart == 0 else None,
        )
        watch.count(found.cost.evaluations)
        trace += [replace(point, restart=restart) for point in found.trace]
        value = objective.value(found.inputs, found.targets)
        if best is None or not best[0] <= value:
            best = (value, found)
    assert best is not None  # restarts ≥ 1
    value, found = best
    return replace(
        found,
        objective=value if math.isfinite(value) else None,
        cost=watch.cost(),
        trace=tuple(trace),
        notes=(*found.notes, *schedule_notes(objective, found.inputs, found.targets)),
    )


def _one_restart(
    problem: Problem, design: Design, rounds: int, key: int, inputs: Tensor | None
) -> Reconstruction:
    watch, objective = Stopwatch(), design.objective
    searches, softer = False, []
    if isinstance(objective, LocalSteps):
        searches, objective = objective.searches, replace(objective, open_order=False)
        softer = softened_adam(problem, objective)
        rounds = max(rounds, len(softer) + 1)
    found = _round(problem, _with(design, objective, softer, 0), rounds, 0, key, inputs)
    for index in range(1, rounds):
        seconds = design.limits.seconds
        assert seconds is not None
        left = seconds - watch.cpu_seconds
        fitted = found.outcome is Outcome.TOLERANCE and index > len(softer)
        if left <= 0 or fitted:
            break
        assert isinstance(objective, LocalSteps)
        if searches:
            objective = objective.ordered(found.inputs, found.targets)
        known = replace(problem, targets=found.targets)
        own = _with(design, objective, softer, index)
        own = replace(own, limits=replace(design.limits, seconds=left))
        again = _round(known, own, rounds, index, key, found.inputs)
        found = _joined(found, again)
    return found


def _with(
    design: Design, objective: Objective, softer: Sequence[Update], index: int
) -> Design:
    """Return the design of a round, its client softer in the first ones."""
    if index < len(softer):
        assert isinstance(objective, LocalSteps)
        objective = replace(objective, model=softer[index])
    return replace(design, objective=objective)


def _round(
    problem: Problem,
    design: Design,
    rounds: int,
    index: int,
    key: int,
    inputs: Tensor | None,
) -> Reconstruction:
    """Run one of the rounds, with its share of the iterations and of the time left."""
    solver, limits = design.solver, design.limits
    assert isinstance(solver, Adam)
    assert limits.seconds is not None
    share = limits.seconds / (rounds - index)
    limits = replace(
        limits,
        iterations=math.ceil(limits.iterations / rounds),
        seconds=None if math.isinf(share) else share,
    )
    solver = replace(solver, step_size=solver.step_size / 2**index)
    own = replace(design, solver=solver, limits=limits)
    found = reconstruct(problem, own, fold(key, "round", index), inputs)
    first = found.trace[0].objective if found.trace else math.inf
    # What a later round began with is a result already.
    sound = found.objective is not None and (
        index > 0 or found.objective < _FOUND * first
    )
    return replace(found, outcome=not_lost(found.outcome)) if sound else found


def not_lost(outcome: Outcome) -> Outcome:
    """Return the outcome of a run whose best point is well below its start.

    A run that ended above a good start, which it had left, has not diverged.
    """
    return Outcome.ITERATION_LIMIT if outcome is Outcome.DIVERGED else outcome


def _joined(first: Reconstruction, then: Reconstruction) -> Reconstruction:
    """Return the later answer with the history of both."""
    last = first.trace[-1] if first.trace else TracePoint(0, 0, 0.0, 0.0)
    later = [
        replace(
            point,
            iteration=last.iteration + point.iteration,
            cpu_seconds=last.cpu_seconds + point.cpu_seconds,
        )
        for point in then.trace[1:]
    ]
    spent = replace(
        then.cost, evaluations=first.cost.evaluations + then.cost.evaluations
    )
    return replace(then, trace=(*first.trace, *later), notes=first.notes, cost=spent)
