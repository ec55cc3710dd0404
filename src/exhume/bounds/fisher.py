"""Fisher information of the private inputs: the one place where it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.law import Law
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.task import Task
from exhume.problem.tree import Tree, flatten, scale

__all__ = [
    "MeanMap",
    "TraceEstimate",
    "fisher_information",
    "fisher_trace",
    "gaussian_fisher_information",
    "information_map",
    "jacobian",
    "jump_share",
    "mean_map",
    "variance_map",
]

#: inputs [B, *event] → mean of the release, composable with ``torch.func``
MeanMap = Callable[[Tensor], Tree]

_COLUMNS = 64  # directions at once: the fastest size measured on LeNet
_CHUNK_BYTES = 2**28


class TraceEstimate(NamedTuple):
    """A sketched trace with the standard error that its own probes predict."""

    value: float
    standard_error: float


def mean_map(
    task: Task, observation: ObservationModel, law: Law, targets: Tensor
) -> MeanMap:
    """Return x ↦ h(F(x, y)), the mean of the release for fixed labels, in float64.

    Products of Jacobians square the condition number; in float32 the directions that
    the release hardly shows would drown in rounding error.

    Args:
        task: model, loss, mode.
        observation: F.
        law: holds the deterministic part h of the defenses.
        targets: y of the whole batch.
    """
    exact = task.to(torch.float64)

    def mean(inputs: Tensor) -> Tree:
        candidate = Candidate(inputs.double(), targets)
        return law.mean(observation.forward_func(exact, candidate))

    return mean


def variance_map(
    task: Task, observation: ObservationModel, law: Law, targets: Tensor
) -> MeanMap | None:
    """Return x ↦ v(x), in float64, or None if the variance does not depend on x.

    Args:
        task: model, loss, mode.
        observation: F.
        law: of the release.
        targets: y of the whole batch.
    """
    declared = law.variance_at
    if declared is None:
        return None
    exact = task.to(torch.float64)

    def variance(inputs: Tensor) -> Tree:
        return declared(exact, observation, Candidate(inputs.double(), targets))

    return variance


def information_map(
    mean: MeanMap, law: Law, at: Tensor, variance: MeanMap | None = None
) -> MeanMap:
    """Return a map whose Jacobian R at one point satisfies RᵀR = J_F there.

    It is x ↦ Σ^{-1/2} h(F(x)), times the root of the noise's own information, beside
    log v(x)/√2 if the variance depends on the data.

    Args:
        mean: x ↦ h(F(x)), from :func:`mean_map`.
        law: with noise on every kept coordinate.
        at: the point x₀, shape [B, *event].
        variance: x ↦ v(x), from :func:`variance_map`.

    Raises:
        ValueError: a kept coordinate has no noise.
    """
    like = {name: t.detach() for name, t in mean(at).items()}
    if variance is None:
        whiten, root = law.whitener(like), law.information_factor**0.5
        return lambda inputs: scale(root, whiten(mean(inputs)))
    fixed = {name: v.detach().rsqrt() for name, v in variance(at).items()}

    def released(inputs: Tensor) -> Tree:
        logs = {n: v.log() / 2**0.5 for n, v in variance(inputs).items()}
        shown = {n: fixed[n] * t for n, t in law.keep(mean(inputs)).items()}
        return {**shown, **{f"log-variance of {n}": t for n, t in logs.items()}}

    return released


@formula(
    r"J_F = J^\top \Sigma^{-1} J + \tfrac12 \sum_i (\nabla \log v_i)"
    r"(\nabla \log v_i)^\top",
    reference="Kay 1993, Eq. 3.31, for Σ = diag(v)",
)
def gaussian_fisher_information(
    mean_jacobian: Tensor, variance: Tensor, variance_jacobian: Tensor | None = None
) -> Tensor:
    """Compute the Fisher information of O ~ N(g(x), diag v(x)) from dense derivatives.

    The second term does not depend on the noise level: more noise does not hide what
    the shape of the noise reveals.

    Args:
        mean_jacobian: ∂g/∂x, shape [p, q].
        variance: v, shape [p], positive.
        variance_jacobian: ∂v/∂x, shape [p, q]; None if v does not depend on x.

    Returns:
        J_F, shape [q, q], float64.

    Raises:
        InvalidInput: a variance is not positive.
    """
    if not bool((variance > 0).all()):
        msg = "a variance is not positive; Fisher information needs noise everywhere"
        raise InvalidInput(msg)
    v = variance.double().unsqueeze(-1)
    whitened = mean_jacobian.double() / v.sqrt()
    information = whitened.T @ whitened
    if variance_jacobian is not None:
        relative = variance_jacobian.double() / v
        information += relative.T @ relative / 2
    return information


@formula(
    r"J_F(x) = J(x)^\top \Sigma^{-1} J(x)",
    reference="Kay 1993, Eq. 3.31, for constant Σ; J is the Jacobian of h∘F",
)
def fisher_information(
    mean: MeanMap, precision: Tree | None, inputs: Tensor, *, chunk: int | None = None
) -> Tensor:
    """Compute the exact Fisher information of a whole batch at one point.

    Column by column, Jᵀ (Σ⁻¹ (J t)) for unit vectors t: one forward and one reverse
    derivative of the release each, so that J, of size p × q, is never formed.

    Args:
        mean: g = h∘F, from :func:`mean_map`.
        precision: Σ⁻¹ = diag(1/v) by name, zero where a coordinate says nothing; None
            if ``mean`` is whitened already, see :func:`information_map`.
        inputs: x, shape [B, *event]; q = B·d unknowns.
        chunk: columns at once; None takes what is fast and fits.

    Returns:
        J_F, shape [q, q], float64, symmetric.
    """
    inputs = inputs.detach().double()
    weights = _weights(mean, precision, inputs)
    pull = torch.func.vjp(mean, inputs)[1]

    def column(tangent: Tensor) -> Tensor:
        along = torch.func.jvp(mean, (inputs,), (tangent,))[1]
        return pull({name: weights[name] * along[name] for name in along})[0]

    if chunk is None:
        bytes_each = 8 * sum(weight.numel() for weight in weights.values())
        chunk = max(1, min(_COLUMNS, _CHUNK_BYTES // bytes_each))
    information = torch.cat(list(_over_unit_vectors(column, inputs, chunk)))
    information = information.reshape(inputs.numel(), inputs.numel())
    return (information + information.T) / 2


def jacobian(mean: MeanMap, inputs: Tensor, *, chunk: int = _COLUMNS) -> Tensor:
    """Return J = ∂ mean / ∂ inputs, dense, shape [p, q], in the order of the tree.

    Args:
        mean: a function of the inputs.
        inputs: x, shape [B, *event].
        chunk: columns at once.
    """
    along = _derivative(mean, inputs.detach())
    return torch.cat(list(_over_unit_vectors(along, inputs, chunk))).T


@formula(
    r"\mathrm{tr}\, J_F = E \| \Sigma^{-1/2} J z \|^2,\quad z_j = \pm 1",
    reference="Hutchinson 1990",
)
def fisher_trace(
    mean: MeanMap,
    precision: Tree | None,
    inputs: Tensor,
    *,
    probes: int = 8,
    key: int = 0,
) -> TraceEstimate:
    """Estimate the trace of the Fisher information without forming it.

    Args:
        mean: g = h∘F.
        precision: Σ⁻¹ by name; None if ``mean`` is whitened already.
        inputs: x, shape [B, *event].
        probes: number K ≥ 2 of random directions; the error falls as 1/√K.
        key: randomness of the directions.

    Raises:
        InvalidInput: fewer than two probes, from which no error can be predicted.
    """
    if probes < 2:
        msg = f"the trace was to be estimated from {probes} probe(s); use 2 or more"
        raise InvalidInput(msg)
    source = generator(key, "fisher-trace")
    inputs = inputs.detach().double()
    weights = flatten(_weights(mean, precision, inputs))
    along_direction = _derivative(mean, inputs)
    values = []
    for _ in range(probes):
        signs = torch.randint(0, 2, inputs.shape, generator=source) * 2 - 1
        along = along_direction(signs.to(inputs)).double()
        values.append((weights * along.square()).sum())
    sample = torch.stack(values)
    return TraceEstimate(float(sample.mean()), float(sample.std()) / probes**0.5)


@formula(
    r"\Big\| \Sigma^{-1/2} \Big( g(x_1) - g(x_0) - \int_0^1 J(x_s) (x_1 - x_0)\, ds "
    r"\Big) \Big\| \Big/ \big\| \Sigma^{-1/2} ( g(x_1) - g(x_0) ) \big\|",
    reference="fundamental theorem of calculus, by Gauss-Legendre quadrature",
)
def jump_share(
    mean: MeanMap,
    precision: Tree | None,
    start: Tensor,
    end: Tensor,
    *,
    nodes: int = 16,
) -> float:
    """Measure how much of the release's change its derivative misses: 0 if smooth.

    The gradient of a network with ReLU or max pooling jumps where a unit switches.
    Fisher information sees derivatives only, and is then too small.

    Args:
        mean: g = h∘F.
        precision: Σ⁻¹ by name; None if ``mean`` is whitened already.
        start: x₀, shape [B, *event].
        end: x₁, same shape; x_s lies on the segment between them.
        nodes: points of the quadrature.
    """
    import numpy as np

    root = flatten(_weights(mean, precision, start)).sqrt()
    start, end = start.detach().double(), end.detach().double()
    change = flatten(mean(end)) - flatten(mean(start))
    predicted = torch.zeros_like(change)
    for node, weight in np.stack(np.polynomial.legendre.leggauss(nodes)).T.tolist():
        point = start + (node + 1) / 2 * (end - start)
        predicted += weight / 2 * _derivative(mean, point)(end - start)
    whole = float(torch.linalg.vector_norm(root * change))
    missed = float(torch.linalg.vector_norm(root * (change - predicted)))
    return missed / whole if whole > 0 else missed


def _weights(mean: MeanMap, precision: Tree | None, inputs: Tensor) -> Tree:
    """Return Σ⁻¹ in float64, ones for a whitened map."""
    if precision is None:
        return {n: torch.ones_like(t.detach()) for n, t in mean(inputs).items()}
    return {name: weight.to(torch.float64) for name, weight in precision.items()}


def _derivative(mean: MeanMap, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Return t ↦ J t, from [B, *event] to [p]."""

    def along(tangent: Tensor) -> Tensor:
        return flatten(torch.func.jvp(mean, (inputs,), (tangent,))[1])

    return along


def _over_unit_vectors(
    function: Callable[[Tensor], Tensor], inputs: Tensor, chunk: int
) -> Iterator[Tensor]:
    """Yield ``function`` of every unit vector of the input space, stacked in chunks."""
    q, batched = inputs.numel(), True
    for start in range(0, q, chunk):
        flat = inputs.new_zeros(min(chunk, q - start), q)
        flat.diagonal(start).fill_(1)
        tangents = flat.reshape(-1, *inputs.shape)
        if batched:
            try:
                yield torch.func.vmap(function)(tangents)
                continue
            except RuntimeError:
                # Some layers and defenses do not vectorise; one vector at a time does.
                batched = False
        yield torch.stack([function(tangent) for tangent in tangents])
