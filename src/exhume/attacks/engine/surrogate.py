"""One gradient at a point between the two weights stands for all local steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from exhume.attacks.engine.objective import Objective
from exhume.attacks.engine.scalar_search import minimise_scalar
from exhume.formula import formula
from exhume.observations.update import Update
from exhume.problem.tree import Tree, add, norm, scale, subtract

__all__ = [
    "Surrogate",
    "SurrogatePath",
    "bending",
    "bezier_point",
    "interpolated_weights",
    "surrogate",
]

#: where the gradient is taken
SurrogatePath = Literal["linear", "bezier", "midpoint", "initial"]

# logit α moves by this much where the variable of the solver moves by one.
_PACE = 0.2
# An entry of the control point, in root mean squares of the observation of its tensor.
_BEND = 0.02
# Steps that fit share and control point of a curve to given inputs.
_INNER, _INNER_STEP = 25, 0.5


@formula(
    r"\hat\Theta(\alpha) = (1 - \alpha)\,\Theta_0 + \alpha\,\Theta_T",
    reference="Zhu, Yao and Blaschko, ICML 2023, section 3",
)
def interpolated_weights(start: Tree, end: Tree, share: float | Tensor) -> Tree:
    """Return the point of the segment between two sets of weights.

    Args:
        start: Θ_0.
        end: Θ_T, same layout.
        share: α in [0, 1].
    """
    return add(scale(1 - share, start), scale(share, end))


@formula(
    r"\hat\Theta(t) = (1 - t)^2\,\Theta_0 + 2 t (1 - t)\,C + t^2\,\Theta_T",
    reference="Xia et al., arXiv 2509.22082 (quadratic Bézier curve)",
)
def bezier_point(start: Tree, control: Tree, end: Tree, share: float | Tensor) -> Tree:
    """Return the point of a curve that leaves Θ_0 towards C and arrives at Θ_T from it.

    Args:
        start: Θ_0.
        control: C, same layout; in the middle of the segment the curve is straight.
        end: Θ_T.
        share: t in [0, 1].
    """
    t = share
    outer = add(scale((1 - t) ** 2, start), scale(t**2, end))
    return add(outer, scale(2 * t * (1 - t), control))


@formula(
    r"\frac{\lVert C - \tfrac12(\Theta_0 + \Theta_T) \rVert_2^2}"
    r"{\lVert \Theta_T - \Theta_0 \rVert_2^2}",
    reference="regulariser of the control point; the form is ours",
)
def bending(control: Tree, start: Tree, end: Tree) -> Tensor:
    """Return how far a control point is from the straight line, ≥ 0.

    Args:
        control: C.
        start: Θ_0.
        end: Θ_T.
    """
    middle = scale(0.5, add(start, end))
    square = norm(subtract(end, start)).square()
    return norm(subtract(control, middle)).square() / square.clamp_min(1e-30)


@dataclass(frozen=True, eq=False)
class Surrogate(Objective):
    """1 − cos(−∇L(x; Θ̂), O) − Σ log p(x), minimised over the place of Θ̂ as well.

    What weight decay alone makes of Θ_0 is added where the step size is known, and
    otherwise ω Θ̂ to the gradient. The simulated update has the length of the observed
    one, so that a known defense acts on it as it did on the client's.

    Attributes:
        displacement: O, the difference of the two weights.
        path: ``linear`` (α free), ``bezier`` (t and control point free), or a fixed
            point: ``midpoint``, ``initial``.
        stiffness: weight of the bending of a curve.
        drift: what weight decay alone would have changed, by name; or nothing.
        decay: ω, if it joins the gradient.
    """

    displacement: Tree = field(default_factory=dict)
    path: SurrogatePath = "linear"
    stiffness: float = 1.0
    drift: Mapping[str, Tensor] = field(default_factory=dict)
    decay: float = 0.0

    def begin(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return α = ½ and a straight path."""
        del targets
        share = inputs.new_zeros(())
        if self.path == "linear":
            return (share,)
        if self.path == "bezier":
            flat = [torch.zeros_like(t) for t in self.displacement.values()]
            return (share, *flat)
        return ()

    def settle(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return the best share of the segment; of a curve, the end of a descent."""
        if self.path not in ("linear", "bezier"):
            return ()
        _, *control = self.begin(inputs, targets)

        def at(share: float) -> float:
            own = (inputs.new_tensor(_logit(share)), *control)
            return float(self(inputs, targets, own))

        with torch.no_grad():
            share = minimise_scalar(at, 0.0, 1.0)
        found = (inputs.new_tensor(_logit(share)), *control)
        return self._descended(inputs, targets, found) if control else found

    def share(self, unknowns: Sequence[Tensor]) -> Tensor | float:
        """Return α in [0, 1]."""
        if not unknowns:
            return 0.5 if self.path == "midpoint" else 0.0
        return torch.sigmoid(_PACE * unknowns[0])

    def simulate(
        self, inputs: Tensor, targets: Tensor, unknowns: Sequence[Tensor]
    ) -> Tree:
        """Return the step along −∇L at the surrogate weights."""
        where = self.weights(unknowns)
        gradient = self.task.gradient(inputs, targets, where)
        if self.decay:
            gradient = add(gradient, scale(self.decay, where))
        observed = self.discrepancy.observed
        pulled = subtract(observed, self.drift) if self.drift else observed
        length = norm(pulled) / norm(gradient).clamp_min(1e-30)
        step = scale(-length, gradient)
        return add(step, self.drift) if self.drift else step

    def weights(self, unknowns: Sequence[Tensor]) -> Tree:
        """Return Θ̂."""
        start = {n: p.detach() for n, p in self.task.parameters().items()}
        if self.path == "initial":
            return start
        end, share = add(start, self.displacement), self.share(unknowns)
        if self.path == "bezier":
            return bezier_point(start, self._control(start, unknowns), end, share)
        return interpolated_weights(start, end, share)

    def penalty(self, unknowns: Sequence[Tensor]) -> Tensor | float:
        """Return the weighted bending of the curve."""
        if self.path != "bezier":
            return 0.0
        start = {n: p.detach() for n, p in self.task.parameters().items()}
        end, control = add(start, self.displacement), self._control(start, unknowns)
        return self.stiffness * bending(control, start, end)

    def _control(self, start: Tree, unknowns: Sequence[Tensor]) -> Tree:
        """Return C = middle + what the solver moves, in units of the observation."""
        moved = dict(zip(self.displacement, unknowns[1:], strict=True))
        return {
            name: start[name]
            + 0.5 * shift
            + _BEND * shift.square().mean().sqrt() * moved[name]
            for name, shift in self.displacement.items()
        }

    def _descended(
        self, inputs: Tensor, targets: Tensor, start: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Follow the objective in share and control point, the inputs held fixed."""
        free = [t.clone().requires_grad_() for t in start]
        solver = torch.optim.Adam(free, lr=_INNER_STEP)
        least, best = float("inf"), start
        with torch.enable_grad():
            for _ in range(_INNER):
                value = self(inputs.detach(), targets.detach(), free)
                height = float(value.detach())
                if height < least:
                    least, best = height, tuple(t.detach().clone() for t in free)
                gradients = torch.autograd.grad(value, free)
                for variable, gradient in zip(free, gradients, strict=True):
                    variable.grad = gradient
                solver.step()
        return best


def surrogate(
    plain: Objective,
    observed: Mapping[str, Tensor],
    size: int,
    path: SurrogatePath,
    stiffness: float,
) -> Objective:
    """Return the objective at a surrogate point, or the plain one of a gradient.

    Args:
        plain: of the observation model as it is, with a cosine distance.
        observed: O, the difference of the weights.
        size: B.
        path: where the surrogate may lie.
        stiffness: weight of the bending of a curve.
    """
    model, task = plain.model, plain.task
    if not isinstance(model, Update):
        return plain
    rule, drift = model.rule, {}
    if rule.weight_decay and rule.name != "adam" and model.rate is not None:
        pull = rule.pull(len(model.batches(size)), model.rate)
        assert pull is not None  # no Adam
        start = {n: p.detach() for n, p in task.parameters().items()}
        drift = scale(pull - 1, start)
    return Surrogate(
        task,
        model,
        plain.discrepancy,
        plain.weight,
        plain.priors,
        displacement={name: t.to(task.dtype) for name, t in observed.items()},
        path=path,
        stiffness=stiffness,
        drift=drift,
        decay=0.0 if drift or rule.name == "adamw" else rule.weight_decay,
    )


def _logit(share: float) -> float:
    """Return the variable of the solver for a share; the ends are nearly reached."""
    inside = min(max(share, 1e-6), 1 - 1e-6)
    return float(torch.logit(torch.tensor(inside, dtype=torch.float64))) / _PACE
