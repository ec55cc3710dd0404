"""Recover what enters the last two fully connected layers of any network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.two_layer.implied import implied_targets
from exhume.attacks.two_layer.locate import Located, locate
from exhume.attacks.two_layer.recovery import (
    Method,
    Recovered,
    Source,
    SubspaceKind,
    recover_inputs,
    with_sign,
)
from exhume.attacks.two_layer.signs import (
    bias_factors,
    consistent_norms,
    resolve_signs,
    scale_unknown,
)
from exhume.errors import InvalidInput
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.task import Task
from exhume.problem.tree import check_finite

__all__ = ["Features", "recover_features"]


@dataclass(frozen=True, eq=False)
class Features:
    """Estimated features of a batch, in no particular order.

    Attributes:
        values: ĥ, what enters the last two layers, shape [B, d].
        targets: ŷ: class indices [B], or real targets [B, K].
        residuals: r̂ = ∂L/∂f, shape [B, K].
        confidence: |cos| between estimates from two halves of the neurons, [B]; near 1
            for a direction that more neurons would not move.
        misfit: share of the gradient that the features do not explain.
        sign_known: whether the sign was determined, shape [B].
        norm_known: whether the lengths were.
        reads_input: the features are the (normalised) inputs themselves.
        notes: limits that were met; empty where the theory applies.
    """

    values: Tensor
    targets: Tensor
    residuals: Tensor
    confidence: Tensor
    misfit: float
    sign_known: Tensor
    norm_known: bool
    reads_input: bool
    notes: tuple[str, ...]


def recover_features(
    problem: Problem,
    *,
    source: Source = "auto",
    subspace: SubspaceKind = "auto",
    method: Method = "tensor",
    norm: float | None = None,
    restarts: int = 100,
    polish: int = 50,
    starts: int = 30,
    key: int = 0,
) -> Features | str:
    """Read the end of a network as a two-layer one, and recover what enters it.

    Args:
        problem: with the weights; labels, batch size and defense are used if known.
        source: see ``recover_inputs``.
        subspace: see ``recover_inputs``.
        method: see ``recover_inputs``.
        norm: ‖h‖ of all features if it is known.
        restarts: see ``recover_inputs``.
        polish: see ``recover_inputs``.
        starts: see ``recover_inputs``.
        key: randomness.

    Returns:
        the features, or a sentence on why this network is out of reach.

    Raises:
        Inconsistent: the observation holds NaN or infinity.
    """
    task: Task = problem.require(Fact.WEIGHTS)
    check_finite(problem.observed, what="the observation")
    gradient = problem.as_gradient()
    if gradient is None:
        return "What was observed is not the gradient of one step."
    problem = gradient
    size = None if problem.batch_size is UNKNOWN else int(problem.batch_size)
    try:
        found = locate(problem, task, size)
        if isinstance(found, str):
            return found
        estimate = recover_inputs(
            found.view,
            size,
            source=source,
            subspace=subspace,
            method=method,
            norm=norm,
            restarts=restarts,
            polish=polish,
            starts=starts,
            key=key,
        )
    except InvalidInput as error:
        return f"{str(error)[:1].upper()}{str(error)[1:]}."
    return _finished(problem, task, found, estimate)


def _finished(
    problem: Problem, task: Task, located: Located, found: Recovered
) -> Features:
    values, norm_known = found.inputs, found.norm_known
    sign_known = found.sign_known
    notes = [*located.notes, *found.notes]
    if located.bias_column is not None:
        # The last entry is κ for every example, which gives length and sign.
        last = values[:, -1:] / located.bias_column
        safe = last.abs() > 1e-6 * values.norm(dim=1, keepdim=True)
        values = torch.where(safe, values / last, values)[:, :-1]
        residuals = torch.where(safe, found.residuals * last, found.residuals)
        sign_known, norm_known = safe.squeeze(1), True
        notes = _without(notes, "signs are not", "norms are")
        notes.append("Lengths and signs were read off the hidden biases.")
    elif (factors := bias_factors(located, found)) is not None:
        found = with_sign(found, factors.sign())
        lengths = factors.new_ones(len(factors)) if norm_known else 1 / factors.abs()
        values = found.inputs * lengths.unsqueeze(1)
        residuals = found.residuals / lengths.unsqueeze(1)
        sign_known, norm_known = torch.ones_like(sign_known), True
        notes = _without(notes, "signs are not", "norms are")
        notes.append("Signs and lengths agree with the gradient of the hidden biases.")
    else:
        signs = resolve_signs(problem, task, located, found)
        found = with_sign(found, signs.values)
        sign_known, residuals = signs.known, found.residuals
        values = found.inputs
        notes += signs.notes
        lengths = None
        if not norm_known:
            lengths = consistent_norms(problem, task, located, found)
        if lengths is not None:
            values = values * lengths.unsqueeze(1)
            residuals = residuals / lengths.unsqueeze(1)
            norm_known = True
            notes = _without(notes, "norms are")
            notes.append("Lengths make the network's own residuals fit.")
    targets, note = _targets(problem, task, located, values, residuals)
    notes += note
    return Features(
        values=values,
        targets=targets,
        residuals=residuals,
        confidence=found.confidence,
        misfit=found.misfit,
        sign_known=sign_known,
        norm_known=norm_known
        and (located.bias_column is not None or bool(found.reached.all())),
        reads_input=located.reads_input,
        notes=tuple(notes),
    )


def _targets(
    problem: Problem, task: Task, located: Located, values: Tensor, residuals: Tensor
) -> tuple[Tensor, list[str]]:
    """Return the targets that residuals imply, and what is to be said of them."""
    classes = task.criterion.classes_of_residuals(residuals)
    if classes is not None:
        return classes, []
    targets = implied_targets(located, values, residuals)
    if not scale_unknown(problem):
        return targets, []
    note = (
        "The defense may have scaled the gradient, and residuals with it: real targets "
        "cannot be told."
    )
    return targets, [note]


def _without(notes: list[str], *settled: str) -> list[str]:
    """Drop the limits that something else has settled."""
    return [n for n in notes if not any(words in n for words in settled)]
