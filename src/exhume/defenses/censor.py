"""CENSOR: release a random vector orthogonal to the gradient, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold, generator
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.privacy import Guarantee
from exhume.problem.task import Task
from exhume.problem.tree import Tree, detached

__all__ = ["Censor", "NormAndAngle", "matched_norm", "orthogonal_part"]

_NO_MEAN = (
    "every layer is released as a random vector orthogonal to its gradient, so the "
    "gradient is in the norm and the support of the release and not in its mean"
)
_SELECTED = "the release lies on a sphere that moves with the private gradient"


@formula(
    r"v_\perp = v - \frac{\langle v, g \rangle}{\lVert g \rVert^2}\, g",
    reference="Zhang et al., NDSS 2025, section IV; twice, for rounding (Kahan)",
)
def orthogonal_part(vector: Tensor, gradient: Tensor) -> Tensor:
    """Remove the component of a vector along a gradient, twice against rounding.

    Args:
        vector: v, any shape, double precision.
        gradient: g ≠ 0, same shape.

    Returns:
        v⊥ with |cos(v⊥, g)| at the rounding of the type.
    """
    direction = gradient / torch.linalg.vector_norm(gradient)
    for _ in range(2):
        vector = vector - (vector * direction).sum() * direction
    return vector


@formula(
    r"O_l = \lVert g_l \rVert \, v_\perp / \lVert v_\perp \rVert",
    reference="Zhang et al., NDSS 2025, section IV",
)
def matched_norm(gradient: Tensor, source: torch.Generator) -> Tensor:
    """Draw a vector uniformly from the orthogonal complement, of the gradient's norm.

    Args:
        gradient: g of one layer, any shape and floating type.
        source: generator on the CPU.

    Returns:
        O of the shape, type and device of g; zeros if g is zero, or a single number,
        which has no orthogonal complement.
    """
    drawn = torch.randn(gradient.shape, generator=source, dtype=torch.float64)
    # Scaled first: squares of small gradients underflow.
    exact = gradient.detach().double().cpu()
    size = float(exact.abs().max()) if exact.numel() else 0.0
    if size == 0 or gradient.numel() < 2:
        return torch.zeros_like(gradient)
    unit = exact / size
    rest = orthogonal_part(drawn, unit)
    length = torch.linalg.vector_norm(unit) / torch.linalg.vector_norm(rest)
    return (rest * (length * size)).to(gradient)


@dataclass(frozen=True, eq=False)
class NormAndAngle:
    """What the release says of a gradient, as a map that is O exactly at the truth.

    h(g)_l = ‖g_l‖ u_l + ⟨g_l, u_l⟩ q_l with u_l = O_l/‖O_l‖ and a unit q_l ⟂ u_l: the
    residual h(g) − O has two coordinates per layer, ‖g_l‖ − ‖O_l‖ and ⟨g_l, u_l⟩,
    and both vanish for the gradient that was censored.

    Attributes:
        along: u_l by name; a layer that was released as zeros is absent.
        across: q_l by name.
    """

    along: Mapping[str, Tensor]
    across: Mapping[str, Tensor]

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return h(g), differentiable away from zero gradients."""
        result = dict(tree)
        for name, unit in self.along.items():
            g = tree[name]
            # The norm of a zero gradient has no derivative; the floor gives it one.
            length = (g.square().sum() + torch.finfo(g.dtype).tiny).sqrt()
            angle = (g * unit.to(g)).sum()
            result[name] = length * unit.to(g) + angle * self.across[name].to(g)
        return result

    @classmethod
    def of(cls, observed: Mapping[str, Tensor]) -> NormAndAngle:
        """Build the map from a release; tensors that are all zero stay out."""
        along, across = {}, {}
        for name, tensor in observed.items():
            size = float(tensor.abs().max()) if tensor.numel() > 1 else 0.0
            if size == 0:
                continue
            scaled = tensor.detach().double() / size
            along[name] = scaled / torch.linalg.vector_norm(scaled)
            across[name] = _perpendicular(along[name])
        return cls(along, across)


def _perpendicular(unit: Tensor) -> Tensor:
    """Return a unit vector orthogonal to a given one, the same one every time."""
    axis = torch.zeros_like(unit).reshape(-1)
    axis[unit.abs().argmin()] = 1
    rest = orthogonal_part(axis.reshape(unit.shape), unit)
    return rest / torch.linalg.vector_norm(rest)


