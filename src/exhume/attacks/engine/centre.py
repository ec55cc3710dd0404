"""The guess of someone who has not looked at the observation."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.problem.knowledge import UNKNOWN, Problem

__all__ = ["centre", "placeholder_targets"]


def centre(problem: Problem) -> Tensor:
    """Return the prior mean, else the centre of the range, else zeros.

    Returns:
        one example, shape [*event], in the precision of the observation.
    """
    spec, like = problem.spec, _float_tensor(problem)
    if problem.prior is not UNKNOWN and "mean" in problem.prior.supports:
        return spec.clamp(problem.prior.mean().to(like).reshape(spec.shape))
    middle = (
        0.0 if spec.low is None or spec.high is None else (spec.low + spec.high) / 2
    )
    return torch.full(spec.shape, middle, dtype=like.dtype, device=like.device)


def placeholder_targets(problem: Problem, batch_size: int) -> tuple[Tensor, str]:
    """Return known labels, or a constant that ignores the observation.

    The constant is the commonest public label (or the mean public target), else 0.

    Returns:
        targets [B, ...] and a sentence about where they come from.
    """
    if problem.targets is not UNKNOWN:
        return problem.targets, "The labels are given."
    device = _float_tensor(problem).device
    if problem.public is UNKNOWN:
        zeros = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return zeros, "The labels are not known; label 0 stands in for them."
    public = problem.public.targets.to(device)
    if public.is_floating_point():
        typical = public.mean(dim=0)
        sentence = "The targets are not known; the mean public target stands in."
    else:
        typical = public.mode().values
        sentence = "The labels are not known; the commonest public label stands in."
    return typical.expand(batch_size, *typical.shape).clone(), sentence


def _float_tensor(problem: Problem) -> Tensor:
    return next(t for t in problem.observed.values() if t.is_floating_point())
