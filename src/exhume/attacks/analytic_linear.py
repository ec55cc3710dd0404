"""Closed form: the input of a biased linear layer is the quotient of its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from exhume.attacks.engine.labels import LabelStrategy, label_note, recover_labels
from exhume.attacks.engine.linear_inversion import (
    class_split,
    isolated_inputs,
    rank_one_input,
)
from exhume.attacks.engine.linear_layer import (
    LinearLayer,
    entry_weights,
    input_layer,
    output_layer,
    scale_is_unknown,
)
from exhume.attacks.engine.peeling import peel
from exhume.attacks.engine.start import centre, placeholder_targets
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.attack import Attack
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.reconstruction import Outcome, Reconstruction, Stopwatch
from exhume.problem.task import Task

__all__ = ["AnalyticLinear", "regression_target"]


@dataclass(frozen=True, kw_only=True)
class AnalyticLinear(Attack):
    """Divide ∂L/∂W by ∂L/∂b of the linear layer that reads the input.

    One example: exact, also from a pruned gradient (every coordinate needs one kept
    entry); maximum likelihood under noise. More examples: each class of a linear
    classifier gives its mean input; in a ReLU network, rows that a single example
    activates give it exactly, and it is then subtracted from the gradient. What cannot
    be isolated is filled with the mean of the mixtures. Clipping cancels in the
    quotient. A model without such a layer (a convolution comes first) is out of reach.

    Attributes:
        labels: where labels come from if they are not given; ``auto`` takes ``idlg``
            for one example and ``bias-corrected`` for more.
    """

    labels: Literal["auto", "idlg", "bias-corrected"] = "auto"

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE}
    )
    uses: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.LABELS, Fact.DEFENSE, Fact.PRIOR, Fact.PUBLIC_DATA}
    )
    bibtex: ClassVar[str] = """
