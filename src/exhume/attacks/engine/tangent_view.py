"""An observation as a combination of tangent features: v = Σ a_i ∇_Θ f(x_i; Θ*)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exhume.attacks.engine.linear_layer import entry_weights
from exhume.attacks.engine.tangent_features import TangentFeatures, make_features
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.observations.fine_tuning import FineTuning, regression_targets
from exhume.observations.update import Update
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import ObservationModel
from exhume.problem.task import Task
from exhume.problem.tree import Tree, add, scale

__all__ = ["TangentView", "along", "sharpness_schedule", "softened", "tangent_view"]


@dataclass(frozen=True, eq=False)
class TangentView:
    """What a problem is to an attack on tangent features, in double precision.

    Attributes:
        task: the model with the weights Θ_0 that the attacker holds.
        values: v by name, of unit length.
        points: weights Θ_t at which features are taken.
        precisions: weight of every entry of v.
        spec: of one example.
        sign: of the weights that pull an output up: 1 for a change of the weights, −1
            for a gradient.
        trained: Θ_T if the observation ends there, for labels.
        notes: sentences for the report.
    """

    task: Task
    values: Tree
    points: tuple[Tree, ...]
    precisions: Tree
    spec: EventSpec
    sign: float
    trained: Tree | None
    notes: tuple[str, ...]

    def features(self, sharpness: float | None = None) -> TangentFeatures:
        """Return the features, of ReLUs made smooth if a sharpness is given."""
        task = self.task
        if sharpness is not None:
            task = softened(task, sharpness) or task
        return make_features(task, self.points, self.values, self.precisions, self.spec)

    @property
    def has_kinks(self) -> bool:
        """Whether the model has ReLUs that can be made smooth."""
        return softened(self.task, 1.0) is not None

    def labels(self, problem: Problem, inputs: Tensor, weights: Tensor) -> Tensor:
        """Return known targets in the order of the candidates, or estimated ones.

        Args:
            problem: targets are read if they are known.
            inputs: x̂, shape [M, *event].
            weights: a, shape [M, points · outputs].
        """
        known = problem.targets
        pulls = self.sign * weights.reshape(len(inputs), len(self.points), -1).sum(1)
        if self.trained is not None:
            with torch.no_grad():
                pulls = self.task.predict(inputs, self.trained)
        if known is UNKNOWN:
            return self._guessed(pulls)
        if len(known) != len(inputs):
            return known
        return known[_order(self._distances(pulls, known))]

    def _guessed(self, pulls: Tensor) -> Tensor:
        if self.task.criterion.real:
            return pulls
        if pulls.shape[1] == 1:
            return (pulls[:, 0] > 0).long()
        return pulls.argmax(dim=1)

    def _distances(self, pulls: Tensor, known: Tensor) -> Tensor:
        if self.task.criterion.real or pulls.shape[1] == 1:
            wanted = regression_targets(known.to(pulls.device), _rows_of(known, pulls))
            return -pulls @ wanted.T if self.trained is None else _gaps(pulls, wanted)
        if known.is_floating_point():
            return -pulls @ known.to(pulls).T
        return -pulls[:, known]


def _rows_of(known: Tensor, pulls: Tensor) -> Tensor:
    return pulls.new_zeros(len(known), pulls.shape[1])


def _gaps(pulls: Tensor, wanted: Tensor) -> Tensor:
    return (pulls[:, None] - wanted[None]).square().sum(dim=2)


def _order(cost: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1])


def along(start: Tree, change: Tree, share: float) -> Tree:
    """Return Θ_0 + t ΔΘ.

    Args:
        start: Θ_0 by name.
        change: ΔΘ by name.
        share: t.
    """
    return add(start, scale(share, change))


def tangent_view(
    problem: Problem, shares: tuple[float, ...] = ()
) -> TangentView | None:
    """Return a problem as a combination of tangent features.

    Args:
        problem: with weights and local schedule; the law is used if it is known.
        shares: where features are taken between the first and the last weights, 0 to 1;
            empty for what suits the kind of observation.

    Returns:
        the view, or None if the observation is zero.

    Raises:
        InvalidInput: the observation does not end at weights of its own, and another
            place than the start is asked for.
    """
    task: Task = problem.require(Fact.WEIGHTS)
    task = task.to(torch.float64)
    model: ObservationModel = problem.require(Fact.LOCAL_SCHEDULE)
    start = {n: p.detach() for n, p in task.parameters().items()}
    observed = {n: t.to(torch.float64) for n, t in problem.observed.items()}
    moves = model.kind in ("update", "fine-tuning")
    if any(shares) and not moves:
        msg = (
            f"points is {list(shares)}, but the observation is no change of weights: "
            f"features are taken at the weights themselves, so leave points empty"
        )
        raise InvalidInput(msg)
    shares = shares or _suitable(model, problem)
    values, notes = observed, ()
    if isinstance(model, Update) and problem.batch_size is not UNKNOWN:
        values, notes = _without_decay(model, start, observed, problem.batch_size)
    precisions = entry_weights(
        None if problem.law is UNKNOWN else problem.law.for_descent, values
    )
    energy = sum(float((precisions[n] * t.square()).sum()) for n, t in values.items())
    if not energy > 0:
        return None
    return TangentView(
        task=task,
        values=scale(energy**-0.5, values),
        points=tuple(along(start, observed, share) for share in shares),
        precisions=precisions,
        spec=problem.spec,
        sign=1.0 if moves else -1.0,
        trained=along(start, observed, 1.0) if model.kind == "fine-tuning" else None,
        notes=notes,
    )


def _suitable(model: ObservationModel, problem: Problem) -> tuple[float, ...]:
    """Return where the features of one kind of observation are taken."""
    examples = None if problem.batch_size is UNKNOWN else problem.batch_size
    if model.kind in ("gradient", "weights"):
        return (0.0,)
    if model.single_step(examples) is not None:
        return (0.0,)
    if isinstance(model, FineTuning) and model.linearised:
        return (0.0,)
    return (0.0, 1.0)


def _without_decay(
    model: Update, start: Tree, observed: Tree, examples: int
) -> tuple[Tree, tuple[str, ...]]:
    """Return Θ_T − c Θ_0, which is free of what weight decay did to Θ_0."""
    if model.weight_decay == 0:
        return observed, ()
    steps = len(model.batches(examples))
    pull = None if model.rate is None else model.rule.pull(steps, model.rate)
    if pull is None:
        return observed, ("Weight decay could not be taken out of the update.",)
    return add(observed, scale(1 - pull, start)), ()


class _Soft(nn.Module):
    """a z + (1 − a) log(1 + exp(βz)) / β, which tends to the leaky ReLU."""

    def __init__(self, sharpness: float, leak: float) -> None:
        super().__init__()
        self.sharpness, self.leak = sharpness, leak

    def forward(self, z: Tensor) -> Tensor:
        """Apply it elementwise."""
        soft = nn.functional.softplus(z, beta=self.sharpness)
        return self.leak * z + (1 - self.leak) * soft


def softened(task: Task, sharpness: float) -> Task | None:
    """Return a copy of a task whose ReLUs are smooth; None if it has none.

    The features of a ReLU network are piecewise constant in the first layer's slopes,
    so that descent on them does not see which neurons an input switches on.

    Args:
        task: it is not changed; activations must be modules to be found.
        sharpness: β > 0 of the softplus that takes their place.
    """
    kinds = (nn.ReLU, nn.LeakyReLU)
    if not any(isinstance(m, kinds) for m in task.model.modules()):
        return None
    if isinstance(task.model, kinds):
        return None
    model = copy.deepcopy(task.model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kinds):
                leak = getattr(child, "negative_slope", 0.0)
                setattr(parent, name, _Soft(sharpness, leak))
    return task.with_model(model)


@formula(
    r"\beta_s = \beta_0 (\beta_1/\beta_0)^{\min(1,\, s/0.9)}",
    reference="annealing of softplus as in Loo et al., ICLR 2024; geometric: ours",
)
def sharpness_schedule(share: float, start: float, end: float) -> float:
    """Return the sharpness β of the softplus at a share of the run.

    Args:
        share: s in [0, 1].
        start: β₀ > 0.
        end: β₁, reached after nine tenths.
    """
    return start * (end / start) ** min(1.0, share / 0.9)
