"""Whether a network is homogeneous in its weights: f(x; cΘ) = c^L f(x; Θ)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.event import EventSpec
from exhume.problem.task import Task
from exhume.problem.tree import detached

__all__ = ["Homogeneity", "homogeneity", "homogeneity_order"]

_FACTORS = (1.5, 2.5)
_PROBES = 8
# Orders of outputs may differ by rounding, which small outputs amplify.
_AGREE = {torch.float32: 1e-3, torch.float64: 1e-6}


@dataclass(frozen=True)
class Homogeneity:
    """What was found.

    Attributes:
        order: L ≥ 0 with f(x; cΘ) = c^L f(x; Θ), or None.
        culprits: tensors without which the network would be homogeneous.
        sentence: the same in words, with what it means.
    """

    order: float | None
    culprits: tuple[str, ...]
    sentence: str


@formula(
    r"f(x; c\Theta) = c^L f(x; \Theta)\ \forall c > 0,\qquad"
    r"L = \frac{\log \lvert f(x; c\Theta) / f(x; \Theta) \rvert}{\log c}",
    reference="Lyu and Li (ICLR 2020), assumption A2",
)
def homogeneity_order(
    task: Task, inputs: Tensor, weights: Mapping[str, Tensor]
) -> float | None:
    """Return L if the outputs scale with one power of the weights, else None.

    Weights at which all outputs vanish agree with every order; L is then 0.

    Args:
        task: the model.
        inputs: probes x, shape [N, *event].
        weights: Θ by name.
    """
    with torch.no_grad():
        before = task.predict(inputs, weights)
        size = float(before.abs().max())
        orders = []
        for factor in _FACTORS:
            scaled = {name: factor * t for name, t in weights.items()}
            after = task.predict(inputs, scaled)
            if not size > 0:
                if bool(after.any()):
                    return None
                continue
            share = float((after * before).sum() / before.square().sum())
            if not share > 0:
                return None
            gap = float((after - share * before).abs().max()) / (share * size)
            if gap > _AGREE.get(before.dtype, 1e-2):
                return None
            orders.append(math.log(share) / math.log(factor))
    if not orders:
        return 0.0
    slack = _AGREE.get(before.dtype, 1e-2)
    return orders[0] if abs(orders[0] - orders[-1]) <= slack else None


def homogeneity(task: Task, spec: EventSpec) -> Homogeneity:
    """Check numerically whether a network is homogeneous, and say what breaks it.

    Args:
        task: the model, at its own weights.
        spec: shape and range of an example, for the probes.
    """
    inputs = _probes(task, spec)
    weights = detached(task.parameters())
    order = homogeneity_order(task, inputs, weights)
    if order is not None:
        text = f"The network is homogeneous of degree {order:.3g} in its weights."
        return Homogeneity(order, (), text)
    culprits = _culprits(task, inputs, weights)
    if culprits:
        listed = ", ".join(repr(name) for name in culprits)
        kind = "bias" if len(culprits) == 1 else "biases"
        what = f"the {kind} {listed} (only the first layer may have one)"
    else:
        what = "an activation or layer that is not positively homogeneous"
    text = (
        f"The network is not homogeneous in its weights, because of {what}: trained "
        f"weights are then no combination of margin gradients, unless it was trained "
        f"with weight decay"
    )
    return Homogeneity(None, culprits, text)


def _culprits(
    task: Task, inputs: Tensor, weights: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Return the vectors whose removal makes the network homogeneous, the last first.

    Biases are dropped from the last layer towards the first, until what is left is
    homogeneous; the bias of the first layer may stay.
    """
    left, dropped = dict(weights), []
    for name in reversed([n for n, t in weights.items() if t.dim() == 1]):
        left[name] = torch.zeros_like(left[name])
        dropped.append(name)
        if homogeneity_order(task, inputs, left) is not None:
            return tuple(reversed(dropped))
    return ()


def _probes(task: Task, spec: EventSpec) -> Tensor:
    source = generator(0, "homogeneity")
    shape = (_PROBES, *spec.shape)
    if spec.low is None or spec.peak is None:
        drawn = torch.randn(shape, generator=source, dtype=torch.float64)
    else:
        drawn = torch.rand(shape, generator=source, dtype=torch.float64)
        drawn = spec.low + spec.peak * drawn
    return drawn.to(device=task.device, dtype=task.dtype)
