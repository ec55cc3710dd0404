"""Soteria: drop the columns of a dense layer whose features reveal the input most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from exhume.defenses.pruning import magnitude_mask, removed_count
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import KeepWhere, Law
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.privacy import Guarantee
from exhume.problem.task import Task
from exhume.problem.tree import Tree, detached

__all__ = ["Soteria", "default_layer", "feature_sensitivity", "sensitivity_score"]

# Features whose derivatives are computed in one vectorised pass.
_CHUNK = 64

_CHOOSES = (
    "soteria chooses by the private examples which columns of the dense layer are "
    "released, so p(O | S) jumps where that choice changes"
)


@formula(
    r"s_r = \sum_i \lVert \partial r_i / \partial x_i \rVert_2 \,/\, |r_i|",
    reference="Sun et al., CVPR 2021, section 4.2, equation (7), summed over a batch",
)
def sensitivity_score(features: Tensor, slopes: Tensor) -> Tensor:
    """Score every feature; those with the smallest score are removed.

    Args:
        features: r, shape [B, n].
        slopes: ‖∂r/∂x‖₂, shape [B, n], ≥ 0.

    Returns:
        shape [n]; 0 for a feature that is dead on the whole batch (r = 0 with slope 0),
        whose column is zero anyway.
    """
    tiny = torch.finfo(features.dtype).tiny
    return (slopes / features.abs().clamp_min(tiny)).sum(dim=0)


def default_layer(model: nn.Module) -> str:
    """Name the dense layer that reads the features.

    That is the first linear layer after another layer with weights: the first dense
    layer of a convolutional network, as in the paper, and the second of a perceptron,
    whose first one reads the input itself. If there is no such layer, the only one.

    Raises:
        InvalidInput: the model has no trainable linear layer.
    """
    seen, first = False, None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.weight.requires_grad:
            if seen:
                return name
            first = name if first is None else first
        seen = seen or any(p.requires_grad for p in module.parameters(recurse=False))
    if first is None:
        msg = "soteria acts on a linear layer, and the model has no trainable one"
        raise InvalidInput(msg)
    return first


def feature_sensitivity(
    task: Task, layer: str, inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what a layer reads and how steeply it depends on the input.

    Args:
        task: the model.
        layer: name of a linear layer.
        inputs: x, shape [B, *event].

    Returns:
        r and ‖∂r/∂x‖₂, both of shape [B, n].

    Raises:
        InvalidInput: the layer is not called exactly once with a matrix [B, n].
    """
    x = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        r = _read_by(task, layer, x)
        total = r.sum(dim=0)
        slopes = []
        for columns in torch.arange(len(total), device=x.device).split(_CHUNK):
            units = torch.eye(len(total), device=x.device, dtype=x.dtype)[columns]
            (jacobian,) = torch.autograd.grad(
                total, x, units, retain_graph=True, is_grads_batched=True
            )
            slopes.append(jacobian.flatten(2).norm(dim=2))
    return r.detach(), torch.cat(slopes).T


def _read_by(task: Task, layer: str, x: Tensor) -> Tensor:
    received: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        received.append(args[0])

    handle = task.model.get_submodule(layer).register_forward_pre_hook(hook)
    try:
        task.predict(x, detached(task.parameters()))
    finally:
        handle.remove()
    if len(received) != 1 or received[0].dim() != 2:
        shapes = [list(r.shape) for r in received]
        msg = (
            f"soteria needs a layer that reads one vector per example once; {layer!r} "
            f"reads {shapes}; name another one with `layer`"
        )
        raise InvalidInput(msg)
    return received[0]


