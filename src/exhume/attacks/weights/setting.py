"""From a problem to a fit: what the network is, which candidates are sought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exhume.attacks.relaxations.identity import InUnits
from exhume.attacks.relaxations.span import InSpan, WhatTheLayerReads
from exhume.attacks.unknowns import RelaxationChoice, Unknowns, fit_relaxation
from exhume.attacks.weights.entrance import (
    Entrance,
    Span,
    find_entrance,
    make_metric,
    make_span,
)
from exhume.attacks.weights.fit import Fit
from exhume.attacks.weights.smoothed_relu import smoothed
from exhume.errors import InvalidInput, Unsuited
from exhume.observations.homogeneity import homogeneity
from exhume.observations.weights import Weights
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.relaxation import Relaxation, Units
from exhume.problem.task import Task

__all__ = ["MisfitName", "Setting", "candidate_labels", "classes_of", "make_setting"]

# What to do where the equation needs a weight decay that was not said.
_SAY_DECAY = (
    "give the observation its weight_decay (on the command line: --schedule "
    "weight_decay=0.01, say)"
)

_PLAIN = (
    "The misfit is the plain residual: whitening weighs the directions of the first "
    "layer's span, to which this relaxation does not confine candidates."
)

MisfitName = Literal["whitened", "plain"]


@dataclass(frozen=True, eq=False)
class Setting:
    """A fit, and what is to be said about it.

    Attributes:
        fit: what is minimised.
        outputs: K of the network.
        centre: common to all examples, shape [*event]: what the network subtracts from
            them, else the mean public example, else None.
        notes: sentences for the report.
    """

    fit: Fit
    outputs: int
    centre: Tensor | None
    notes: tuple[str, ...]

    def returned_targets(
        self, problem: Problem, inputs: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Return targets of an answer, in the form of the known ones.

        Args:
            problem: labels count if they are known.
            inputs: x, shape [B, *event].
            labels: classes of the margins, or None.
        """
        task: Task = problem.require(Fact.WEIGHTS)
        if labels is None:
            with torch.no_grad():
                found = self.fit.task.predict(inputs, self.fit.weights)
            return found.squeeze(1).to(task.dtype)
        known = problem.targets
        if known is UNKNOWN or not known.is_floating_point():
            return labels
        if self.outputs == 1:
            return (2 * labels - 1).to(known).reshape(-1, *known.shape[1:])
        return torch.nn.functional.one_hot(labels, self.outputs).to(known)


def make_setting(
    problem: Problem,
    *,
    sharpness: float,
    misfit: MisfitName,
    span: bool,
    box: float,
    least: float,
    relaxation: RelaxationChoice | None = None,
) -> Setting:
    """Return the fit of a problem, in double precision.

    Args:
        problem: with weights, local schedule and batch size.
        sharpness: α of the smoothed backward of ReLU; 0 keeps the network's own.
        misfit: ``whitened`` or ``plain``, which a relaxation outside of the span needs.
        span: confine candidates to the span that the first layer shows.
        box: weight of the range.
        least: λ_min.
        relaxation: x = g(z) of candidates, in the place of the span; None for the span,
            or for what the first layer reads without one.

    Raises:
        InvalidInput: one output with cross-entropy.
        Unsuited: the network is not homogeneous and was trained without weight decay.
    """
    task: Task = problem.require(Fact.WEIGHTS).to(torch.float64)
    outputs = _outputs(problem, task)
    model = problem.require(Fact.LOCAL_SCHEDULE)
    decay = model.weight_decay if isinstance(model, Weights) else 0.0
    signed = task.criterion.margin
    notes = _applicable(problem, task, decay, outputs)
    weights = {n: t.to(torch.float64) for n, t in problem.observed.items()}
    smooth = smoothed(task, sharpness) if sharpness else None
    if sharpness and smooth is None:
        notes.append("No ReLU module was found: gradients are the network's own.")
    task = smooth or task
    entrance = find_entrance(task, problem.spec)
    found = None
    if relaxation is not None:
        units = _units(problem.spec, entrance, task)
        found, span = fit_relaxation(relaxation, problem, units), False
    whitened = misfit == "whitened"
    if whitened and not (found is None or isinstance(found, InSpan)):
        whitened = False
        notes.append(_PLAIN)
    known = None
    if entrance is not None and (span or whitened):
        known = make_span(weights[entrance.weight], problem.require(Fact.BATCH_SIZE))
    if known is None and (span or whitened):
        notes.append(
            "No dense layer reads the examples, or none that has learned: they are "
            "sought among all inputs, by the plain residual."
        )
    metric = None
    if known is not None and entrance is not None and whitened:
        metric = make_metric(weights, entrance, known)
    if found is None:
        found = _confined(problem.spec, entrance, known if span else None, task)
    fit = Fit(
        task=task,
        weights=weights,
        unknowns=Unknowns(found, problem.spec),
        entrance=entrance,
        metric=metric,
        signed=signed,
        box=box,
        least=least,
        soft=bool(decay),
    )
    return Setting(fit, outputs, _centre(problem, fit), tuple(notes))


