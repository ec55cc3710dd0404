"""Score a reconstruction: match first, then every metric, one value per example.

Batches are unordered, so estimates are assigned to truths before they are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from exhume.config import build
from exhume.errors import InvalidInput, UnknownName
from exhume.problem.batch import Batch
from exhume.problem.bound import NotApplicable
from exhume.problem.event import EventSpec
from exhume.problem.metric import Metric
from exhume.problem.reconstruction import Reconstruction
from exhume.registry import did_you_mean, names

__all__ = ["UNMATCHED", "Scores", "Values", "align_labels", "apply", "match", "score"]

#: in the result of :func:`match`: this truth has no estimate
UNMATCHED = -1

#: one value per true example, in the batch's order; None where there is no estimate
Values = tuple[float | None, ...]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a reconstruction, per example, in the order of the true batch.

    Attributes:
        assignment: for each truth the index of its estimate, or None without one.
        inputs: matched estimates, shape [B, *event]; NaN where there is none.
        targets: matched targets, shape [B, ...]; −1 (classes) or NaN where none.
        values: metric → one value per example.
        not_applicable: metric → why it does not fit this data.
    """

    assignment: tuple[int | None, ...]
    inputs: Tensor
    targets: Tensor
    values: Mapping[str, Values]
    not_applicable: Mapping[str, str]

    def __getitem__(self, metric: str) -> Values:
        """Return the values of a metric.

        Raises:
            InvalidInput: the metric does not fit this data; the message says why.
            UnknownName: no metric has this name.
        """
        if metric in self.values:
            return self.values[metric]
        if metric in self.not_applicable:
            msg = f"there are no values of {metric}: {self.not_applicable[metric]}"
            raise InvalidInput(msg)
        raise UnknownName(did_you_mean("metric", metric, sorted(self.values)))

    @property
    def mse(self) -> Values:
        """Mean squared error of each example."""
        return self["mse"]

    @property
    def psnr(self) -> Values:
        """Peak signal-to-noise ratio of each example, in dB."""
        return self["psnr"]

    @property
    def ssim(self) -> Values:
        """Structural similarity of each image."""
        return self["ssim"]

    @property
    def label_accuracy(self) -> Values:
        """1.0 where the class of an example was recovered, else 0.0."""
        return self["label-accuracy"]

    def summary(self) -> dict[str, dict[str, float]]:
        """Reduce each metric to its ``median``, ``min`` and ``max`` over the examples.

        A metric without a single scored example is left out. There is no mean: one
        outlier of a logarithmic metric would decide it.
        """
        present = {
            metric: [v for v in values if v is not None]
            for metric, values in self.values.items()
        }
        return {
            metric: {"median": median(found), "min": min(found), "max": max(found)}
            for metric, found in present.items()
            if found
        }


def score(
    reconstruction: Reconstruction,
    batch: Batch,
    metrics: Sequence[str | Mapping[str, Any] | Metric] = (),
) -> Scores:
    """Match estimates to the true examples and apply every registered metric.

    Args:
        reconstruction: an attack's answer: B̂ estimates, any order.
        batch: the truth, B examples. If B̂ < B, truths without an estimate score None;
            if B̂ > B, the surplus estimates are ignored.
        metrics: beside the registered ones with their defaults: a name, a name with
            options, or an object. ``Metric.key`` is the name of its scores.

    Raises:
        InvalidInput: the estimates have another shape, or are not finite.
    """
    index = match(reconstruction.inputs, batch.inputs, batch.spec)
    rows = (index != UNMATCHED).nonzero().flatten()
    found = {
        "inputs": reconstruction.inputs.detach()[index[rows]],
        "targets": reconstruction.targets.detach()[index[rows]],
    }
    truth = {"inputs": batch.inputs[rows], "targets": batch.targets[rows]}
    estimates = {**found, "targets": align_labels(found["targets"], truth["targets"])}
    values: dict[str, Values] = {}
    not_applicable: dict[str, str] = {}
    applied: dict[str, Metric] = {n: build("metric", n) for n in names("metric")}
    for given in metrics:
        metric = given if isinstance(given, Metric) else build("metric", given)
        applied[metric.key] = metric
    for name, metric in applied.items():
        what = metric.compares
        scored = apply(metric, estimates[what], truth[what], batch.spec)
        if isinstance(scored, NotApplicable):
            not_applicable[name] = scored.reason
        else:
            values[name] = _spread(scored, rows, len(batch))
    return Scores(
        assignment=tuple(None if i == UNMATCHED else i for i in index.tolist()),
        inputs=_place(found["inputs"], rows, len(batch)),
        targets=_place(found["targets"], rows, len(batch)),
        values=values,
        not_applicable=not_applicable,
    )


