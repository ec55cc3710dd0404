"""Where a bound of unbiased attacks is evaluated: at draws, or at public examples."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.keys import fold, generator
from exhume.problem.bound import NotApplicable
from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = ["evaluation_points"]


def evaluation_points(
    world: World, prior: Density | None, draws: int, key: int
) -> list[Tensor] | NotApplicable:
    """Return batches of examples that are not private, in double precision.

    Args:
        world: gives batch size, device, and the prior if ``prior`` is None.
        prior: density of one example; public examples serve where it has no samples.
        draws: number of batches; fewer, but at least two, where public examples lack.
        key: randomness of the choice.
    """
    size = len(world.batch)
    density = world.prior if prior is None else prior
    if density is not None and "sample" in density.supports:
        drawn = [
            density.sample(size, fold(key, "bound", draw)) for draw in range(draws)
        ]
    elif world.public is not None and len(world.public) >= 2 * size:
        inputs = world.public.inputs
        order = torch.randperm(len(inputs), generator=generator(key, "bound"))
        count = min(draws, len(inputs) // size)
        drawn = inputs[order.to(inputs.device)][: count * size].split(size)
    else:
        return NotApplicable(
            "there is nowhere to evaluate it: give a prior that can be sampled, or "
            f"{2 * size} public examples"
        )
    return [x.to(device=world.task.device, dtype=torch.float64) for x in drawn]
