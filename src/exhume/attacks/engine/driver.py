"""Optimisation attacks: what a preset chooses, and the one loop that carries it out."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.attacks.engine.group import consensus, group_consistency
from exhume.attacks.engine.objective import Objective
from exhume.attacks.engine.restart import Limits, Pull, Restart
from exhume.attacks.engine.solver import Solver
from exhume.attacks.engine.start import drawn_variable, initial_with_note
from exhume.attacks.unknowns import InferredLabels, Unknowns, resolve_targets
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.attack import Attack
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.observation import Candidate, ObservationKind
from exhume.problem.reconstruction import Outcome, Reconstruction, Stopwatch
from exhume.problem.relaxation import Relaxation, Units

__all__ = ["Design", "Group", "Limits", "MatchingAttack", "reconstruct"]

# Spread that parts the examples of a deterministic start, as a share of the range.
_JITTER = 0.05


@dataclass(frozen=True, eq=False)
class Group:
    """How restarts that run side by side are pulled to their mean.

    Attributes:
        weight: of the pull.
        units: in which distances are measured.
        align: estimate translations between the seeds.
    """

    weight: float
    units: Units
    align: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """An optimisation attack, part by part.

    Attributes:
        objective: what is minimised; any ``Density`` may be among its priors.
        relaxation: x = g(z) of the inputs.
        solver: the step rule.
        limits: budgets.
        start: kind of start, see ``engine.start``.
        labels: strategies for labels that are not known, in order.
        group: None for independent restarts, one after the other.
        notes: sentences for the report.
    """

    objective: Objective
    relaxation: Relaxation
    solver: Solver
    limits: Limits
    start: str
    labels: tuple[InferredLabels, ...]
    group: Group | None = None
    notes: tuple[str, ...] = ()


def reconstruct(
    problem: Problem, design: Design, key: int, inputs: Tensor | None = None
) -> Reconstruction:
    """Minimise the objective from every start and return the best point.

    Restarts are compared by the attack's own objective at the point that would be
    returned: inside the range, with labels as classes.

    Args:
        problem: what the attacker sees.
        design: the parts of the attack.
        key: all randomness.
        inputs: start of the first restart, shape [B, *event]; drawn if None.
    """
    watch = Stopwatch()
    count: int = problem.require(Fact.BATCH_SIZE)
    fixed, label_notes = resolve_targets(problem, design.labels, count)
    task = design.objective.task
    unknowns = Unknowns.of(task, problem.spec, design.relaxation, fixed)
    _check_start(problem, count, inputs)
    notes = list(design.notes + label_notes)
    restarts: list[Restart] = []
    waiting = list(range(design.limits.restarts))
    while waiting:
        # A group shares its iterations; independent restarts go one after the other.
        together = waiting if design.group else waiting[:1]
        if _done(restarts, design, watch):
            break
        batch = []
        for index in together:
            given = inputs if index == 0 else None
            restart, note = _begin(problem, design, unknowns, key, index, given, watch)
            batch.append(restart)
            notes += [note] if note and note not in notes else []
        waiting = waiting[len(together) :]
        _race(batch, design, watch.cpu_seconds + _share(design, watch, waiting), watch)
        restarts += batch
    return _answer(problem, design, restarts, notes, watch)


def _done(restarts: list[Restart], design: Design, watch: Stopwatch) -> bool:
    """Say whether no further restart is worth it: an exact fit, or no time left."""
    fitted = any(r.outcome is Outcome.TOLERANCE for r in restarts)
    return fitted or (bool(restarts) and _left(design, watch) <= 0)


def _left(design: Design, watch: Stopwatch) -> float:
    seconds = design.limits.seconds
    return math.inf if seconds is None else seconds - watch.cpu_seconds


def _share(design: Design, watch: Stopwatch, waiting: list[int]) -> float:
    """Return the CPU seconds of the next restart, if the others are to get as many."""
    return _left(design, watch) / (1 + len(waiting))


def _begin(
    problem: Problem,
    design: Design,
    unknowns: Unknowns,
    key: int,
    index: int,
    given: Tensor | None,
    watch: Stopwatch,
) -> tuple[Restart, str]:
    random = generator(key, "restart", index)
    task, note = design.objective.task, ""
    if given is None:
        z, note = _draw(problem, design, index, random)
    else:
        z = design.relaxation.encode(given.to(device=task.device, dtype=task.dtype))
    restart = Restart(
        index,
        design.objective,
        unknowns,
        unknowns.leaves(z, random),
        design.solver,
        design.limits,
        watch,
        random,
    )
    return restart, note


def _draw(
    problem: Problem, design: Design, index: int, random: torch.Generator
) -> tuple[Tensor, str]:
    """Draw z of a start; the kinds without randomness serve the first restart only."""
    task, relaxation = design.objective.task, design.relaxation
    count: int = problem.require(Fact.BATCH_SIZE)
    fixed = design.start in ("prior-mean", "analytic")
    kind = "normal" if fixed and index > 0 else design.start
    drawn = drawn_variable(relaxation, kind, count, random)
    if drawn is not None:
        return drawn.to(device=task.device, dtype=task.dtype), ""
    start, note = initial_with_note(problem, kind, count, random)
    if fixed and index == 0 and count > 1:
        # Equal examples with equal labels would stay equal for ever.
        width = _JITTER * (problem.spec.peak or 1.0)
        draw = torch.randn(start.shape, generator=random, dtype=torch.float64)
        start = problem.spec.clamp(start + width * draw.to(start))
    return relaxation.encode(start.to(device=task.device, dtype=task.dtype)), note


def _race(
    restarts: list[Restart], design: Design, deadline: float, watch: Stopwatch
) -> None:
    """Advance all restarts in turn until each has ended or the time is over."""
    while any(r.outcome is None for r in restarts):
        pulls = _pulls(restarts, design.group)
        for restart, pull in zip(restarts, pulls, strict=True):
            restart.advance(pull)
        if watch.cpu_seconds >= deadline:
            break
    for restart in restarts:
        restart.finish(Outcome.TIME_LIMIT)


def _pulls(restarts: list[Restart], group: Group | None) -> list[Pull | None]:
    if group is None or len(restarts) == 1:
        return [None] * len(restarts)
    # Diverged seeds would spoil the mean of the others.
    sound = [r for r in restarts if r.outcome is not Outcome.DIVERGED]
    if len(sound) < 2:
        return [None] * len(restarts)
    leader = min(range(len(sound)), key=lambda i: sound[i].best_value)
    inputs = [r.inputs() for r in sound]
    means = consensus(inputs, leader, sound[leader].labels, align=group.align)
    own = dict(zip(map(id, sound), means, strict=True))
    return [_pull(group, own[id(r)]) if id(r) in own else None for r in restarts]


def _pull(group: Group, mean: Tensor) -> Pull:
    target = group.units.from_data(mean)
    return lambda x: group.weight * group_consistency(group.units.from_data(x), target)


def _answer(
    problem: Problem,
    design: Design,
    restarts: list[Restart],
    notes: list[str],
    watch: Stopwatch,
) -> Reconstruction:
    best: tuple[float, Candidate, Outcome] | None = None
    for restart in restarts:
        found = restart.answer()
        value = design.objective.value(found.inputs, found.targets)
        watch.count()
        rank = value if math.isfinite(value) else math.inf
        if best is None or rank < best[0]:
            assert restart.outcome is not None  # every run has been finished
            best = (rank, found, restart.outcome)
    assert best is not None  # restarts ≥ 1
    value, found, outcome = best
    return Reconstruction(
        inputs=found.inputs,
        targets=found.targets,
        objective=value if math.isfinite(value) else None,
        outcome=outcome,
        cost=watch.cost(),
        trace=tuple(point for restart in restarts for point in restart.trace),
        adaptive=problem.law_is_used,
        notes=tuple(notes),
    )


def _check_start(problem: Problem, count: int, inputs: Tensor | None) -> None:
    shape = (count, *problem.spec.shape)
    if inputs is None:
        return
    if tuple(inputs.shape) != shape or not bool(torch.isfinite(inputs).all()):
        msg = (
            f"the start has shape {list(inputs.shape)}; expected finite values of "
            f"shape {list(shape)}"
        )
        raise InvalidInput(msg)


class MatchingAttack(Attack):
    """An optimisation attack that matches the observation; presets choose the parts."""

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE}
    )
    uses: ClassVar[frozenset[Fact]] = frozenset(
        {
            Fact.LABELS,
            Fact.LEARNING_RATE,
            Fact.BATCH_ORDER,
            Fact.DEFENSE,
            Fact.PRIOR,
            Fact.PUBLIC_DATA,
        }
    )
    inverts: ClassVar[frozenset[ObservationKind]] = frozenset({"gradient", "update"})

    @abstractmethod
    def design(self, problem: Problem) -> Design:
        """Return the parts of the attack for a problem."""

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Reconstruct from drawn starts."""
        return self.run_from(problem, key, None)

    def run_from(
        self, problem: Problem, key: int, inputs: Tensor | None
    ) -> Reconstruction:
        """Reconstruct with an explicit first start, shape [B, *event]."""
        return reconstruct(problem, self.design(problem), key, inputs)

    def objective(self, problem: Problem, inputs: Tensor, targets: Tensor) -> float:
        """Return the function that the design minimises, at a candidate."""
        return self.design(problem).objective.value(inputs, targets)
