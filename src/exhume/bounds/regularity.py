"""Where Fisher information exists: the release is smooth in the data, and noisy."""

from __future__ import annotations

import itertools

from torch import Tensor

from exhume.bounds.fisher import (
    MeanMap,
    information_map,
    jump_share,
    mean_map,
    variance_map,
)
from exhume.problem.bound import NotApplicable
from exhume.problem.law import Law
from exhume.problem.tree import Tree
from exhume.problem.world import World

__all__ = ["information_maps"]

# Part of the release's change that may be jumps (and quadrature error at kinks).
_SMOOTH = 0.05
_PATHS = 4  # segments between draws on which jumps are looked for


def information_maps(
    world: World, batches: list[Tensor], key: int
) -> list[MeanMap] | NotApplicable:
    """Return one map per batch whose Jacobian R there has RᵀR = J_F.

    Args:
        world: task, mechanism and labels; its private inputs are not used.
        batches: two or more points x, each of shape [B, *event], in float64.
        key: calibrates the defenses as ``world.observe(key)`` does.

    Returns:
        The maps, or why the release has no finite Fisher information.
    """
    opaque = world.mechanism.observation.opaque
    if opaque is not None:
        return NotApplicable(opaque)
    plans = world.plans(key)
    induced = world.mechanism.induced(world.task, plans)
    law, targets = induced.law, world.batch.targets
    mean = mean_map(induced.task, induced.model, law, targets, mixed=True)
    like = {name: t.detach() for name, t in mean(batches[0]).items()}
    refusal = _refusal(law, like)
    if refusal is not None:
        return NotApplicable(refusal)
    refusal = _jumps(information_map(mean, law, batches[0]), batches)
    if refusal is not None:
        return NotApplicable(refusal)
    variance = variance_map(induced.task, induced.model, law, targets)
    return [information_map(mean, law, x, variance) for x in batches]


def _refusal(law: Law, like: Tree) -> str | None:
    """Say why the law has no finite Fisher information, or return None."""
    exact = law.exact_names(like)
    if law.irregular is not None:
        return f"the release has no Fisher information: {law.irregular}"
    if law.not_gaussian is not None:
        return f"the release is not Gaussian: {law.not_gaussian}"
    if exact and not law.noisy:
        return "no noise is added, so the release has infinite information"
    if exact:
        return f"released without noise, infinite information: {', '.join(exact)}"
    return None


def _jumps(whitened: MeanMap, batches: list[Tensor]) -> str | None:
    """Say so if the release jumps between draws of the prior, or return None."""
    share = max(
        jump_share(whitened, None, start, end)
        for start, end in itertools.pairwise(batches[: _PATHS + 1])
    )
    if share <= _SMOOTH:
        return None
    return (
        f"the release jumps as the data move ({share:.0%} of its change between two "
        f"examples is not explained by its derivative, as with ReLU or max pooling), "
        f"so its Fisher information misses what the jumps tell; use a smooth "
        f"activation such as sigmoid, tanh or GELU"
    )
