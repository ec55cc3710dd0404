"""How strongly each coordinate of a release reacts to the private inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.task import Task
from exhume.problem.tree import Tree, add, scale, size

__all__ = [
    "directions",
    "exact_squared_sensitivities",
    "relative_error",
    "row_norms_squared",
    "squared_sensitivities",
]

_TOGETHER = 64  # directions at once: the fastest size measured on LeNet
_CHUNK_BYTES = 2**28


def squared_sensitivities(
    task: Task,
    model: ObservationModel,
    inputs: Tensor,
    targets: Tensor,
    *,
    probes: int,
    key: int,
) -> Tree:
    """Estimate a_i² = ‖∂F_i/∂x‖² of every coordinate of the update, without bias.

    The batch counts as one input: for a mean over B examples that do not interact, a_i²
    is the sum over the examples of their own, divided by B². Composable with
    ``torch.func``, so that a variance made of it can be differentiated.

    Args:
        task: model, loss, mode; the result has its precision.
        model: observation model F.
        inputs: x, shape [B, *event].
        targets: y of the whole batch.
        probes: number K ≥ 1 of random directions, see :func:`relative_error`.
        key: randomness of the directions.

    Returns:
        â² by name, shaped like the update, in squared units of update per data.

    Raises:
        InvalidInput: fewer than one probe.
    """
    inputs = inputs.to(task.dtype)
    drawn = directions(inputs, probes, key)
    return row_norms_squared(_forward(task, model, targets), inputs, drawn)


def exact_squared_sensitivities(
    task: Task, model: ObservationModel, inputs: Tensor, targets: Tensor
) -> Tree:
    """Return a_i² = ‖∂F_i/∂x‖² exactly, with one derivative per input coordinate.

    Args:
        task: model, loss, mode; the result has its precision.
        model: observation model F.
        inputs: x, shape [B, *event].
        targets: y of the whole batch.
    """
    inputs = inputs.to(task.dtype)
    # Orthogonal directions of length √q: their mean of squares is the sum over columns.
    q = inputs.numel()
    columns = q**0.5 * torch.eye(q, dtype=inputs.dtype, device=inputs.device)
    axes = columns.reshape(q, *inputs.shape)
    return row_norms_squared(_forward(task, model, targets), inputs, axes)


@formula(
    r"\hat a_i^2 = \tfrac1K \textstyle\sum_k (J u_k)_i^2,\quad E[u_k u_k^\top] = I",
    reference="randomised row norms, (Ju)_i ~ N(0, ‖J_i‖²) for Gaussian u",
)
def row_norms_squared(
    forward: Callable[[Tensor], Tree], inputs: Tensor, directions: Tensor
) -> Tree:
    """Estimate the squared norms of the rows of J = ∂ forward / ∂ inputs.

    Args:
        forward: a function of the inputs, composable with ``torch.func``.
        inputs: x, shape [B, *event].
        directions: u, shape [K, B, *event].

    Returns:
        the estimate by name, shaped like the value of ``forward``.
    """

    def squared(direction: Tensor) -> Tree:
        along = torch.func.jvp(forward, (inputs,), (direction,))[1]
        return {name: t.square() for name, t in along.items()}

    total: Tree | None = None
    for part in _in_chunks(squared, directions):
        summed = {name: t.sum(dim=0) for name, t in part.items()}
        total = summed if total is None else add(total, summed)
    assert total is not None  # at least one direction
    return scale(1 / len(directions), total)


@formula(
    r"\mathrm{sd}(\hat a_i) / a_i \approx 1 / \sqrt{2 K}",
    reference="chi-square distribution with K degrees of freedom",
)
def relative_error(probes: int) -> float:
    """Return the relative standard error of a sensitivity â_i from K Gaussian probes.

    It is the same for every coordinate and every network; â_i² has twice as much.

    Args:
        probes: K.
    """
    return (2 * probes) ** -0.5


def directions(inputs: Tensor, probes: int, key: int) -> Tensor:
    """Draw standard normal directions, shape [K, B, *event].

    Args:
        inputs: x, whose shape, dtype and device they get.
        probes: K.
        key: their randomness.

    Raises:
        InvalidInput: fewer than one probe.
    """
    import numpy as np

    if probes < 1:
        msg = f"sensitivities were to be estimated from {probes} probes; use 1 or more"
        raise InvalidInput(msg)
    # Not from torch, whose random functions raise inside of vmap even with a generator.
    source = np.random.default_rng(fold(key, "sensitivity"))
    drawn = torch.from_numpy(source.standard_normal((probes, *inputs.shape)))
    return drawn.to(dtype=inputs.dtype, device=inputs.device)


def _forward(
    task: Task, model: ObservationModel, targets: Tensor
) -> Callable[[Tensor], Tree]:
    return lambda inputs: model.forward_func(task, Candidate(inputs, targets))


def _in_chunks(
    function: Callable[[Tensor], Tree], directions: Tensor
) -> Iterator[Tree]:
    """Yield ``function`` of many directions at once, stacked."""
    one = function(directions[0])
    largest = max(t.element_size() for t in one.values())
    chunk = max(1, min(_TOGETHER, _CHUNK_BYTES // (largest * size(one))))
    yield {name: t.unsqueeze(0) for name, t in one.items()}
    batched = True
    for part in directions[1:].split(chunk) if len(directions) > 1 else ():
        if batched:
            try:
                yield torch.func.vmap(function)(part)
                continue
            except RuntimeError:
                # Some layers do not vectorise; one direction at a time does.
                batched = False
        yield _stacked(function(direction) for direction in part)


def _stacked(trees: Iterable[Tree]) -> Tree:
    rows = list(trees)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
