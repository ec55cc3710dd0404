"""Recover the labels of a batch from the gradient of the classification layer."""

from __future__ import annotations

from dataclasses import dataclass
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
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold, generator
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.law import Law
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["LabelStrategy", "label_note", "recover_labels"]

LabelStrategy = Literal["known", "idlg", "bias-corrected"]

# Stand-ins for the private examples: enough that their mean softmax is settled.
_PROXIES = 128
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
    layer = _gather(problem).layer
    what = "bias" if layer.bias is not None else "weight (the layer has no bias)"
    return (
        f"The labels were inferred by {strategy!r} from the gradient of the "
        f"classification layer's {what}."
    )


@dataclass(frozen=True, eq=False)
class _Evidence:
    """The released gradient of the classification layer f = W a + b."""

    task: Task
    layer: LinearLayer
    law: Law | None
    weight: Tensor
    bias: Tensor | None


def _gather(problem: Problem) -> _Evidence:
    task: Task = problem.require(Fact.WEIGHTS)
    if task.loss != "cross-entropy":
        msg = (
            f"labels are inferred for the cross-entropy loss; the task has "
            f"{task.loss!r}, so give the targets (threat model 'labels-known')"
        )
        raise InvalidInput(msg)
    if not isinstance(problem.require(Fact.LOCAL_SCHEDULE), Gradient):
        msg = (
            "labels are inferred from the sign and scale of a gradient, and the "
            "observation is not one; give the labels (threat model 'labels-known')"
        )
        raise InvalidInput(msg)
    layer = output_layer(task, problem.spec)
    if layer is None or layer.weight not in problem.observed:
        msg = (
            "the outputs of the model do not come straight from a trainable nn.Linear, "
            "so labels cannot be inferred; give them (threat model 'labels-known')"
        )
        raise InvalidInput(msg)
    law = None if problem.law is UNKNOWN else problem.law
    bias = None if layer.bias is None else problem.observed[layer.bias]
    return _Evidence(task, layer, law, problem.observed[layer.weight], bias)


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
    law, layer = evidence.law, evidence.layer
    scaled = scale_is_unknown(law, problem.observed)
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
    proxies, _ = _proxies(problem, evidence.task)
    received, _ = features(
        evidence.task, layer, proxies, _chunk(evidence.task, batch_size)
    )
    typical = received.flatten(1).mean(dim=0)
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
    inputs, labels = _proxies(problem, evidence.task)
    _, outputs = features(
        evidence.task, evidence.layer, inputs, _chunk(evidence.task, batch_size)
    )
    p = outputs.softmax(-1)
    classes = p.shape[1]
    overall = p.mean(dim=0)
    if labels is None or int(labels.max()) >= classes:
        return overall.expand(classes, classes)
    member = torch.nn.functional.one_hot(labels[: len(p)], classes).to(p)
    # One pseudo-example at the overall mean keeps rare classes sensible.
    return (member.T @ p + overall) / (member.sum(dim=0)[:, None] + 1)


def _proxies(problem: Problem, task: Task) -> tuple[Tensor, Tensor | None]:
    """Return stand-ins for private examples [N, *event], with labels if there are."""
    spec = problem.spec
    if problem.public is not UNKNOWN:
        public: Batch = problem.public
        inputs = public.inputs[:_PROXIES].to(task.device, task.dtype)
        if public.targets.dim() == 1 and not public.targets.is_floating_point():
            return inputs, public.targets[:_PROXIES].to(task.device)
        return inputs, None
    if problem.prior is not UNKNOWN and "sample" in problem.prior.supports:
        drawn = problem.prior.sample(_PROXIES, fold(0, "labels", "proxies"))
        return spec.clamp(drawn.to(task.device, task.dtype)), None
    local = generator(0, "labels", "proxies")
    shape = (_PROXIES, *spec.shape)
    if spec.low is None or spec.peak is None:
        drawn = torch.randn(shape, generator=local, dtype=torch.float64)
    else:
        uniform = torch.rand(shape, generator=local, dtype=torch.float64)
        drawn = spec.low + spec.peak * uniform
    return drawn.to(task.device, task.dtype), None


def _chunk(task: Task, batch_size: int) -> int:
    """Group stand-ins like the client's batch where examples are coupled."""
    return batch_size if task.mode == "train" else _PROXIES
