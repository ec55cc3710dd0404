"""Find the two-layer network at the end of any network, and its part of a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.linear_layer import LinearLayer, last_two_layers
from exhume.attacks.two_layer.activation import recognised
from exhume.attacks.two_layer.completion import completed
from exhume.attacks.two_layer.view import TwoLayerView
from exhume.keys import generator
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Problem
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["Located", "locate"]

_PROBES = 64  # random inputs that show which function an activation is
_FEW_ZEROS = 0.01  # share of single zeros above which entries count as removed


@dataclass(frozen=True, eq=False)
class Located:
    """The last two fully connected layers of a network.

    Attributes:
        view: weights and gradient, the hidden bias as one more column.
        output_bias: of the last layer, shape [K]; zeros without one.
        bias_column: κ that the hidden bias sees in place of a feature; None without
            bias, or if it is constant and then left out.
        reads_input: the hidden layer receives the (normalised) input itself.
        notes: sentences on what was done to the observation.
    """

    view: TwoLayerView
    output_bias: Tensor
    bias_column: float | None
    reads_input: bool
    notes: tuple[str, ...]


def locate(problem: Problem, task: Task, rank: int | None) -> Located | str:
    """Read the last two linear layers as f(h) = A σ(W h + b).

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
    parameters = {n: p.detach() for n, p in task.parameters().items()}
    seen = probes if task.normalise is None else task.normalise(probes)
    reads = torch.equal(pair.received, seen.flatten(1))
    hidden, notes = _hidden_gradient(problem, pair.hidden, rank)
    weight, bias = parameters[pair.hidden.weight], None
    column = None
    if pair.hidden.bias is not None:
        bias = parameters[pair.hidden.bias]
        column = _bias_column(weight, bias)
    if column is not None and bias is not None:
        assert pair.hidden.bias is not None
        weight = torch.cat([weight, bias.unsqueeze(1) / column], dim=1)
        shown = problem.observed[pair.hidden.bias].unsqueeze(1) * column
        hidden = torch.cat([hidden, shown], dim=1)
    elif bias is not None and bool(bias.any()):
        notes.append("The hidden biases are not random; Stein's lemma ignores them.")
    kept = factors > 0
    if not bool(kept.all()):
        notes.append(f"{int((~kept).sum())} dropped neurons were left out.")
    output = parameters[pair.output.weight][:, kept]
    view = TwoLayerView(
        weight=weight[kept],
        output=output * factors[kept].to(output),
        activation=sigma.name,
        hidden_gradient=hidden[kept] if bool(hidden.any()) else None,
        output_gradient=problem.observed[pair.output.weight][:, kept]
        / factors[kept].to(output),
    )
    name = pair.output.bias
    shift = output.new_zeros(len(output)) if name is None else parameters[name]
    return Located(view, shift, column, reads, tuple(notes))


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
) -> tuple[Tensor, list[str]]:
    rows = problem.observed[layer.weight]
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
