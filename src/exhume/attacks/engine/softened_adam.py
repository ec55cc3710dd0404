"""Adam with a large ε stands in for Adam where its steps are all but signs."""

from __future__ import annotations

from dataclasses import replace

from exhume.attacks.engine.local_steps import LocalSteps
from exhume.attacks.engine.start import centre, placeholder_targets
from exhume.observations.update import Update
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.tree import norm

__all__ = ["softened_adam"]

# ε in root mean squares of the gradient at a guess, round by round.
_LEVELS = (0.5, 0.05, 0.005)


def softened_adam(problem: Problem, objective: LocalSteps) -> list[Update]:
    """Return the client with a larger ε, ever less so; nothing without Adam.

    The first steps of Adam are close to signs of the gradient, which do not change with
    the examples until an entry passes zero. With a large ε they are proportional to it.

    Args:
        problem: what the attacker sees.
        objective: with the client as it is.
    """
    client = objective.client
    if client.optimiser == "sgd":
        return []
    size: int = problem.require(Fact.BATCH_SIZE)
    middle = centre(problem).to(objective.task.dtype)
    targets, _ = placeholder_targets(problem, size)
    if targets.is_floating_point():
        targets = targets.to(middle)
    gradient = objective.task.gradient(middle.expand(size, *middle.shape), targets)
    count = sum(t.numel() for t in gradient.values())
    typical = float(norm(gradient).detach()) / count**0.5
    levels = [level * typical for level in _LEVELS]
    return [replace(client, epsilon=e) for e in levels if e > client.epsilon]
