"""Fisher information of the private inputs: the one place where it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.law import Law
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.task import Task
from exhume.problem.tree import Tree, detached, flatten, scale, size

__all__ = [
    "MeanMap",
    "TraceEstimate",
    "deflated_powers",
    "fisher_information",
    "fisher_trace",
    "gaussian_fisher_information",
    "images",
    "information_map",
    "information_product",
    "jacobian",
    "mean_map",
    "pushforward",
    "variance_map",
]

#: inputs [B, *event] → mean of the release, composable with ``torch.func``
MeanMap = Callable[[Tensor], Tree]

_COLUMNS = 64  # directions at once: the fastest size measured on LeNet
_CHUNK_BYTES = 2**28
_DENSE_BYTES = 2**30  # up to which J itself is formed
_BLOCK = 512
_SLICE = 8192  # observed coordinates whose products are summed in float32


class TraceEstimate(NamedTuple):
    """A sketched trace with the standard error that its own probes predict."""

    value: float
    standard_error: float


def mean_map(
    task: Task,
    observation: ObservationModel,
    law: Law,
    targets: Tensor,
    *,
    mixed: bool = False,
) -> MeanMap:
    """Return x ↦ h(F(x, y)), the mean of the release for fixed labels, in float64.

    Products of Jacobians square the condition number; in float32 the directions that
    the release hardly shows would drown in rounding error.

    Args:
        task: model, loss, mode.
        observation: F.
        law: holds the deterministic part h of the defenses.
        targets: y of the whole batch.
        mixed: compute at inputs in float32 in float32, instead of converting them.
    """
    exact = task.to(torch.float64)
    quick = task.to(torch.float32) if mixed else exact

    def mean(inputs: Tensor) -> Tree:
        if mixed and inputs.dtype == torch.float32:
            found = observation.forward_func(quick, Candidate(inputs, targets))
            return {name: t.double() for name, t in law.mean(found).items()}
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
    like = detached(mean(at))
    if variance is None:
        whiten, root = law.whitener(like), law.information_factor**0.5
        if root == 1:
            return lambda inputs: whiten(mean(inputs))
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
    mean: MeanMap,
    precision: Tree | None,
    inputs: Tensor,
    *,
    chunk: int | None = None,
    single: bool = False,
) -> Tensor:
    """Compute the exact Fisher information of a whole batch at one point.

    J is formed, from the side on which it is shorter, where it fits into memory, and
    column by column Jᵀ (Σ⁻¹ (J t)) for unit vectors t where it does not.

    Args:
        mean: g = h∘F, from :func:`mean_map`.
        precision: Σ⁻¹ = diag(1/v) by name, zero where a coordinate says nothing; None
            if ``mean`` is whitened already, see :func:`information_map`.
        inputs: x, shape [B, *event]; q = B·d unknowns.
        chunk: columns at once; None takes what is fast and fits.
        single: if J is formed, form it and the products JᵀJ in float32, for a ``mixed``
            mean; sums of many products stay in float64. The caller checks what it
            costs, as ``bayesian-cramer-rao`` does.

    Returns:
        J_F, shape [q, q], float64, symmetric.
    """
    inputs = inputs.detach().double()
    weights = _weights(mean, precision, inputs)
    observed, unknown = size(weights), inputs.numel()
    if chunk is None:
        together = 2 * _COLUMNS if single else _COLUMNS
        chunk = max(1, min(together, _CHUNK_BYTES // (8 * observed)))
    if 8 * observed * unknown > _DENSE_BYTES:
        return _by_columns(mean, weights, inputs, chunk)
    columns = _columns(mean, inputs.float() if single else inputs, observed, chunk)
    if precision is not None:
        columns.mul_(flatten(weights).sqrt())
    return _gram(columns)


def _by_columns(mean: MeanMap, weights: Tree, inputs: Tensor, chunk: int) -> Tensor:
    """Return JᵀWJ with one forward and one reverse derivative per column."""
    pull = torch.func.vjp(mean, inputs)[1]

    def column(tangent: Tensor) -> Tensor:
        along = torch.func.jvp(mean, (inputs,), (tangent,))[1]
        return pull({name: weights[name] * along[name] for name in along})[0]

    information = torch.cat(list(_over_unit_vectors(column, inputs, chunk)))
    information = information.reshape(inputs.numel(), inputs.numel())
    return (information + information.T) / 2


def _gram(columns: Tensor) -> Tensor:
    """Return C Cᵀ in float64, exactly symmetric, for C of shape [q, p].

    Half of it is multiplied out. Products of a float32 C are summed in float32 over a
    slice of p only.

    Args:
        columns: C, the columns of a Jacobian as rows.
    """
    count = len(columns)
    result = columns.new_zeros(count, count, dtype=torch.float64)
    long = columns.dtype == torch.float64
    for part in (columns,) if long else columns.split(_SLICE, dim=1):
        for start in range(0, count, _BLOCK):
            rows = slice(start, start + _BLOCK)
            result[rows, start:] += part[rows] @ part[start:].T
    upper = result.triu_()
    return upper + upper.triu(1).T


def jacobian(mean: MeanMap, inputs: Tensor, *, chunk: int = _COLUMNS) -> Tensor:
    """Return J = ∂ mean / ∂ inputs, dense, shape [p, q], in the order of the tree.

    Args:
        mean: a function of the inputs.
        inputs: x, shape [B, *event].
        chunk: columns, or rows where there are fewer, at once.
    """
    inputs = inputs.detach()
    observed = sum(t.numel() for t in mean(inputs).values())
    return _columns(mean, inputs, observed, chunk).T


def _columns(mean: MeanMap, inputs: Tensor, observed: int, chunk: int) -> Tensor:
    """Return Jᵀ, shape [q, p], in the type of the inputs, from its shorter side."""
    if observed < inputs.numel():
        pull = torch.func.vjp(lambda x: flatten(mean(x)), inputs)[1]
        unit = flatten(mean(inputs)).new_zeros(observed)
        rows = _over_unit_vectors(lambda u: pull(u)[0].reshape(-1), unit, chunk)
        return torch.cat(list(rows)).T
    # Filled in place: two copies of a large Jacobian would be the peak of the memory.
    columns = inputs.new_empty(inputs.numel(), observed)
    done = 0
    for part in _over_unit_vectors(pushforward(mean, inputs), inputs, chunk):
        columns[done : done + len(part)] = part
        done += len(part)
    return columns


def information_product(
    whitened: MeanMap, inputs: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return t ↦ J_F t, shaped like x, by one forward and one reverse derivative.

    Args:
        whitened: a map whose Jacobian at ``inputs`` is R, of :func:`information_map`.
        inputs: x, shape [B, *event].
    """
    pull: Callable[[Tree], tuple[Tensor]] = torch.func.vjp(whitened, inputs)[1]

    def product(tangent: Tensor) -> Tensor:
        return pull(torch.func.jvp(whitened, (inputs,), (tangent,))[1])[0]

    return product


