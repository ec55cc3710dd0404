"""Find the two-layer network at the end of any network, and its part of a gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exhume.attacks.engine.linear_layer import (
    LastTwo,
    LinearLayer,
    last_two_layers,
)
from exhume.attacks.two_layer.activation import recognised
from exhume.attacks.two_layer.completion import completed
from exhume.attacks.two_layer.view import TwoLayerView
from exhume.keys import generator
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["Located", "locate"]

_PROBES = 64  # random inputs that show which function an activation is
_ROUNDING = 1e-5  # of single precision
_FEW_ZEROS = 0.01  # share of single zeros above which entries count as removed


@dataclass(frozen=True, eq=False)
class Located:
    """The last two fully connected layers of a network.

    Attributes:
        view: weights and gradient, the hidden bias as one more column.
        output_bias: of the last layer, shape [K]; zeros without one.
        bias_column: κ that the hidden bias sees in place of a feature; None without
            bias, if it is constant, or if its gradient is not released beside that of
            the hidden weights; it is an offset of the view then.
        bias_gradient: ∂L/∂b of hidden biases that are zero, shape [m]; None otherwise.
        output_bias_gradient: ∂L/∂c of the last layer, shape [K]; None if it is not
            released.
        reads_input: the hidden layer receives the (normalised) input itself.
        notes: sentences on what was done to the observation.
    """

    view: TwoLayerView
    output_bias: Tensor
    bias_column: float | None
    bias_gradient: Tensor | None
    output_bias_gradient: Tensor | None
    reads_input: bool
    notes: tuple[str, ...]


def locate(problem: Problem, task: Task, rank: int | None) -> Located | str:
    """Read the last two linear layers as f(h) = A σ(W h + b).

    One of them may be frozen, so that its gradient is not released.

    Args:
        problem: what the attacker sees.
        task: its model.
        rank: B, for filling in removed entries; None leaves them at zero.

    Returns:
        the located layers, or a sentence on why there are none.
    """
    probes = _random_inputs(task, problem.spec)
    pair = last_two_layers(task, probes)
    if pair is None:
        return "The network does not end with two fully connected layers."
    activation = recognised(pair.before, pair.after)
    if activation is None:
        return (
            "What lies between the last two fully connected layers is not one of the "
            "known elementwise activations."
        )
    sigma, factors = activation
    parameters = {n: p.detach() for n, p in task.model.named_parameters()}
    seen = probes if task.normalise is None else task.normalise(probes)
    reads = torch.equal(pair.received, seen.flatten(1))
    shown = problem.observed
    rows, notes = _hidden_gradient(problem, pair.hidden, rank)
    hidden = _Hidden(parameters[pair.hidden.weight], rows)
    if (name := pair.hidden.bias) is not None:
        hidden = hidden.beside(parameters[name], shown.get(name))
    kept = factors > 0
    if not bool(kept.all()):
        notes.append(f"{int((~kept).sum())} dropped neurons were left out.")
    view = _view(problem, pair, hidden, kept, factors, sigma.name)
    if isinstance(view, str):
        return view
    if view.hidden_gradient is None and rows is not None:
        notes.append("The hidden gradient vanishes (equal rows of the output layer).")
    alone, name = hidden.bias_gradient, pair.output.bias
    return Located(
        view=view,
        output_bias=torch.zeros(len(view.output)) if name is None else parameters[name],
        bias_column=hidden.column,
        bias_gradient=None if alone is None else alone[kept].double(),
        output_bias_gradient=None if name is None else shown.get(name),
        reads_input=reads,
        notes=tuple(notes),
    )


@dataclass(frozen=True, eq=False)
class _Hidden:
    """The hidden layer with its bias as a column, an offset, or beside it.

    Attributes:
        weight: W, shape [m, d], or [m, d + 1] with the column.
        gradient: ∂L/∂W of the same shape; None if it is not released.
        column: see ``Located.bias_column``.
        offset: biases that are no column and not zero, shape [m].
        bias_gradient: see ``Located.bias_gradient``.
    """

    weight: Tensor
    gradient: Tensor | None
    column: float | None = None
    offset: Tensor | None = None
    bias_gradient: Tensor | None = None

    def beside(self, bias: Tensor, shown: Tensor | None) -> _Hidden:
        """Return the layer with a bias, and the gradient of it that is released."""
        column, rows = None, self.gradient
        if rows is None or shown is not None:
            column = _bias_column(self.weight, bias)
        if column is None:
            if bool(bias.any()):
                return replace(self, offset=bias)
            return replace(self, bias_gradient=shown)
        if rows is not None and shown is not None:
            rows = torch.cat([rows, shown.unsqueeze(1) * column], dim=1)
        weight = torch.cat([self.weight, bias.unsqueeze(1) / column], dim=1)
        return replace(self, weight=weight, gradient=rows, column=column)


def _view(
    problem: Problem,
    pair: LastTwo,
    layer: _Hidden,
    kept: Tensor,
    factors: Tensor,
    sigma: str,
) -> TwoLayerView | str:
    """Put the released parts together, without dropped neurons and what vanishes."""
    task: Task = problem.require(Fact.WEIGHTS)
    output = task.model.get_parameter(pair.output.weight).detach()[:, kept]
    heads = problem.observed.get(pair.output.weight)
    if heads is not None:
        heads = heads[:, kept] / factors[kept].to(output)
    hidden = None if layer.gradient is None else layer.gradient[kept]
    if hidden is not None and heads is not None and _vanished(hidden, output, heads):
        hidden = None
    if hidden is None and heads is None:
        return "Neither of the last two fully connected layers releases a gradient."
    scaled = output * factors[kept].to(output)
    offset = None if layer.offset is None else layer.offset[kept]
    return TwoLayerView(layer.weight[kept], scaled, sigma, hidden, heads, offset)


def _vanished(hidden: Tensor, output: Tensor, heads: Tensor) -> bool:
    """Say whether the hidden gradient is rounding beside what the heads would pass."""
    passed = float(output.norm()) * float(heads.norm()) / len(hidden) ** 0.5
    return float(hidden.norm()) <= _ROUNDING * passed


def _random_inputs(task: Task, spec: EventSpec) -> Tensor:
    source = generator(0, "probe-activation")
    draw = torch.rand((_PROBES, *spec.shape), generator=source, dtype=torch.float64)
    if spec.low is not None and spec.peak is not None:
        draw = spec.low + spec.peak * draw
    else:
        draw = 2 * draw - 1
    return draw.to(device=task.device, dtype=task.dtype)


def _bias_column(weight: Tensor, bias: Tensor) -> float | None:
    """Return std(b)/std(W): the bias is then one more weight of the same law."""
    spread, own = float(bias.double().std()), float(weight.double().std())
    if len(bias) < 2 or own == 0 or spread < 1e-3 * own:
        return None
    return spread / own


def _hidden_gradient(
    problem: Problem, layer: LinearLayer, rank: int | None
) -> tuple[Tensor | None, list[str]]:
    rows = problem.observed.get(layer.weight)
    if rows is None:
        return None, []
    kept = _kept_entries(problem, layer.weight, rows)
    if kept is None or rank is None:
        return rows, []
    share, filled = 1 - float(kept.double().mean()), completed(rows, kept, rank)
    if filled is None:
        return rows, [f"{share:.0%} of the hidden gradient was removed: taken as zero."]
    note = f"{share:.0%} of the hidden gradient was removed, and filled in by its rank."
    return filled, [note]


def _kept_entries(problem: Problem, name: str, rows: Tensor) -> Tensor | None:
    """Return which entries were released, from the law or from lone zeros."""
    if problem.law is not UNKNOWN:
        mask: Tree = dict(problem.law.mask)
        if name not in mask or bool(mask[name].all()):
            return None
        # Rows that are zero as a whole belong to neurons that nothing activates.
        return mask[name].to(rows.device) | (rows != 0)
    empty = (rows == 0).all(dim=1, keepdim=True) | (rows == 0).all(dim=0, keepdim=True)
    lone = (rows == 0) & ~empty
    return None if float(lone.double().mean()) < _FEW_ZEROS else ~lone
