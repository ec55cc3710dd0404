"""Examples in the span that the first dense layer shows: z are its coefficients.

The span is read off the change of that layer, or off its weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.attacks.engine.linear_layer import Entry, entry
from exhume.attacks.weights.entrance import find_entrance, make_span
from exhume.errors import InvalidInput, Unsuited
from exhume.formula import formula
from exhume.observations.update import Update
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import ObservationModel
from exhume.problem.relaxation import Relaxation, Units
from exhume.problem.source import RelaxationSource
from exhume.problem.task import Task

__all__ = [
    "InSpan",
    "InputSpan",
    "ShownSpan",
    "Span",
    "WhatTheLayerReads",
    "decayed_change",
    "input_span",
    "noise_edge",
    "pull_of_decay",
    "shown_span",
]

# Singular values below this share of the largest are rounding, in single precision.
_ROUNDING = 1e-6
# Grid and steps of the search for the pull of weight decay.
_GRID, _STEPS = 60, 60
_GOLDEN = (math.sqrt(5) - 1) / 2
_NO_ENTRY = (
    "No trained linear layer reads the input itself (a convolution or a fixed layer "
    "comes first), so its change does not show the span of the inputs."
)
_NOTHING = "The first layer did not change, so it shows no span."
_NO_SPAN = (
    "No dense layer reads the examples, or none that has learned, so the weights show "
    "no span of the inputs."
)
_ADAPTIVE = (
    "Adam divides every weight by its own scale, which bends the row space: the span "
    "of the inputs is not exact, and neither is what was found in it."
)


@dataclass(frozen=True, eq=False)
class InputSpan:
    """Directions in which inputs lie.

    Attributes:
        basis: orthonormal rows, shape [k, d].
        values: all singular values of the change, falling.
        gap: σ_k / σ_{k+1}; infinite if nothing is left.
    """

    basis: Tensor
    values: Tensor
    gap: float


@formula(
    r"\Delta = W_T - c\, W_0,\quad \operatorname{rowspace}(\Delta) \subseteq"
    r" \operatorname{span}\{x_i\}",
    reference="chain rule: every SGD step adds δᵀX to W; c is the pull of the decay",
)
def decayed_change(change: Tensor, start: Tensor, pull: float) -> Tensor:
    """Return the part of the change of a weight that the data made.

    Args:
        change: W_T − W_0, shape [o, d].
        start: W_0, same shape.
        pull: c, what weight decay alone makes of a weight of 1.
    """
    return change + (1 - pull) * start


@formula(
    r"\sigma (\sqrt{o} + \sqrt{d})",
    reference="largest singular value of a Gaussian matrix; Davidson and Szarek (2001)",
)
def noise_edge(std: float, rows: int, columns: int) -> float:
    """Return the singular value above which noise alone does not reach.

    Args:
        std: σ ≥ 0 of every entry.
        rows: o of the matrix.
        columns: d of the matrix.
    """
    return std * (math.sqrt(rows) + math.sqrt(columns))


def input_span(change: Tensor, most: int, std: float = 0.0) -> InputSpan:
    """Return the row space of the change of a weight matrix.

    The rank is the number of singular values above rounding and noise, and at most the
    number of examples.

    Args:
        change: Δ, shape [o, d].
        most: examples that made it, the largest rank that is possible.
        std: of independent noise on every entry.
    """
    _, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    floor = max(_ROUNDING * float(values[0]), noise_edge(std, *change.shape))
    above = int((values > floor).sum())
    rank = max(1, min(most, above))
    after = float(values[rank]) if rank < len(values) else 0.0
    gap = float(values[rank - 1]) / after if after > 0 else math.inf
    return InputSpan(right[:rank], values, gap)


def pull_of_decay(change: Tensor, start: Tensor, rank: int) -> float:
    """Find the pull c of weight decay: where Δ has the least (rank + 1)-th value.

    Args:
        change: W_T − W_0, shape [o, d].
        start: W_0, same shape.
        rank: of the data's part, below both sizes.

    Returns:
        c in [0, 1.05].
    """

    def next_value(pull: float) -> float:
        data = decayed_change(change.double(), start.double(), pull)
        return float(torch.linalg.svdvals(data)[rank])

    grid = [1.05 * k / _GRID for k in range(_GRID + 1)]
    nearest = min(range(len(grid)), key=lambda k: next_value(grid[k]))
    low, high = grid[max(nearest - 1, 0)], grid[min(nearest + 1, _GRID)]
    for _ in range(_STEPS):
        a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, b) if next_value(a) < next_value(b) else (a, high)
    return (low + high) / 2


@dataclass(frozen=True, eq=False)
class WhatTheLayerReads(Relaxation):
    """z is what the first dense layer receives, s ⊙ x + t.

    Attributes:
        slope: s, shape [d], nowhere zero.
        shift: t, shape [d].
        shape: of an example.
    """

    onto: ClassVar[bool] = True
    slope: Tensor
    shift: Tensor
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number d of reals in one example."""
        return len(self.slope)

    def decode(self, z: Tensor) -> Tensor:
        """Return x = (z − t) / s."""
        x = (z - self.shift.to(z)) / self.slope.to(z)
        return x.reshape(-1, *self.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return z = s ⊙ x + t."""
        return self.slope.to(x) * x.flatten(1) + self.shift.to(x)


@dataclass(frozen=True, eq=False)
class InSpan(WhatTheLayerReads):
    """z are the coefficients of what the layer receives, u z Q = s ⊙ x + t.

    Attributes:
        basis: Q, orthonormal rows, shape [k, d].
        unit: u > 0, so that coefficients have the units of the examples.
    """

    onto: ClassVar[bool] = False
    basis: Tensor
    unit: float = 1.0

    @property
    def size(self) -> int:
        """The dimension k of the span."""
        return len(self.basis)

    def decode(self, z: Tensor) -> Tensor:
        """Return x = (u z Q − t) / s."""
        return super().decode(self.unit * z @ self.basis.to(z))

    def encode(self, x: Tensor) -> Tensor:
        """Return the coefficients of what is nearest to x, as the layer receives it."""
        return super().encode(x) @ self.basis.to(x).T / self.unit


@dataclass(frozen=True, eq=False)
class ShownSpan:
    """What the change of the first layer shows.

    Attributes:
        relaxation: examples in the span.
        decay: c, what weight decay alone makes of a weight of 1.
        notes: sentences for the report.
    """

    relaxation: InSpan
    decay: float
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Span(RelaxationSource):
    """x is a combination of few directions, read off the layer that the input enters.

    Every step of SGD adds δᵀX to the weights of a linear first layer, so the rows of
    its gradient, of its change (less what weight decay did), and of trained weights
    beyond the noise that they began with, are combinations of the examples. B examples
    of dimension d become B coefficient vectors of dimension B at most.

    Attributes:
        rank: of the span; 0 reads it off the singular values and the batch size.

    Raises:
        InvalidInput: the rank is negative.
    """

    rank: int = 0

    def __post_init__(self) -> None:
        if self.rank < 0:
            msg = f"rank is {self.rank}; expected at least 0"
            raise InvalidInput(msg)

    def fit(self, problem: Problem, units: Units) -> Relaxation:
        """Return the relaxation to the span that this problem shows.

        Raises:
            Unsuited: no dense layer reads the examples, or it shows nothing.
        """
        del units  # its own: those of the examples
        model: ObservationModel = problem.require(Fact.LOCAL_SCHEDULE)
        if model.kind == "weights":
            return self._of_weights(problem)
        return shown_span(problem, self.rank).relaxation

    def _of_weights(self, problem: Problem) -> InSpan:
        task: Task = problem.require(Fact.WEIGHTS).to(torch.float64)
        found = find_entrance(task, problem.spec)
        count: int = self.rank or problem.require(Fact.BATCH_SIZE)
        weights = {n: t.double() for n, t in problem.observed.items()}
        span = None if found is None else make_span(weights[found.weight], count)
        if found is None or span is None:
            raise Unsuited(_NO_SPAN)
        return InSpan(found.slope, found.shift, problem.spec.shape, span.basis)


def shown_span(problem: Problem, rank: int = 0) -> ShownSpan:
    """Return the span of the inputs that a gradient or a change of weights shows.

    Args:
        problem: with weights, schedule and batch size; declared noise raises the edge
            above which directions count.
        rank: of the span; 0 reads it off the singular values and the batch size.

    Raises:
        Unsuited: no trained linear layer reads the input, or it did not change.
    """
    task: Task = problem.require(Fact.WEIGHTS)
    found = entry(task, problem.spec)
    if found is None:
        raise Unsuited(_NO_ENTRY)
    name = found.layer.weight
    change = problem.observed[name]
    if not bool(change.any()):
        raise Unsuited(_NOTHING)
    count: int = rank or problem.require(Fact.BATCH_SIZE)
    start = task.parameters()[name].detach()
    model: ObservationModel = problem.require(Fact.LOCAL_SCHEDULE)
    notes: list[str] = []
    decay = 1.0
    if isinstance(model, Update) and model.optimiser != "sgd":
        notes.append(_ADAPTIVE)
    elif isinstance(model, Update) and model.weight_decay:
        decay, note = _decay(model, start, change, count, problem)
        change = decayed_change(change, start.to(change), decay)
        notes.append(note)
    span = input_span(change, count, _noise(problem, name))
    notes.append(_summary(span, problem.spec.dimension))
    return ShownSpan(_relaxation(task, problem.spec, found, span), decay, tuple(notes))


def _relaxation(task: Task, spec: EventSpec, found: Entry, span: InputSpan) -> InSpan:
    """Return the span in natural units, with a normalisation of the task undone."""
    slope, shift = found.gain, found.shift
    if task.normalise is not None:
        zero = slope.new_zeros(1, *spec.shape)
        off = task.normalise(zero).flatten()
        slope = slope * (task.normalise(zero + 1).flatten() - off)
        shift = shift + found.gain * off
    unit = float(slope.abs().median())
    return InSpan(slope, shift, spec.shape, span.basis.to(slope), unit)


def _decay(
    model: Update, start: Tensor, change: Tensor, rank: int, problem: Problem
) -> tuple[float, str]:
    """Return c by the schedule, else by the singular values, and how it was found."""
    steps = len(model.batches(problem.require(Fact.BATCH_SIZE)))
    known = None if model.rate is None else model.rule.pull(steps, model.rate)
    if known is not None:
        return known, f"Weight decay made {known:.4f} of the first weights."
    if rank >= min(change.shape):
        return 1.0, "Weight decay could not be told from the data."
    found = pull_of_decay(change, start.to(change), rank)
    return found, f"Weight decay made {found:.4f} of the first weights, by their rank."


def _noise(problem: Problem, name: str) -> float:
    """Return the largest declared standard deviation on a tensor."""
    law = problem.law
    if law is UNKNOWN or name not in law.variance:
        return 0.0
    return float(law.variance[name].max()) ** 0.5


def _summary(span: InputSpan, dimension: int) -> str:
    left = f"{span.gap:.3g}" if span.gap < float("inf") else "infinite"
    return (
        f"The first layer shows a span of {len(span.basis)} of {dimension} dimensions; "
        f"the gap of its singular values is {left}."
    )