@formula(
    r"\mathrm{tr}\, J_F = \| R v \|^2 + E \| R (I - v v^\top) z \|^2,\quad "
    r"R = \Sigma^{-1/2} J,\; z_j = \pm 1,\; \|v\| = 1",
    reference="Hutchinson 1990; deflation: Meyer, Musco, Musco and Woodruff 2021",
)
def fisher_trace(
    mean: MeanMap,
    precision: Tree | None,
    inputs: Tensor,
    *,
    probes: int = 4,
    key: int = 0,
    single: bool = False,
) -> TraceEstimate:
    """Estimate the trace of the Fisher information without forming it.

    Unbiased for every v; here it is the direction in which the size of the whitened
    release changes fastest, Rᵀ Σ^{-1/2} g. One direction may hold most of the trace of
    a network with sigmoids; without it hundreds of probes are then needed for an
    error of 5 %, with it a few.

    Args:
        mean: g = h∘F.
        precision: Σ⁻¹ by name; None if ``mean`` is whitened already.
        inputs: x, shape [B, *event].
        probes: number K ≥ 2 of random directions z; the error falls as 1/√K. It costs
            one reverse and K + 1 forward derivatives of the release.
        key: randomness of the directions.
        single: differentiate in float32, for a ``mixed`` mean; a sum of squares loses
            nothing by it that a sketch would show.

    Raises:
        InvalidInput: fewer than two probes, from which no error can be predicted.
    """
    if probes < 2:
        msg = f"the trace was to be estimated from {probes} probe(s); use 2 or more"
        raise InvalidInput(msg)
    inputs = inputs.detach().float() if single else inputs.detach().double()
    source = generator(key, "fisher-trace")
    signs = 2 * torch.randint(0, 2, (probes, *inputs.shape), generator=source) - 1
    weights = None
    if precision is not None:
        weights = flatten(_weights(mean, precision, inputs))
    powers = deflated_powers(mean, inputs, signs.to(inputs), weights)
    error = float(powers[1:].std()) / probes**0.5
    return TraceEstimate(float(powers[0] + powers[1:].mean()), error)


