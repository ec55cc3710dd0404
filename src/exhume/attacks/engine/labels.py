"""Recover labels from the gradient, or the update, of the classification layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from exhume.attacks.engine.label_counts import label_counts
from exhume.attacks.engine.linear_layer import (
    LinearLayer,
    entry_weights,
    features,
    output_layer,
    scale_is_unknown,
)
from exhume.attacks.engine.stand_ins import stand_in_chunk, stand_ins
from exhume.attacks.engine.update_labels import MeanGradient, mean_gradient
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.observations.gradient import Gradient
from exhume.observations.update import Update
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.law import Law
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["LabelStrategy", "label_note", "recover_labels"]

LabelStrategy = Literal["known", "idlg", "bias-corrected"]

# Noise of B·∂L/∂b above this many examples: rounding to whole counts needs help.
_TOLERABLE_NOISE = 0.2


def recover_labels(
    problem: Problem, strategy: LabelStrategy, batch_size: int
) -> Tensor:
    """Return the labels of the batch, sorted, shape [B] int64.

    ``known`` takes them from the problem. ``idlg`` is exact for one example.
    ``bias-corrected`` counts every class, so that it is right with repeated labels; it
    needs an estimate of the mean softmax and takes it from public examples, from the
    prior, or from random inputs, whichever of these is known first.

    Args:
        problem: with the weights and what the client computes.
        strategy: one of ``LabelStrategy``.
        batch_size: B.

    Raises:
        MissingKnowledge: the labels are to be known and are not, or the model or the
            observation model is not known.
        InvalidInput: the strategy does not fit the loss, the model, the observation
            or the batch size; the sentence says which.
    """
    if strategy == "known":
        return problem.require(Fact.LABELS)
    if strategy not in get_args(LabelStrategy):
        known = ", ".join(get_args(LabelStrategy))
        msg = f"the label strategy is {strategy!r}; known: {known}"
        raise InvalidInput(msg)
    evidence = _gather(problem)
    if strategy == "idlg":
        if batch_size != 1:
            msg = (
                f"the label strategy 'idlg' works for one example, the batch has "
                f"{batch_size}; use 'bias-corrected'"
            )
            raise InvalidInput(msg)
        return _single_label(evidence).reshape(1)
    residual, weights, scaled = _residual(problem, evidence, batch_size)
    conditional = _conditional_softmax(problem, evidence, batch_size)
    counts = label_counts(residual, conditional, batch_size, weights, scaled=scaled)
    classes = torch.arange(len(counts), device=counts.device)
    return classes.repeat_interleave(counts)


def label_note(problem: Problem, strategy: LabelStrategy) -> str:
    """Say in one sentence where the labels come from, for the notes of an attack."""
    if strategy == "known":
        return "The labels are given."
    evidence = _gather(problem)
    layer, steps = evidence.layer, len(evidence.tasks) > 1
    what = "bias" if layer.bias is not None else "weight (the layer has no bias)"
    source = "change over all steps" if steps else "gradient"
    sentence = (
        f"The labels were inferred by {strategy!r} from the {source} of the "
        f"classification layer's {what}."
    )
    if not (steps and evidence.scaled):
        return sentence
    return (
        f"{sentence} Without the step size (or behind clipped steps) nearly even "
        f"labels may be counted wrong."
    )


@dataclass(frozen=True, eq=False)
class _Evidence:
    """The gradient of the classification layer f = W a + b, as far as it is known.

    Attributes:
        tasks: the task at weights at which gradients were taken.
        layer: the classification layer.
        law: p(gradient | S), or None.
        weight: ∂L/∂W.
        bias: ∂L/∂b, or None.
        scaled: both were multiplied by an unknown positive number.
    """

    tasks: tuple[Task, ...]
    layer: LinearLayer
    law: Law | None
    weight: Tensor
    bias: Tensor | None
    scaled: bool


def _gather(problem: Problem) -> _Evidence:
    task: Task = problem.require(Fact.WEIGHTS)
    if not task.criterion.softmax:
        msg = (
            f"labels are inferred for the cross-entropy loss; the task has "
            f"'{task.loss}', so give the targets (threat model 'labels-known')"
        )
        raise InvalidInput(msg)
    layer = output_layer(task, problem.spec)
    if layer is None or layer.weight not in problem.observed:
        msg = (
            "the outputs of the model do not come straight from a trainable nn.Linear, "
            "so labels cannot be inferred; give them (threat model 'labels-known')"
        )
        raise InvalidInput(msg)
    seen = _gradients(problem, task)
    bias = None if layer.bias is None else seen.values[layer.bias]
    weight = seen.values[layer.weight]
    return _Evidence(seen.tasks, layer, seen.law, weight, bias, seen.scaled)


def _gradients(problem: Problem, task: Task) -> MeanGradient:
    """Return the observed gradient, or the mean one behind an update."""
    law = None if problem.law is UNKNOWN else problem.law
    scaled = scale_is_unknown(law, problem.observed)
    model = problem.require(Fact.LOCAL_SCHEDULE)
    if isinstance(model, Gradient):
        return MeanGradient(problem.observed, law, (task,), scaled)
    if isinstance(model, Update):
        found = mean_gradient(problem, model)
        return replace(found, scaled=scaled or found.scaled)
    msg = (
        "labels are inferred from a gradient or an update of local steps, and the "
        "observation is neither; give the labels (threat model 'labels-known')"
    )
    raise InvalidInput(msg)


# --- one example ---------------------------------------------------------------------


@formula(
    r"\hat y = \operatorname{arg\,min}_k \partial L / \partial b_k,"
    r"\qquad \partial L / \partial b_k = p_k - 1[k = y]",
    reference="Zhao, Mopuri and Bilen, iDLG (2020), Eq. 3–5",
)
def idlg_label(bias_gradient: Tensor) -> Tensor:
    """Return the label of a single example: the one class with a negative gradient.

    Args:
        bias_gradient: ∂L/∂b of the classification layer, shape [K].

    Returns:
        scalar int64.
    """
    return bias_gradient.argmin()


def _single_label(evidence: _Evidence) -> Tensor:
    if evidence.bias is not None and bool((evidence.bias < 0).any()):
        return idlg_label(evidence.bias)
    # Without a (kept) bias: ∂L/∂W = r aᵀ has rank one, and r = p − e_y has exactly one
    # entry of its sign. The orientation of the singular vector is chosen by that.
    u, _, v = torch.linalg.svd(evidence.weight, full_matrices=False)
    r = u[:, 0]
    if len(r) == 2:  # both entries have equal size: rely on features a ≥ 0
        return idlg_label(r * v[0].sum().sign())
    strays = [(-s * r).clamp_min(0).sum() - (-s * r).max() for s in (1, -1)]
    return idlg_label(r if strays[0] <= strays[1] else -r)


# --- what is needed to count ---------------------------------------------------------


def _residual(
    problem: Problem, evidence: _Evidence, batch_size: int
) -> tuple[Tensor, Tensor, bool]:
    """Estimate the mean of p − e_y: from the bias where it is good, else the weight.

    Returns:
        the estimate [K], trust in each entry [K], and whether its scale is unknown.
    """
    law, layer, scaled = evidence.law, evidence.layer, evidence.scaled
    keep = evidence.weight.new_zeros(len(evidence.weight))
    if evidence.bias is not None and layer.bias is not None:
        weights = entry_weights(law, {layer.bias: evidence.bias})
        noise = None if law is None else law.variance.get(layer.bias)
        std = 0.0 if noise is None else float(noise.max()) ** 0.5
        if std * batch_size <= _TOLERABLE_NOISE:
            keep = (weights[layer.bias] > 0).to(keep)
        if bool(keep.all()):
            return evidence.bias, keep, scaled
    projected, trust = _projected(problem, evidence, batch_size)
    if evidence.bias is None:
        return projected, trust, True
    residual = torch.where(keep > 0, evidence.bias, projected)
    return residual, torch.maximum(keep, trust), scaled


def _projected(
    problem: Problem, evidence: _Evidence, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Project ∂L/∂(W, b) ≈ (p − e_y) [ā, 1]ᵀ on the mean features ā of stand-ins."""
    law, layer = evidence.law, evidence.layer
    received, _, _ = _stand_ins(problem, evidence, batch_size)
    typical = received.mean(dim=(0, 1))
    blocks = {layer.weight: evidence.weight}
    if evidence.bias is not None and layer.bias is not None:
        blocks[layer.bias] = evidence.bias
        typical = torch.cat([typical, typical.new_ones(1)])
    gradient = _side_by_side(blocks)
    weights = _side_by_side(entry_weights(law, blocks))
    power = (weights * typical.square()).sum(dim=1)
    floor = torch.finfo(power.dtype).tiny
    projected = (weights * gradient * typical).sum(dim=1) / power.clamp_min(floor)
    return projected, (power > 0).to(gradient)


