"""Steps of the optimisers that clients train with, functional and differentiable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from exhume.formula import formula
from exhume.problem.tree import Tree, norm, scale

__all__ = [
    "Optimiser",
    "OptimiserName",
    "State",
    "adam_step",
    "clip_norm",
    "momentum_step",
]

OptimiserName = Literal["sgd", "adam", "adamw"]

# Decay rates of Adam, as every framework sets them.
_BETA1, _BETA2 = 0.9, 0.999
# Below this a second moment counts as zero: the root has no derivative there.
_NOTHING = 1e-30


@dataclass(frozen=True, eq=False)
class State:
    """What an optimiser remembers: the steps taken, and its averages by name."""

    steps: int = 0
    first: Mapping[str, Tensor] = field(default_factory=dict)
    second: Mapping[str, Tensor] = field(default_factory=dict)


@formula(
    r"v_{t+1} = \mu v_t + g_t,\qquad"
    r"\Theta_{t+1} = \Theta_t - \eta\,(v_{t+1}\ \text{or}\ g_t + \mu v_{t+1})",
    reference="Sutskever et al., ICML 2013, in the form of torch.optim.SGD",
)
def momentum_step(
    gradient: Mapping[str, Tensor], state: State, momentum: float, *, nesterov: bool
) -> tuple[Tree, State]:
    """Return the direction of a step of SGD with momentum, and the new state.

    Args:
        gradient: g_t by name.
        state: holds v_t; v_1 = g_0.
        momentum: μ in [0, 1); 0 is plain SGD.
        nesterov: look ahead, g_t + μ v_{t+1} instead of v_{t+1}.
    """
    if momentum == 0:
        return dict(gradient), State(state.steps + 1)
    velocity = {
        name: g if state.steps == 0 else momentum * state.first[name] + g
        for name, g in gradient.items()
    }
    ahead = {name: g + momentum * velocity[name] for name, g in gradient.items()}
    return (ahead if nesterov else velocity), State(state.steps + 1, velocity)


@formula(
    r"m_{t} = \beta_1 m_{t-1} + (1-\beta_1) g_t,\quad"
    r"v_{t} = \beta_2 v_{t-1} + (1-\beta_2) g_t^2,\quad"
    r"\Theta_{t} = \Theta_{t-1} - \eta\,"
    r"\frac{m_t/(1-\beta_1^t)}{\sqrt{v_t/(1-\beta_2^t)} + \epsilon}",
    reference="Kingma and Ba, ICLR 2015, algorithm 1",
)
def adam_step(
    gradient: Mapping[str, Tensor], state: State, epsilon: float = 1e-8
) -> tuple[Tree, State]:
    """Return the direction of a step of Adam, and the new state.

    β₁ = 0.9, β₂ = 0.999. Where every gradient so far was zero, the root of
    v has no derivative; it is then taken as constant.

    Args:
        gradient: g_t by name.
        state: holds m and v, zero at first.
        epsilon: ε > 0; well above all entries of g, the direction is m̂/ε.
    """
    steps = state.steps + 1
    first, second, direction = {}, {}, {}
    for name, g in gradient.items():
        m, v = (1 - _BETA1) * g, (1 - _BETA2) * g.square()
        if state.steps:
            m, v = m + _BETA1 * state.first[name], v + _BETA2 * state.second[name]
        first[name], second[name] = m, v
        root = (v / (1 - _BETA2**steps)).clamp_min(_NOTHING).sqrt()
        direction[name] = m / (1 - _BETA1**steps) / (root + epsilon)
    return direction, State(steps, first, second)


@formula(
    r"g \cdot \min\!\left(1, \frac{C}{\lVert g \rVert_2}\right)",
    reference="Pascanu, Mikolov and Bengio, ICML 2013, algorithm 1",
)
def clip_norm(gradient: Mapping[str, Tensor], max_norm: float) -> Tree:
    """Shorten a gradient to a norm of at most C, over all tensors together.

    Args:
        gradient: g by name.
        max_norm: C > 0.
    """
    length = norm(dict(gradient))
    if float(length.detach()) <= max_norm:
        return dict(gradient)
    return scale(max_norm / length, dict(gradient))


@dataclass(frozen=True)
class Optimiser:
    """One rule of local steps, Θ ← Θ − η · direction.

    Attributes:
        name: ``sgd``, ``adam`` (weight decay joins the gradient) or ``adamw`` (it acts
            on the weights alone).
        momentum: μ of SGD.
        nesterov: Nesterov's form of it.
        weight_decay: ω ≥ 0.
        clip: largest norm of the gradient of a step; 0 for none.
        epsilon: ε of Adam.
    """

    name: OptimiserName = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip: float = 0.0
    epsilon: float = 1e-8

    def direction(
        self, theta: Mapping[str, Tensor], gradient: Mapping[str, Tensor], state: State
    ) -> tuple[Tree, State]:
        """Return what is subtracted from Θ at unit step size, and the new state.

        Args:
            theta: Θ_t by name.
            gradient: ∇L(Θ_t) of the examples of this step.
            state: of the steps before.
        """
        if self.clip:
            gradient = clip_norm(gradient, self.clip)
        decay = {name: self.weight_decay * theta[name] for name in gradient}
        if self.weight_decay and self.name != "adamw":
            gradient = {name: g + decay[name] for name, g in gradient.items()}
        if self.name == "sgd":
            return momentum_step(gradient, state, self.momentum, nesterov=self.nesterov)
        found, state = adam_step(gradient, state, self.epsilon)
        if self.weight_decay and self.name == "adamw":
            found = {name: d + decay[name] for name, d in found.items()}
        return found, state

    def pull(self, steps: int, rate: float) -> float | None:
        """Return c with Θ_T = c Θ_0 + (data terms) for one scalar weight.

        It is what weight decay alone makes of a weight of 1; 1 without decay, and None
        for Adam, which divides the decay by the size of the gradient.

        Args:
            steps: T.
            rate: η.
        """
        if self.weight_decay == 0:
            return 1.0
        if self.name == "adam":
            return None
        weight, state = {"w": torch.ones((), dtype=torch.float64)}, State()
        nothing = {"w": torch.zeros((), dtype=torch.float64)}
        rule = Optimiser("sgd", self.momentum, self.nesterov, self.weight_decay)
        if self.name == "adamw":
            return (1 - rate * self.weight_decay) ** steps
        for _ in range(steps):
            step, state = rule.direction(weight, nothing, state)
            weight = {"w": weight["w"] - rate * step["w"]}
        return float(weight["w"])