@dataclass(frozen=True, kw_only=True)
class Soteria(Defense):
    """Set the columns of one dense layer's gradient to zero, chosen by the batch.

    The columns belong to the features r that the layer reads; ⌊ρ n⌋ of them go, those
    with the smallest ‖∂r/∂x‖ / |r|, summed over the batch. Everything else, also the
    bias of the layer, is released as it is. The client needs its examples for the
    choice (``personalise``); the mask stays with it, but the zeros show it.

    The law takes a column that is zero throughout for removed. If something after it
    hides the zeros, the whole weight is void to an attacker, who leaves it out. Both
    are the known break: every other layer is released exactly, and fitting those alone
    recovers the input.

    Attributes:
        ratio: ρ in [0, 1); 0 is the identity.
        layer: name of the linear layer; "" takes :func:`default_layer`.

    Raises:
        InvalidInput: ``ratio`` is out of range, or the layer is not a linear one that
            reads one vector per example.
    """

    stage: ClassVar[Stage] = Stage.UPDATE
    bibtex: ClassVar[str] = """\
@inproceedings{sun2021soteria,
  title = {Soteria: Provable Defense Against Privacy Leakage in Federated Learning
           from Representation Perspective},
  author = {Sun, Jingwei and Li, Ang and Wang, Binghui and Yang, Huanrui and Li, Hai
            and Chen, Yiran},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages = {9311--9319},
  year = {2021},
}
"""

    ratio: float
    layer: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            msg = f"ratio is {self.ratio}; expected a fraction in [0, 1), e.g. 0.8"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a mask of most columns."""
        return (cls(ratio=0.7),)

    def idle(self) -> Self:
        """Return a mask that removes nothing."""
        return replace(self, ratio=0.0)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Find the layer and count the columns to remove."""
        del public, key
        weight, module = self._weight(task)
        removed = removed_count(self.ratio, module.in_features)
        plan = self._plan(task, numbers={"removed": removed})
        return replace(plan, covers=(weight,))

    def _weight(self, task: Task) -> tuple[str, nn.Linear]:
        """Return the name of the layer's weight, and the layer."""
        name = self._layer(task)
        module = dict(task.model.named_modules()).get(name)
        weight = f"{name}.weight" if name else "weight"
        if not isinstance(module, nn.Linear) or weight not in task.parameters():
            linear = [
                n for n, m in task.model.named_modules() if isinstance(m, nn.Linear)
            ]
            msg = (
                f"{self.layer!r} is no trainable linear layer of the model; choose one "
                f"of {', '.join(map(repr, linear))}"
            )
            raise InvalidInput(msg)
        return weight, module

    def _layer(self, task: Task) -> str:
        return self.layer or default_layer(task.model)

    def personalise(
        self,
        task: Task,
        model: ObservationModel,
        candidate: Candidate,
        plan: Plan,
        key: int,
    ) -> Plan:
        """Choose the columns from the client's examples."""
        del model, key
        removed = int(plan.numbers["removed"])
        if removed == 0:
            return plan
        inputs = candidate.inputs.to(task.dtype)
        r, slopes = feature_sensitivity(task, self._layer(task), inputs)
        kept = magnitude_mask(sensitivity_score(r, slopes), removed)
        return replace(plan, arrays={"kept": kept})

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        del key
        if plan.numbers["removed"] == 0:
            return covered
        if "kept" not in plan.arrays:
            msg = (
                "soteria chooses columns by the client's own examples; complete the "
                "plan with `personalise` before it is applied"
            )
            raise InvalidInput(msg)
        return KeepWhere(_columns(plan, plan.arrays["kept"]))(covered)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Void the columns that are zero, or the whole weight if zeros are hidden."""
        if plan.numbers["removed"] == 0:
            return law
        (weight,) = plan.covers
        if "kept" in plan.arrays:
            kept = plan.arrays["kept"]
        elif observed is not None:
            kept = (observed[weight] != 0).any(dim=0)
        else:
            kept = torch.zeros(plan.shapes[weight][1], dtype=torch.bool)
        masked = law.masked(_columns(plan, kept))
        return replace(masked, irregular=law.irregular or _CHOOSES)

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Keep the sensitivity of a whole client; after the noise the choice leaks."""
        if plan.numbers["removed"] == 0:
            return before
        if before.multiplier > 0:
            return before.void(
                "soteria chooses the released columns by the private examples after "
                "the noise was added, and no noise hides the choice"
            )
        if before.unit == "client":
            return before.processed()
        return super().account(before, plan)

    @property
    def preserves_zeros(self) -> bool:
        """A ratio of 0 removes nothing."""
        return self.ratio == 0


def _columns(plan: Plan, kept: Tensor) -> Tree:
    """Spread a mask over features to the columns of the covered weight."""
    (weight,) = plan.covers
    return {weight: kept.expand(plan.shapes[weight]).clone()}