def _side_by_side(blocks: Tree) -> Tensor:
    return torch.cat([t.reshape(len(t), -1) for t in blocks.values()], dim=1)


def _conditional_softmax(
    problem: Problem, evidence: _Evidence, batch_size: int
) -> Tensor:
    """Estimate E[p | y = ℓ], shape [K, K]; one row for all if unlabelled."""
    _, outputs, labels = _stand_ins(problem, evidence, batch_size)
    p = outputs.softmax(-1).mean(dim=0)
    classes = p.shape[1]
    overall = p.mean(dim=0)
    if labels is None or int(labels.max()) >= classes:
        return overall.expand(classes, classes)
    member = torch.nn.functional.one_hot(labels[: len(p)], classes).to(p)
    # One pseudo-example at the overall mean keeps rare classes sensible.
    return (member.T @ p + overall) / (member.sum(dim=0)[:, None] + 1)


def _stand_ins(
    problem: Problem, evidence: _Evidence, batch_size: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what the layer receives of stand-ins [W, N, a], outputs and labels."""
    inputs, labels = stand_ins(problem, evidence.tasks[0])
    chunk = stand_in_chunk(evidence.tasks[0], batch_size)
    found = [features(task, evidence.layer, inputs, chunk) for task in evidence.tasks]
    received = torch.stack([a.flatten(1) for a, _ in found])
    return received, torch.stack([f for _, f in found]), labels
