"""Tensor decomposition of a two-layer gradient: inputs with a guarantee."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.attacks.engine.start import centre, placeholder_targets
from exhume.attacks.two_layer.features import Features, recover_features
from exhume.attacks.two_layer.recovery import Source, SubspaceKind
from exhume.errors import InvalidInput
from exhume.problem.attack import Attack
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.losses import signs
from exhume.problem.reconstruction import Outcome, Reconstruction, Stopwatch
from exhume.problem.task import Task

__all__ = ["TensorAttack", "answer", "out_of_reach"]


@dataclass(frozen=True, kw_only=True)
class TensorAttack(Attack):
    """Read the inputs off Hermite moments of the gradient of a two-layer network.

    f(x) = A σ(W x) with Gaussian W. Averages of the gradient against Hermite tensors of
    the weights tend to Σ_i r_i c_p x_i^{⊗p} by Stein's lemma; their decomposition in
    the span of the batch gives directions with error O(√(d/m)), or nearly free of d
    where the span comes from the rows of ∂L/∂W. Norms, signs, residuals and labels
    follow. No start is needed, and the time is that of a few passes over the weights.

    Where σ is odd, no gradient of the weights tells (x, r) from (−x, −r). Signs then
    come from the softmax of three classes or more, from the range of the data, from
    ∂L/∂c = Σ_i r_i of the last layer's biases (up to 12 examples), from known targets,
    or from a large constant in the last layer (the bias trick, ``output_constant`` of
    the model ``two-layer``); what nothing determines makes the first residual positive,
    and a note says so.

    A network with more layers is out of reach here; ``recover_features`` then gives
    what enters its last two layers.

    Attributes:
        source: gradient that is averaged: of the ``hidden`` weights, of the ``output``
            weights, or ``auto``.
        subspace: ``svd`` of ∂L/∂W, eigenvectors of ``moments``, or the better one.
        norm: ‖x‖ (as the network sees x) if all are equal and known; searched if None.
        restarts: pairs of slices in the decomposition.
        polish: Gauss–Newton steps in the span at most; with 0 the answer is the
            estimator of the theorem, otherwise usually exact without noise.
        starts: random ones at most that are polished as well, while part of a gradient
            without noise is not explained.

    Raises:
        InvalidInput: an option is out of range.
    """

    source: Source = "auto"
    subspace: SubspaceKind = "auto"
    norm: float | None = None
    restarts: int = 100
    polish: int = 50
    starts: int = 30

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS, Fact.LOCAL_SCHEDULE})
    uses: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.BATCH_SIZE, Fact.LABELS, Fact.DEFENSE, Fact.PRIOR, Fact.PUBLIC_DATA}
    )
    bibtex: ClassVar[str] = """
@inproceedings{wang2023reconstructing,
  title = {Reconstructing Training Data from Model Gradient, Provably},
  author = {Wang, Zihan and Lee, Jason D. and Lei, Qi},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year = {2023}
}
"""

    def __post_init__(self) -> None:
        for name, least in (("restarts", 1), ("polish", 0), ("starts", 0)):
            if getattr(self, name) < least:
                msg = f"{name} is {getattr(self, name)}; expected at least {least}"
                raise InvalidInput(msg)
        if self.norm is not None and not 0 < self.norm < math.inf:
            msg = f"norm is {self.norm}; expected a positive number, or None"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (cls(restarts=2, starts=1, polish=5), cls(restarts=20, starts=2))

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Take the moments, decompose, fit."""
        watch = Stopwatch()
        found = recover_features(
            problem,
            source=self.source,
            subspace=self.subspace,
            norm=self.norm,
            restarts=self.restarts,
            polish=self.polish,
            starts=self.starts,
            key=key,
        )
        return answer(problem, found, watch)


def answer(problem: Problem, found: Features | str, watch: Stopwatch) -> Reconstruction:
    """Turn features that are inputs into a reconstruction, or say why they are not."""
    if isinstance(found, str):
        return out_of_reach(problem, found, watch)
    if not found.reads_input:
        sentence = (
            "The last two layers do not read the input: this gradient gives features "
            "only (recover_features)."
        )
        return out_of_reach(problem, sentence, watch)
    task: Task = problem.require(Fact.WEIGHTS)
    like = next(t for t in problem.observed.values() if t.is_floating_point())
    z = found.values.to(like).reshape(len(found.values), *problem.spec.shape)
    inputs = z if task.normalise is None else task.normalise.undo(z)
    return Reconstruction(
        inputs=problem.spec.clamp(inputs),
        targets=_labels(problem, found),
        objective=None,
        outcome=Outcome.CLOSED_FORM,
        cost=watch.cost(),
        adaptive=problem.law_is_used,
        notes=found.notes,
    )


def _labels(problem: Problem, found: Features) -> Tensor:
    """Return known labels in the order of the estimates, or the estimated ones."""
    from scipy.optimize import linear_sum_assignment

    known, guess = problem.targets, found.targets
    if guess.is_floating_point():
        like = next(t for t in problem.observed.values() if t.is_floating_point())
        return guess.to(like)
    if known is UNKNOWN or len(known) != len(guess):
        return guess
    if known.is_floating_point() and found.residuals.shape[1] > 1:
        return guess  # probabilities of classes
    cost, classes = found.residuals, known
    if cost.shape[1] == 1:
        # One output for two classes: ∂L/∂f is above 0 where the label is the first.
        cost, classes = torch.cat([-cost, cost], dim=1), (signs(known) > 0).flatten()
    cost = cost[:, classes.to(cost.device).long()]
    return known[torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1])]


def out_of_reach(problem: Problem, why: str, watch: Stopwatch) -> Reconstruction:
    """Return the centre of the prior and the reason."""
    size = 1 if problem.batch_size is UNKNOWN else int(problem.batch_size)
    targets, note = placeholder_targets(problem, size)
    return Reconstruction(
        inputs=centre(problem).expand(size, *problem.spec.shape).clone(),
        targets=targets,
        objective=None,
        outcome=Outcome.NOT_APPLICABLE,
        cost=watch.cost(),
        notes=(f"{why} The answer is the prior mean.", note),
    )