def deflated_powers(
    mean: MeanMap, inputs: Tensor, signs: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return ‖R v‖² and every ‖R (I − v vᵀ) z‖² of :func:`fisher_trace`.

    Args:
        mean: g = h∘F.
        inputs: x, shape [B, *event].
        signs: z, shape [K, B, *event].
        weights: Σ⁻¹, flattened; None if ``mean`` is whitened already.

    Returns:
        shape [1 + K]; the first and the mean of the others sum to the trace.
    """
    value, pull, *_ = torch.func.vjp(lambda x: flatten(mean(x)), inputs)
    scale = torch.ones_like(value) if weights is None else weights
    slope = pull(scale * value)[0]
    slope = slope / slope.norm().clamp_min(torch.finfo(slope.dtype).tiny)
    overlap = torch.tensordot(signs, slope, dims=inputs.dim())
    rest = signs - overlap.reshape(-1, *[1] * inputs.dim()) * slope
    seen = images(pushforward(mean, inputs), torch.cat([slope.unsqueeze(0), rest]))
    return seen.square() @ scale


def _weights(mean: MeanMap, precision: Tree | None, inputs: Tensor) -> Tree:
    """Return Σ⁻¹ by name in float64, ones for a map that is whitened already.

    Args:
        mean: g = h∘F.
        precision: Σ⁻¹ by name, or None.
        inputs: x, shape [B, *event].
    """
    if precision is None:
        return {n: torch.ones_like(t.detach()) for n, t in mean(inputs).items()}
    return {name: weight.to(torch.float64) for name, weight in precision.items()}


def pushforward(mean: MeanMap, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Return t ↦ J t, from [B, *event] to [p], with J at the inputs.

    Args:
        mean: a function of the inputs.
        inputs: x, shape [B, *event].
    """

    def along(tangent: Tensor) -> Tensor:
        return flatten(torch.func.jvp(mean, (inputs,), (tangent,))[1])

    return along


def _over_unit_vectors(
    function: Callable[[Tensor], Tensor], like: Tensor, chunk: int
) -> Iterator[Tensor]:
    """Yield ``function`` of every unit vector of a space, stacked in chunks."""
    q = like.numel()

    def parts() -> Iterator[Tensor]:
        for start in range(0, q, chunk):
            flat = like.new_zeros(min(chunk, q - start), q)
            flat.diagonal(start).fill_(1)
            yield flat.reshape(-1, *like.shape)

    return _over(function, parts())


def images(
    function: Callable[[Tensor], Tensor], vectors: Tensor, together: int = _COLUMNS
) -> Tensor:
    """Return a function of stacked vectors, stacked; together if it vectorises.

    Args:
        function: of one vector.
        vectors: stacked along the first dimension.
        together: how many at once.
    """
    return torch.cat(list(_over(function, vectors.split(together))))


def _over(
    function: Callable[[Tensor], Tensor], parts: Iterable[Tensor]
) -> Iterator[Tensor]:
    batched = True
    for vectors in parts:
        if batched:
            try:
                yield torch.func.vmap(function)(vectors)
                continue
            except RuntimeError:
                # Some layers and defenses do not vectorise; one vector at a time does.
                batched = False
        yield torch.stack([function(vector) for vector in vectors])