@dataclass(frozen=True, kw_only=True)
class Censor(Defense):
    """Replace every layer's gradient by a random orthogonal vector of the same norm.

    Of ``trials`` draws the client takes the one with the smallest loss on its own batch
    after a step of size ``rate`` (``personalise``); without its examples the first one
    is taken. A layer is one named tensor. The projection divides by ‖g‖², which the
    released code forgets, and is done twice: |cos(O_l, g_l)| < 1e-6 in single
    precision. A tensor with a single number has no orthogonal complement; it is
    released as zero.

    What is left in the release is exact: the norm of every layer, and one hyperplane
    per layer that the gradient lies in; of a tensor with two entries that is its
    gradient up to the sign. An attacker matches both, which the law hands over as a map
    (``NormAndAngle``); the choice among the trials leaks besides and is not used. There
    are two equations per layer, so recovery needs few unknowns or a strong prior. If a
    later defense hides the release, nothing of it is used.

    Strength 0 does not exist. A step along O does not lower the loss to first order;
    what is trained by it is the choice among the trials.

    Attributes:
        trials: N ≥ 1.
        rate: step size of the comparison, > 0.
        only: glob patterns of the tensors that are replaced.

    Raises:
        InvalidInput: ``trials`` or ``rate`` is out of range.
    """

    stage: ClassVar[Stage] = Stage.UPDATE
    bibtex: ClassVar[str] = """\
@inproceedings{zhang2025censor,
  title = {{CENSOR}: Defense Against Gradient Inversion via Orthogonal Subspace
           {Bayesian} Sampling},
  author = {Zhang, Kaiyuan and Cheng, Siyuan and Shen, Guangyu and Ribeiro, Bruno
            and An, Shengwei and Chen, Pin-Yu and Zhang, Xiangyu and Li, Ninghui},
  booktitle = {Network and Distributed System Security Symposium},
  year = {2025},
}
"""

    trials: int = 10
    rate: float = 0.01
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if self.trials < 1:
            msg = f"trials is {self.trials}; expected at least 1"
            raise InvalidInput(msg)
        if not (math.isfinite(self.rate) and self.rate > 0):
            msg = f"rate is {self.rate}; expected a finite step size above 0"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return few trials."""
        return (cls(trials=3),)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """List what is replaced; nothing is fitted."""
        del public, key
        return self._plan(task)

    def personalise(
        self,
        task: Task,
        model: ObservationModel,
        candidate: Candidate,
        plan: Plan,
        key: int,
    ) -> Plan:
        """Choose among the trials by the loss after the step, on the private batch."""
        exact = detached(model.forward(task, candidate))
        covered = {name: exact[name] for name in plan.covers}
        weights = detached(task.parameters())
        best, least = 0, math.inf
        for trial in range(self.trials):
            seed = fold(key, "trial", trial)
            step = {**exact, **_drawn(covered, seed)}
            moved = {name: w - self.rate * step[name] for name, w in weights.items()}
            with torch.no_grad():
                loss = task.loss_value(candidate.inputs, candidate.targets, moved)
            if trial == 0 or float(loss) < least:
                best, least = seed, float(loss)
        return replace(plan, arrays={"seed": torch.tensor(best, dtype=torch.int64)})

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        chosen = plan.arrays.get("seed")
        seed = fold(key, "trial", 0) if chosen is None else int(chosen)
        return _drawn(covered, seed)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Leave norm and angle of what was released; void the rest."""
        seen = {} if observed is None else {n: observed[n] for n in plan.covers}
        view = NormAndAngle.of(seen)
        void = {
            name: torch.zeros(plan.shapes[name], dtype=torch.bool)
            for name in plan.covers
            if name not in view.along
        }
        # A coordinate that was void before is filled with the random vector now.
        told = law.then(view)
        kept = {n: m for n, m in law.mask.items() if n not in plan.covers}
        return replace(
            replace(told, mask=kept).masked(void),
            irregular=law.irregular or _NO_MEAN,
            not_gaussian=law.not_gaussian or _SELECTED,
        )

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Keep the norm of a whole client; after the noise the choice leaks."""
        if before.multiplier > 0:
            return before.void(
                "censor chooses among its draws by the loss on the private examples "
                "after the noise was added"
            )
        if before.unit == "client":
            return before.processed()
        return super().account(before, plan)


def _drawn(covered: Mapping[str, Tensor], seed: int) -> Tree:
    """Draw one trial; a tensor's draw depends on seed, name and shape alone."""
    return {
        name: matched_norm(tensor, generator(seed, name))
        for name, tensor in covered.items()
    }
