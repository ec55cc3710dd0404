"""What a mechanism does to one step of training: U1 and U2, without any training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from torch import Tensor

from exhume.formula import formula
from exhume.keys import fold
from exhume.problem.batch import Batch
from exhume.problem.law import Law
from exhume.problem.mechanism import Mechanism
from exhume.problem.observation import Candidate
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["first_order_loss", "inner", "isotropic_equivalent", "noise_along", "u1_u2"]

# Releases per batch, to average over masks and other choices; noise is not sampled.
# Two that agree show that there is nothing else to average over.
_DRAWS = 8
_FEW = 2


@formula(r"\langle a, b \rangle", reference="definition")
def inner(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the inner product of two trees."""
    return sum(
        float((t.detach().double() * second[n].detach().double()).sum())
        for n, t in first.items()
    )


@formula(
    r"g^\top \Sigma g = \textstyle\sum_i v_i g_i^2 \text{ for independent noise}",
    reference="optimal defenses (2411.03746): the second-order utility is −E gᵀΣg",
)
def noise_along(gradient: Tree, law: Law) -> float:
    """Return the variance of ⟨g, n⟩ for the noise n of a law.

    Args:
        gradient: g by name.
        law: with additive noise; noise on coordinates that were removed before counts.
    """
    kept = law.keep(gradient)
    correlated = () if law.covariance is None else law.covariance.names
    total = sum(
        float((law.variance[name].to(g.device) * g.double().square()).sum())
        for name, g in gradient.items()
        if name in law.variance and name not in correlated
    )
    if law.covariance is None:
        return total
    own = {name: g.double() for name, g in kept.items()}
    coloured = law.covariance.transposed_colour(own)
    return total + sum(float(t.square().sum()) for t in coloured.values())


@formula(
    r"1 - \frac{\mathrm E\,\langle g, O \rangle}{\mathrm E\,\lVert g \rVert^2}",
    reference="optimal defenses (2411.03746): the first-order utility is E⟨g, O⟩",
)
def first_order_loss(decrease: Sequence[float], whole: Sequence[float]) -> float:
    """Return the share of the first-order decrease of the loss that is lost.

    Args:
        decrease: ⟨g, E O⟩, one per batch.
        whole: ‖g‖², one per batch.
    """
    return 1 - fmean(decrease) / fmean(whole)


@formula(
    r"\sqrt{\mathrm E\,\mathrm{Var}_O \langle g, O \rangle"
    r" / \mathrm E\,\lVert g \rVert^2}",
    reference="optimal defenses (2411.03746), in units of isotropic noise",
)
def isotropic_equivalent(cost: Sequence[float], whole: Sequence[float]) -> float:
    """Return the std of isotropic noise of the same second-order cost.

    Args:
        cost: Var⟨g, O⟩, one per batch.
        whole: ‖g‖², one per batch.
    """
    return math.sqrt(fmean(cost) / fmean(whole))


def u1_u2(
    task: Task,
    mechanism: Mechanism,
    batches: Sequence[Batch],
    public: Batch | None,
    key: int,
) -> tuple[float, float]:
    """Measure the first- and second-order cost of a mechanism at given weights.

    The mean and variance of ⟨g, O⟩ are exact in the noise of the law; masks and other
    random choices are averaged over some releases per batch. Where the law is not known
    in closed form, both are sample moments.

    Args:
        task: model and loss, at the weights in question.
        mechanism: D∘F.
        batches: clients' data.
        public: for calibration.
        key: of plans and noise.

    Returns:
        the share of U1 that is lost, and U2 as the std of isotropic noise.
    """
    plans = mechanism.calibrate(task, public, fold(key, "calibrate"))
    decrease, cost, whole = [], [], []
    for index, batch in enumerate(batches):
        inputs = batch.inputs.to(task.dtype)
        gradient = task.gradient(inputs, batch.targets)
        draws: list[tuple[float, float]] = []
        for k in range(_DRAWS):
            if k == _FEW and draws[0] == draws[1]:
                break
            source = fold(key, "draw", index, k)
            own = mechanism.redraw(plans, fold(source, "masks"))
            draws.append(_along(task, mechanism, batch, own, gradient, source))
        means = [mean for mean, _ in draws]
        middle = fmean(means)
        spread = sum((mean - middle) ** 2 for mean in means) / (len(draws) - 1)
        decrease.append(middle)
        cost.append(spread + fmean(variance for _, variance in draws))
        whole.append(inner(gradient, gradient))
    return first_order_loss(decrease, whole), isotropic_equivalent(cost, whole)


def _along(
    task: Task,
    mechanism: Mechanism,
    batch: Batch,
    plans: tuple,
    gradient: Tree,
    key: int,
) -> tuple[float, float]:
    """Return mean and variance of ⟨g, O⟩ over the noise of one release."""
    released = mechanism.values(task, batch, key, plans)
    found = mechanism.induced(task, plans, released)
    law = found.law
    if not law.noisy or law.not_gaussian:
        return inner(gradient, released), 0.0
    candidate = Candidate(batch.inputs.to(task.dtype), batch.targets)
    mean = law.mean(found.model.forward(found.task, candidate))
    own = law.variance_of(found.task, found.model, candidate)
    return inner(gradient, mean), noise_along(gradient, replace(law, variance=own))
