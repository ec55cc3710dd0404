"""Lower bounds with their constants: root-mean-square error from Fisher information."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.bounds.bayesian_cramer_rao import BayesianCramerRao
from exhume.bounds.fisher import fisher_information
from exhume.bounds.inequalities import trace_of_inverse
from exhume.bounds.regularity import information_maps
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.bound import Binds, BoundValue, NotApplicable
from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = [
    "Floor",
    "average_floor",
    "effective_pruning_ratio",
    "floor_at",
    "information_at",
    "root_mean_square",
    "tangent_information",
]

_NEARBY = 0.1  # length of the path on which jumps are looked for, in norms of x
_LOCAL = (
    "It binds unbiased attacks that know weights, labels and defense, at this batch "
    "and in its order; it is local, so signs and permutations count as known.",
)
_SPHERE = (
    "Inputs are known to have norm 1, and so the bound is that of the directions that "
    "are left; it is meant for errors well below 1.",
)
_NO_DIRECTION = (
    "an input of one number and norm 1 is 1 or −1, which leaves no direction to bound; "
    "take two dimensions or more"
)


@dataclass(frozen=True)
class Floor:
    """A lower bound R on the root-mean-square distance of an example, in data units.

    Attributes:
        rms: R = √(E‖x̂ − x‖² / B), summed over the numbers of an example.
        binds: whom.
        assumptions: one sentence each.
    """

    rms: float
    binds: Binds
    assumptions: tuple[str, ...]


@formula(
    r"R = \sqrt{ \mathrm{tr}(J_F^{-1}) / B }",
    reference="Liu, Wang, Chen and Lei, AISTATS 2025, the distance of a batch",
)
def root_mean_square(total: float, batch_size: int) -> float:
    """Turn a squared error of a whole batch into the distance of one example.

    Args:
        total: tr J_F⁻¹, or any other sum of squared errors over the batch.
        batch_size: B ≥ 1.
    """
    return math.sqrt(total / batch_size)


@formula(r"1 - \hat\rho = (R_0 / R_D)^2", reference="definition, from the Jacobian")
def effective_pruning_ratio(undefended: float, defended: float) -> float:
    """Return ρ̂, the fraction of a wide release whose random loss costs as much.

    A random mask has ρ̂ near its own ratio; one that keeps large entries has not.

    Args:
        undefended: R₀ > 0 without the mask.
        defended: R_D > 0 with it, beside the same noise.

    Raises:
        InvalidInput: a bound is not positive and finite.
    """
    for value in (undefended, defended):
        if not 0 < value < math.inf:
            msg = f"a lower bound is {value}; expected a positive, finite number"
            raise InvalidInput(msg)
    return 1 - (undefended / defended) ** 2


@formula(
    r"J_T = T^\top J_F T,\quad T = \mathrm{diag}(T_1, \dots, T_B),\; T_i^\top x_i = 0",
    reference="Gorman and Hero 1990; Stoica and Ng 1998, for the constraints ‖x_i‖ = 1",
)
def tangent_information(information: Tensor, inputs: Tensor) -> Tensor:
    """Restrict the Fisher information to the directions that keep every norm.

    Args:
        information: J_F, shape [B d, B d].
        inputs: x, shape [B, d] or [B, *event], none of them zero.

    Returns:
        J_T, shape [B (d − 1), B (d − 1)]; empty at d = 1, where no direction is left.
    """
    blocks = []
    for x in inputs.detach().double().flatten(1):
        # The last d − 1 columns of a full QR of x span what is orthogonal to it.
        full = torch.linalg.qr(x.unsqueeze(1), mode="complete")[0]
        blocks.append(full[:, 1:])
    basis = torch.block_diag(*blocks).to(information)
    return basis.T @ information @ basis


def information_at(world: World, key: int = 0) -> Tensor | NotApplicable:
    """Return the exact J_F of a world's release at its private batch, shape [q, q].

    Args:
        world: the evaluator's side; its inputs are the point x.
        key: calibrates the defenses as ``world.observe(key)`` does.

    Returns:
        The information, or why there is none (no noise, jumps).
    """
    x = world.batch.inputs.detach().double()
    # A second point nearby: between the two, jumps are looked for.
    other = x + _NEARBY * x.flatten(1).roll(1, dims=1).reshape(x.shape)
    maps = information_maps(world, [x, other], key)
    if isinstance(maps, NotApplicable):
        return maps
    return fisher_information(maps[0], None, x)


def floor_at(
    world: World, key: int = 0, *, unit_norm: bool = False
) -> Floor | NotApplicable:
    """Bound unbiased attacks at a world's own batch: the lower rate with its constant.

    Args:
        world: the evaluator's side.
        key: of the release, see :func:`information_at`.
        unit_norm: the attacker knows that ‖xᵢ‖ = 1.
    """
    information = information_at(world, key)
    if isinstance(information, NotApplicable):
        return information
    if unit_norm:
        information = tangent_information(information, world.batch.inputs)
        if information.numel() == 0:
            return NotApplicable(_NO_DIRECTION)
    try:
        total = trace_of_inverse(information)
    except InvalidInput as error:
        return NotApplicable(f"no unbiased attack exists: {error}")
    rms = root_mean_square(total, len(world.batch))
    told = (*_LOCAL, *_SPHERE) if unit_norm else _LOCAL
    return Floor(rms, Binds.UNBIASED_ATTACKS, told)


def average_floor(
    world: World, prior: Density | None = None, key: int = 0, *, draws: int = 8
) -> Floor | NotApplicable:
    """Bound every attack on average over a prior: the Bayesian counterpart.

    Args:
        world: its inputs are not used.
        prior: density of one example; the world's own if None.
        key: of release and draws.
        draws: batches of the prior.
    """
    found = BayesianCramerRao(draws=draws)(world, prior, key)
    if not isinstance(found, BoundValue):
        return found
    rms = root_mean_square(found.total, found.batch_size)
    return Floor(rms, found.binds, found.assumptions)