def _confined(
    spec: EventSpec, entrance: Entrance | None, span: Span | None, task: Task
) -> Relaxation:
    """Return examples as the first layer reads them, inside of its span if there is."""
    if entrance is None:
        return InUnits(spec, _units(spec, entrance, task))
    if span is None:
        return WhatTheLayerReads(entrance.slope, entrance.shift, spec.shape)
    return InSpan(entrance.slope, entrance.shift, spec.shape, span.basis)


def _units(spec: EventSpec, entrance: Entrance | None, task: Task) -> Units:
    """Return the units of what the first layer reads; else centred on the range."""
    if entrance is not None:
        centre, scale = -entrance.shift / entrance.slope, 1 / entrance.slope
        return Units(centre.reshape(spec.shape), scale.reshape(spec.shape))
    if spec.low is None or spec.high is None:
        return Units()
    like = next(iter(task.parameters().values())).detach()
    return Units(centre=like.new_tensor((spec.low + spec.high) / 2))


def _outputs(problem: Problem, task: Task) -> int:
    """Return K, or raise where the loss cannot have trained that many outputs."""
    probe = torch.zeros(1, *problem.spec.shape, dtype=task.dtype, device=task.device)
    outputs = task.output_size(probe)
    if outputs == 1 and task.criterion.softmax:
        msg = (
            "the network has one output and its loss is said to be cross-entropy, "
            "which needs an output per class and is constant on one; give "
            '--loss logistic (or --loss mse) on the command line, loss = "logistic" '
            "in a recipe or Task"
        )
        raise InvalidInput(msg)
    return outputs


def _applicable(problem: Problem, task: Task, decay: float, outputs: int) -> list[str]:
    """Say why the weights are a combination of gradients, or raise."""
    signed = task.criterion.margin
    if decay:
        told = (
            f"The network was trained with weight decay {decay:g}: its weights are a "
            f"combination of gradients at the examples wherever training has settled."
        )
        if not signed or outputs <= 2:
            return [told]
        soft = (
            "Margins are taken over all other classes at once, which is what "
            "cross-entropy with weight decay leaves in the weights."
        )
        return [told, soft]
    if not signed:
        msg = (
            "trained weights tell their data through margins or weight decay, and this "
            "network was trained on the squared error without either; if there was a "
            f"weight decay, {_SAY_DECAY}"
        )
        raise Unsuited(msg)
    found = homogeneity(task, problem.spec)
    if found.order is None:
        msg = (
            f"{found.sentence}; if it was, {_SAY_DECAY}, else attack the change of the "
            f"weights instead"
        )
        raise Unsuited(msg)
    return [found.sentence]


def _centre(problem: Problem, fit: Fit) -> Tensor | None:
    if fit.entrance is not None and bool(fit.entrance.shift.any()):
        slope, shift = fit.entrance.slope, fit.entrance.shift
        read = WhatTheLayerReads(slope, shift, problem.spec.shape)
        return read.decode(torch.zeros_like(shift)[None])[0]
    if problem.public is not UNKNOWN:
        return problem.public.inputs.to(torch.float64).mean(dim=0)
    return None


def candidate_labels(
    problem: Problem, outputs: int, count: int, *, signed: bool
) -> tuple[Tensor | None, str]:
    """Return labels of M candidates, in turn, and a sentence about their origin.

    Args:
        problem: its labels are used if they are known.
        outputs: K of the network; one output has the classes 0 and 1.
        count: M.
        signed: without margins, no labels are needed.
    """
    if not signed:
        return None, "Labels are not needed: the network's outputs stand for them."
    turn = torch.arange(count)
    if problem.targets is UNKNOWN:
        classes = 2 if outputs == 1 else outputs
        return turn % classes, "The labels are not known; all classes are sought alike."
    known = classes_of(problem.targets)
    return known[turn % len(known)], "The labels are given, as numbers per class."


def classes_of(targets: Tensor) -> Tensor:
    """Return class indices; ±1 become 1 and 0."""
    if not targets.is_floating_point():
        return targets
    if targets.dim() == 2 and targets.shape[1] > 1:
        return targets.argmax(dim=1)
    return (targets.reshape(-1) > 0).long()