def match(guess: Tensor, truth: Tensor, spec: EventSpec) -> Tensor:
    """Assign estimates to truths so that the total distance is least.

    The distance is that of the event, a squared error unless it says otherwise. The
    assignment reads inputs only. With B̂ < B estimates, B − B̂ truths stay without
    one (:data:`UNMATCHED`) and have no score; with B̂ > B, the surplus is ignored.

    Args:
        guess: x̂, shape [B̂, *event].
        truth: x, shape [B, *event].
        spec: kind of the examples, whose distance is used.

    Returns:
        shape [B], int64: for each truth the index of its estimate, or −1.

    Raises:
        InvalidInput: the events have different shapes, or an estimate is not finite.

    References:
        H. W. Kuhn, The Hungarian method for the assignment problem, 1955.
    """
    from scipy.optimize import linear_sum_assignment

    if guess.shape[1:] != truth.shape[1:]:
        msg = (
            f"estimates have shape {list(guess.shape[1:])} per example, the truth "
            f"{list(truth.shape[1:])}; they must agree"
        )
        raise InvalidInput(msg)
    if not bool(torch.isfinite(guess).all()):
        msg = "the estimates contain NaN or infinity; a diverged attack has no scores"
        raise InvalidInput(msg)
    cost = spec.distance(guess, truth).cpu().numpy()
    estimates, truths = linear_sum_assignment(cost)
    assignment = torch.full((len(truth),), UNMATCHED, dtype=torch.int64)
    assignment[torch.from_numpy(truths)] = torch.from_numpy(estimates)
    return assignment


def align_labels(guess: Tensor, truth: Tensor) -> Tensor:
    """Reorder estimated classes so that as many as possible agree with the truth.

    A gradient does not tell their order, and a wrong picture must not make a right
    label wrong. Those that agree where they stand stay there; every estimate is used
    once.

    Args:
        guess: ŷ, class indices [B]; other targets stay as they are.
        truth: y, class indices [B].

    Returns:
        ŷ in the best order, shape [B].
    """
    if guess.is_floating_point() or guess.shape != truth.shape or guess.dim() != 1:
        return guess
    truth = truth.to(guess.device)
    wrong = guess != truth
    rest, wanted = guess[wrong].tolist(), truth[wrong].tolist()
    aligned: list[int | None] = []
    for label in wanted:
        aligned.append(label if label in rest else None)
        if label in rest:
            rest.remove(label)
    for place, label in enumerate(aligned):
        if label is None:
            aligned[place] = rest.pop()
    result = guess.clone()
    result[wrong] = result.new_tensor(aligned)
    return result


def apply(
    metric: Metric, guess: Tensor, truth: Tensor, spec: EventSpec
) -> Tensor | NotApplicable:
    """Score matched examples by one metric; padding of the true ones is left out.

    A padded example is compared by what counts of it, see :meth:`EventSpec.unpadded`,
    so a metric need not know of padding.

    Args:
        metric: of inputs or targets.
        guess: matched estimates, shape [B, ...].
        truth: shape [B, ...].
        spec: kind of the examples.

    Returns:
        shape [B], or why the metric does not fit.
    """
    if len(truth) == 0:
        return NotApplicable("the attack returned no estimate")
    truth = truth.to(guess.device)
    mask = spec.mask(truth) if metric.compares == "inputs" else None
    if mask is None:
        return metric(guess, truth, spec)
    values = []
    for one, true, counts in zip(guess, truth, mask, strict=True):
        guessed, wanted, cut = spec.unpadded(one, true, counts)
        value = metric(guessed[None], wanted[None], cut)
        if isinstance(value, NotApplicable):
            return value
        values.append(value)
    return torch.cat(values)


def _spread(values: Tensor, rows: Tensor, count: int) -> Values:
    """Put values at their rows of the batch; undefined ones become None."""
    result: list[float | None] = [None] * count
    for row, value in zip(rows.tolist(), values.tolist(), strict=True):
        result[row] = value if math.isfinite(value) else None
    return tuple(result)


def _place(matched: Tensor, rows: Tensor, count: int) -> Tensor:
    missing = torch.nan if matched.is_floating_point() else UNMATCHED
    result = matched.new_full((count, *matched.shape[1:]), missing)
    result[rows.to(matched.device)] = matched
    return result
