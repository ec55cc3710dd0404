"""Where Fisher information exists: the release is smooth in the data, and noisy."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from exhume.bounds.fisher import (
    MeanMap,
    information_map,
    mean_map,
    variance_map,
)
from exhume.bounds.jumps import Ellipse, unexplained_changes
from exhume.keys import fold
from exhume.problem.bound import NotApplicable
from exhume.problem.law import Law, TreeMap
from exhume.problem.prior import Density
from exhume.problem.tree import Tree, detached
from exhume.problem.world import World

__all__ = ["information_map_at", "information_maps"]

# Standard deviations of the noise by which a release may jump along one ellipse, which
# is twice there and back over 1.25 standard deviations of the prior or more. Such jumps
# are like 0.01 more of the slope, which lowers the error by 1 % at most.
_TOLERANCE = 0.05
# Ellipses on which jumps are looked for, and how long they are in turn. A half-space t
# standard deviations from the mean is met by one of length l with probability
# exp(-(t/l)²/2): all 16 overlook one at t = 2 in 2 of 10⁴ cases.
_PATHS = 16
# So many do where there are many unknowns: a jump in one direction of many lowers the
# bound on all of them little, and jumps in many directions are met by few ellipses.
_MANY, _FEW_PATHS = 256, 6
_LENGTHS = (1.0, 2.0)
_JUMPS = (
    "the release jumps as the data move, or is as steep as that: its derivative does "
    "not explain {missed:.2g} of {change:.2g} standard deviations of the noise by "
    "which it changes between examples, as with ReLU or max pooling, so its Fisher "
    "information misses what the jumps tell; use a smooth activation such as sigmoid, "
    "tanh or GELU"
)


def information_map_at(
    world: World, batches: list[Tensor], key: int, density: Density | None = None
) -> Callable[[Tensor], MeanMap] | NotApplicable:
    """Return x ↦ a map whose Jacobian R at x has RᵀR = J_F.

    Args:
        world: task, mechanism and labels; its private inputs are not used.
        batches: two or more points x, each of shape [B, *event], in float64.
        key: calibrates the defenses as ``world.observe(key)`` does.
        density: of one example; where it has samples, jumps are looked for between
            fresh ones, and elsewhere between the batches.

    Returns:
        The function, or why the release has no finite Fisher information.
    """
    opaque = world.mechanism.observation.opaque
    if opaque is not None:
        return NotApplicable(opaque)
    plans = world.plans(key)
    induced = world.mechanism.induced(world.task, plans)
    law, targets = induced.law, world.batch.targets
    mean = mean_map(induced.task, induced.model, law, targets, mixed=True)
    like = detached(mean(batches[0]))
    refusal = _refusal(law, like)
    if refusal is not None:
        return NotApplicable(refusal)
    exact = mean_map(induced.task, induced.model, Law(), targets)
    whiten = law.whitener(like)
    paths = _paths(batches, density, key)
    refusal = _jumps(exact, lambda tree: whiten(law.mean(tree)), paths)
    if refusal is not None:
        return NotApplicable(refusal)
    variance = variance_map(induced.task, induced.model, law, targets)
    if variance is not None:
        return lambda x: information_map(mean, law, x, variance)
    everywhere = information_map(mean, law, batches[0])
    return lambda x: everywhere


def information_maps(
    world: World, batches: list[Tensor], key: int, density: Density | None = None
) -> list[MeanMap] | NotApplicable:
    """Return one map per batch, see :func:`information_map_at`."""
    at = information_map_at(world, batches, key, density)
    return at if isinstance(at, NotApplicable) else [at(x) for x in batches]


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


def _paths(batches: list[Tensor], density: Density | None, key: int) -> list[Ellipse]:
    """Return ellipses through pairs of draws, about the mean of all of them."""
    count = _PATHS if batches[0].numel() < _MANY else _FEW_PATHS
    if density is not None and "sample" in density.supports:
        size = len(batches[0])
        points = [
            density.sample(size, fold(key, "jumps", i)).to(batches[0])
            for i in range(2 * count)
        ]
        pairs = zip(points[::2], points[1::2], strict=True)
    else:
        points = batches
        pairs = itertools.islice(itertools.pairwise(points), count)
    centre = torch.stack(points).flatten(0, 1).mean(dim=0)
    return [
        Ellipse(centre.expand_as(a), length * (a - centre), length * (b - centre))
        for (a, b), length in zip(pairs, itertools.cycle(_LENGTHS), strict=False)
    ]


def _jumps(exact: MeanMap, shown: TreeMap, paths: list[Ellipse]) -> str | None:
    """Say so if the release jumps as the data move, or return None.

    Args:
        exact: x ↦ F(x).
        shown: t ↦ Σ^{-1/2} h(t).
        paths: on which jumps are looked for.
    """
    # The first path alone: a network of ReLUs needs no more.
    for group in (paths[:1], paths[1:]):
        for found in unexplained_changes(exact, shown, group, _TOLERANCE):
            if found.jumps:
                return _JUMPS.format(missed=found.missed, change=found.change)
    return None
