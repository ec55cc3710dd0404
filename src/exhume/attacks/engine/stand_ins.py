"""Stand-ins for the private examples: public ones, draws of the prior, or noise."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.keys import fold, generator
from exhume.problem.batch import Batch
from exhume.problem.knowledge import UNKNOWN, Problem
from exhume.problem.task import Task

__all__ = ["stand_in_chunk", "stand_ins"]

# Enough that the mean softmax is settled.
_COUNT = 128


def stand_ins(problem: Problem, task: Task) -> tuple[Tensor, Tensor | None]:
    """Return stand-ins for private examples [N, *event], with labels if there are.

    Public examples come first, then draws of the prior, then random inputs.

    Args:
        problem: what the attacker sees.
        task: gives device and precision.
    """
    spec = problem.spec
    if problem.public is not UNKNOWN:
        public: Batch = problem.public
        inputs = public.inputs[:_COUNT].to(task.device, task.dtype)
        if public.targets.dim() == 1 and not public.targets.is_floating_point():
            return inputs, public.targets[:_COUNT].to(task.device)
        return inputs, None
    if problem.prior is not UNKNOWN and "sample" in problem.prior.supports:
        drawn = problem.prior.sample(_COUNT, fold(0, "labels", "proxies"))
        return spec.clamp(drawn.to(task.device, task.dtype)), None
    local = generator(0, "labels", "proxies")
    shape = (_COUNT, *spec.shape)
    if spec.low is None or spec.peak is None:
        drawn = torch.randn(shape, generator=local, dtype=torch.float64)
    else:
        uniform = torch.rand(shape, generator=local, dtype=torch.float64)
        drawn = spec.low + spec.peak * uniform
    return drawn.to(task.device, task.dtype), None


def stand_in_chunk(task: Task, batch_size: int) -> int:
    """Group stand-ins like the client's batch where examples are coupled."""
    return batch_size if task.mode == "train" else _COUNT
