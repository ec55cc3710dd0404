"""Labels of a candidate: known, inferred beforehand, or optimised with the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exhume.attacks.engine.labels import label_note, recover_labels
from exhume.errors import InvalidInput, MissingKnowledge
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.task import Task

__all__ = ["InferredLabels", "TargetVariable", "resolve_targets", "target_variable"]

#: what to do about labels that are not known
InferredLabels = Literal["idlg", "bias-corrected", "joint"]


@dataclass(frozen=True, eq=False)
class TargetVariable:
    """Targets that are fixed, or logits (or real targets) that are optimised.

    Attributes:
        fixed: known or inferred targets, or None.
        free: the variable [B, K] otherwise.
        classes: the free targets are classes: their softmax enters the loss.
    """

    fixed: Tensor | None = None
    free: Tensor | None = None
    classes: bool = True

    @property
    def variables(self) -> list[Tensor]:
        """What a solver may change."""
        return [] if self.free is None else [self.free]

    def decode(self) -> Tensor:
        """Return targets for the loss, differentiable in the variable."""
        if self.free is None:
            assert self.fixed is not None
            return self.fixed
        return self.free.softmax(dim=-1) if self.classes else self._real(self.free)

    def answer(self, free: Tensor | None) -> Tensor:
        """Return the targets that a value of the variable stands for.

        Args:
            free: a copy of the variable, or None where the targets are fixed.
        """
        if free is None:
            assert self.fixed is not None
            return self.fixed
        return free.argmax(dim=-1) if self.classes else self._real(free)

    def _real(self, free: Tensor) -> Tensor:
        return free.squeeze(-1) if free.shape[-1] == 1 else free


def resolve_targets(
    problem: Problem, strategies: tuple[InferredLabels, ...], batch_size: int
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return known or inferred targets, or None to optimise them; and notes.

    Args:
        problem: what the attacker sees.
        strategies: tried in order where the labels are not known.
        batch_size: B.
    """
    if problem.targets is not UNKNOWN:
        targets = problem.targets
        if targets.is_floating_point():
            targets = targets.to(problem.require(Fact.WEIGHTS).dtype)
        return targets, ()
    notes: list[str] = []
    for strategy in strategies:
        if strategy == "joint":
            break
        try:
            targets = recover_labels(problem, strategy, batch_size)
        except (InvalidInput, MissingKnowledge) as error:
            notes.append(f"The labels could not be inferred ({strategy}): {error}.")
            continue
        return targets, (*notes, label_note(problem, strategy))
    return None, (*notes, "The labels were optimised together with the inputs.")


def target_variable(
    task: Task,
    fixed: Tensor | None,
    inputs: Tensor,
    generator: torch.Generator,
) -> TargetVariable:
    """Return the targets of one restart.

    Args:
        task: model and loss.
        fixed: targets, or None to optimise them from a N(0, 1) start.
        inputs: the start of the inputs, for shape and batch size.
        generator: source of the start, on the CPU.
    """
    if fixed is not None:
        return TargetVariable(fixed=fixed)
    shape = (len(inputs), task.output_size(inputs))
    draw = torch.randn(shape, generator=generator, dtype=torch.float64)
    free = draw.to(inputs).requires_grad_()
    return TargetVariable(free=free, classes=task.criterion.softmax)