@article{phong2018privacy,
  title   = {Privacy-Preserving Deep Learning via Additively Homomorphic Encryption},
  author  = {Phong, Le Trieu and Aono, Yoshinori and Hayashi, Takuya and Wang, Lihua
             and Moriai, Shiho},
  journal = {IEEE Transactions on Information Forensics and Security},
  volume  = {13},
  number  = {5},
  pages   = {1333--1345},
  year    = {2018}
}
@inproceedings{geiping2020inverting,
  title     = {Inverting Gradients -- How easy is it to break privacy in federated
               learning?},
  author    = {Geiping, Jonas and Bauermeister, Hartmut and Dr{\\"o}ge, Hannah and
               Moeller, Michael},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {33},
  pages     = {16937--16947},
  year      = {2020}
}
"""

    def __post_init__(self) -> None:
        if self.labels not in ("auto", "idlg", "bias-corrected"):
            msg = (
                f"labels is {self.labels!r}; choose 'auto', 'idlg' or 'bias-corrected'"
            )
            raise InvalidInput(msg)

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Evaluate the closed form; the key is not used."""
        del key
        watch = Stopwatch()
        task: Task = problem.require(Fact.WEIGHTS)
        batch_size: int = problem.require(Fact.BATCH_SIZE)
        layer = input_layer(task, problem.spec)
        if layer is None:
            return _out_of_reach(problem, batch_size, watch)
        targets, note = self._targets(problem, task, batch_size)
        if batch_size == 1:
            inputs, notes = _single(problem, layer)
            if targets.is_floating_point() and problem.targets is UNKNOWN:
                targets, note = _fitted_target(problem, task, inputs, targets)
        else:
            inputs, notes = _several(problem, layer, targets, watch)
        return Reconstruction(
            inputs=problem.spec.clamp(inputs),
            targets=targets,
            objective=None,
            outcome=Outcome.CLOSED_FORM,
            cost=watch.cost(),
            adaptive=problem.law_is_used,
            notes=(note, *notes),
        )

    def _targets(
        self, problem: Problem, task: Task, batch_size: int
    ) -> tuple[Tensor, str]:
        if problem.targets is not UNKNOWN:
            return problem.targets, "The labels are given."
        if not task.criterion.softmax:
            width = task.output_size(centre(problem)[None].to(task.dtype))
            zeros = torch.zeros(batch_size, width, dtype=task.dtype, device=task.device)
            return zeros, "The targets are not known; zeros stand in for them."
        strategy: LabelStrategy = "idlg" if batch_size == 1 else "bias-corrected"
        if self.labels != "auto":
            strategy = self.labels
        labels = recover_labels(problem, strategy, batch_size)
        return labels, label_note(problem, strategy)


def _out_of_reach(
    problem: Problem, batch_size: int, watch: Stopwatch
) -> Reconstruction:
    targets, note = placeholder_targets(problem, batch_size)
    return Reconstruction(
        inputs=centre(problem).expand(batch_size, *problem.spec.shape).clone(),
        targets=targets,
        objective=None,
        outcome=Outcome.NOT_APPLICABLE,
        cost=watch.cost(),
        notes=(
            "No biased linear layer reads the input directly (a convolution, say, comes"
            " first), so there is no closed form; the answer is the prior mean.",
            note,
        ),
    )


# --- one example ---------------------------------------------------------------------


def _single(problem: Problem, layer: LinearLayer) -> tuple[Tensor, tuple[str, ...]]:
    weight, bias = _gradients(problem, layer)
    law = None if problem.law is UNKNOWN else problem.law
    assert layer.bias is not None
    trust = entry_weights(law, {layer.weight: weight, layer.bias: bias})
    # The matrix has rank one, so it vanishes in whole rows and columns or nowhere: a
    # lone zero was masked, whether or not the defense is known.
    zero = weight == 0
    weight_trust = trust[layer.weight] * (~zero | zero.all(dim=0)).to(weight)
    bias_trust = trust[layer.bias] * ((bias != 0) | zero.all(dim=1)).to(bias)
    z, determined = rank_one_input(weight, bias, weight_trust, bias_trust)
    # A data-dependent mask drops small entries: a column without any has z ≈ 0.
    dropped_small = law is None or law.irregular is not None
    dropped_small &= bool(determined.any())
    x = _to_natural(problem, z.where(determined, z.new_zeros(())))
    if not dropped_small:
        known = determined.reshape(1, *problem.spec.shape)
        x = x.where(known, centre(problem).to(x))
    lost = int((~determined).sum())
    note = f"{lost} of {z.numel()} coordinates are not determined by the gradient."
    return x, (note,) if lost else ()


@formula(
    r"\hat y = f(\hat x) - \frac{H}{2} \frac{\partial L}{\partial b}",
    reference="stationarity of the mean squared error in the outputs",
)
def regression_target(outputs: Tensor, bias_gradient: Tensor) -> Tensor:
    """Return the target of one example under the mean squared error.

    Args:
        outputs: f(x̂), shape [H].
        bias_gradient: ∂L/∂b of the output layer, shape [H].

    Returns:
        ŷ, shape [H].
    """
    return outputs - len(outputs) / 2 * bias_gradient


def _fitted_target(
    problem: Problem, task: Task, inputs: Tensor, zeros: Tensor
) -> tuple[Tensor, str]:
    layer = output_layer(task, problem.spec)
    if layer is None or layer.bias is None:
        return zeros, "The target cannot be inferred without an output bias."
    with torch.no_grad():
        outputs = task.predict(inputs.to(task.dtype), task.parameters())[0]
    target = regression_target(outputs, problem.observed[layer.bias])
    return target[None], "The target was inferred from the output bias."


# --- several examples ----------------------------------------------------------------


def _several(
    problem: Problem, layer: LinearLayer, targets: Tensor, watch: Stopwatch
) -> tuple[Tensor, tuple[str, ...]]:
    task: Task = problem.require(Fact.WEIGHTS)
    weight, bias = _gradients(problem, layer)
    if layer == output_layer(task, problem.spec) and not targets.is_floating_point():
        assert layer.bias is not None
        own = task.parameters()
        z = class_split(
            weight, bias, targets, own[layer.weight].detach(), own[layer.bias].detach()
        )
        note = "One input per class; examples that share a label come out as a mean."
        return _to_natural(problem, z), (note,)
    if task.mode == "train" and task.running_statistics:
        inputs, found = _unverified(problem, weight, bias, len(targets))
        how = "appear in rows of their own (unverified: BatchNorm couples the batch)"
    else:
        law = None if problem.law is UNKNOWN else problem.law
        scaled = scale_is_unknown(law, problem.observed)
        split = peel(task, problem.spec, layer, targets, weight, bias, scaled=scaled)
        watch.count(split.evaluations)
        inputs, found, how = split.inputs, split.found, "were isolated and verified"
    inputs = inputs.clone()
    inputs[~found] = _mixture(problem, weight, bias)
    note = f"{int(found.sum())} of {len(found)} examples {how}"
    rest = "." if bool(found.all()) else "; the mean of the mixtures fills the rest."
    return inputs, (note + rest,)


def _unverified(
    problem: Problem, weight: Tensor, bias: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    groups = isolated_inputs(weight, bias)[:batch_size]
    inputs = weight.new_zeros(batch_size, *problem.spec.shape)
    found = torch.arange(batch_size, device=weight.device) < len(groups)
    for i, group in enumerate(groups):
        inputs[i] = _to_natural(problem, group.input)[0]
    return inputs, found


def _mixture(problem: Problem, weight: Tensor, bias: Tensor) -> Tensor:
    """Average the quotients that are possible inputs, weighted by |∂L/∂b|."""
    rows = (bias.abs() > 1e-6 * bias.abs().max()).nonzero().flatten()
    guesses = _to_natural(problem, weight[rows] / bias[rows, None])
    spec = problem.spec
    if spec.low is not None and spec.peak is not None:
        slack = 1e-3 * spec.peak
        outside = (guesses - spec.clamp(guesses)).abs().flatten(1).amax(dim=1)
        rows, guesses = rows[outside <= slack], guesses[outside <= slack]
    if len(rows) == 0:
        return centre(problem).to(weight)
    share = bias[rows].abs() / bias[rows].abs().sum()
    return torch.einsum("k,k...->...", share, guesses)


def _gradients(problem: Problem, layer: LinearLayer) -> tuple[Tensor, Tensor]:
    assert layer.bias is not None
    return problem.observed[layer.weight], problem.observed[layer.bias]


def _to_natural(problem: Problem, normalised: Tensor) -> Tensor:
    """Undo the task's normalisation: [..., d] → [N, *event] in natural units."""
    task: Task = problem.require(Fact.WEIGHTS)
    z = normalised.reshape(normalised.shape[:-1].numel(), *problem.spec.shape)
    return z if task.normalise is None else task.normalise.undo(z)
