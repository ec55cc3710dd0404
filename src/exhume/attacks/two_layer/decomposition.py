"""Decompose a small symmetric tensor into cubes of directions, orthogonal or not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from exhume.formula import formula
from exhume.keys import generator

__all__ = ["Cubes", "jennrich", "normal_equations", "symmetric_cubes"]

_REFINED = 4  # starts that are refined by least squares
_STEPS = 300
_SETTLED = 1e-9  # relative gain of a step from which on nothing moves
_ROUNDING = 1e-14  # misfit below which nothing is left to fit
_STUCK = 1e8  # damping at which no step is shorter
_TINY = 1e-30


class Cubes(NamedTuple):
    """T ≈ Σ_k λ_k q_k ⊗ q_k ⊗ q_k.

    Attributes:
        directions: unit vectors q_k as columns, shape [n, n].
        weights: λ, shape [n].
        misfit: ‖T − Σ λ q⊗³‖ / ‖T‖.
    """

    directions: Tensor
    weights: Tensor
    misfit: float


@formula(
    r"T(\cdot,\cdot,a)\, T(\cdot,\cdot,b)^{-1} = Q\, \mathrm{diag}\big("
    r"(q_k \cdot a) / (q_k \cdot b)\big)\, Q^{-1}",
    reference="Harshman 1970 (Jennrich's algorithm); Leurgans et al. 1993",
)
def jennrich(tensor: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Diagonalise two contractions of a symmetric tensor together.

    Noise makes some eigenvectors complex; their real parts are kept.

    Args:
        tensor: T, shape [n, n, n].
        a: contracts the first slice, shape [n].
        b: contracts the second slice, same shape.

    Returns:
        unit columns, shape [n, n].
    """
    one, other = tensor @ a, tensor @ b
    vectors = np.real(np.linalg.eig(one @ np.linalg.pinv(other))[1])
    length = np.linalg.norm(vectors, axis=0)
    return vectors / np.where(length > 0, length, 1.0)


def symmetric_cubes(tensor: Tensor, key: int, restarts: int = 100) -> Cubes:
    """Find n cubes whose sum is nearest to a symmetric n × n × n tensor.

    Simultaneous diagonalisation of random pairs of slices gives starts; the best ones
    by their misfit are refined by least squares over all directions and weights.

    Args:
        tensor: T, shape [n, n, n].
        key: randomness of the slices.
        restarts: pairs of slices, ≥ 1.
    """
    n = len(tensor)
    flat = tensor.double().numpy()
    if n == 1:
        return Cubes(torch.ones(1, 1, dtype=torch.float64), tensor.double()[0, 0], 0.0)
    source = generator(key, "slices")
    pairs = torch.randn((2, restarts, n), generator=source, dtype=torch.float64).numpy()
    starts = []
    for a, b in zip(*pairs, strict=True):
        starts.append(_weighted(flat, jennrich(flat, a, b)))
    starts.sort(key=lambda found: found[2])
    refined = [_refined(flat, q) for q, _, _ in starts[:_REFINED]]
    best = min([*refined, *starts[:1]], key=lambda found: found[2])
    return Cubes(torch.from_numpy(best[0]), torch.from_numpy(best[1]), float(best[2]))


def _sum_of_cubes(columns: np.ndarray) -> np.ndarray:
    """Return Σ_k v_k⊗³, shape [n, n, n]."""
    n = len(columns)
    return (_pairs(columns) @ columns.T).reshape(n, n, n)


def _pairs(columns: np.ndarray) -> np.ndarray:
    """Return vec(v_k v_kᵀ) as columns, shape [n², k]."""
    return (columns[:, None, :] * columns[None]).reshape(-1, columns.shape[1])


def _along(tensor: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return T(v_k, v_k, ·) as columns, shape [n, k]."""
    return tensor.reshape(-1, len(tensor)).T @ _pairs(columns)


def _weighted(
    tensor: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit the weights, and say how much of the tensor is missed."""
    overlap = (columns.T @ columns) ** 3
    wanted = (columns * _along(tensor, columns)).sum(axis=0)
    weights = np.linalg.lstsq(overlap, wanted, rcond=None)[0]
    size = np.linalg.norm(tensor)
    missed = np.linalg.norm(_sum_of_cubes(columns * np.cbrt(weights)) - tensor)
    return columns, weights, float(missed / size) if size > 0 else 0.0


@formula(
    r"J^\top J = \big( 3 (v_k \cdot v_l)^2 I + 6 (v_k \cdot v_l)\, v_l v_k^\top "
    r"\big)_{kl},\quad J^\top R = 3 R(v_k, v_k, \cdot)",
    reference="Gauss-Newton for the sum of cubes; Tomasi and Bro 2006",
)
def normal_equations(
    tensor: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Linearise R = Σ_k v_k⊗³ − T in the columns v_k.

    Args:
        tensor: T, shape [n, n, n].
        columns: V, shape [n, n].

    Returns:
        JᵀJ, shape [n², n²], and JᵀR, shape [n²], for the entries of V one column after
        the other, and ‖R‖.
    """
    n = len(tensor)
    rest = _sum_of_cubes(columns) - tensor
    inner = columns.T @ columns
    normal = 6 * np.einsum("kl,al,bk->kalb", inner, columns, columns)
    at = np.arange(n)
    normal[:, at, :, at] += 3 * inner**2
    slope = 3 * _along(rest, columns).T.reshape(-1)
    return normal.reshape(n * n, n * n), slope, float(np.linalg.norm(rest))


def _refined(
    tensor: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Minimise ‖T − Σ λ_k q_k⊗³‖ from a start, the weights inside the directions.

    λ^{1/3} q is one vector, so that n² unknowns meet n(n + 1)(n + 2)/6 equations.
    """
    n = len(tensor)
    size = max(float(np.linalg.norm(tensor)), np.finfo(float).tiny)
    scaled = tensor / size
    columns = start * np.cbrt(_weighted(scaled, start)[1])
    normal, slope, error = normal_equations(scaled, columns)
    damping = 1e-3
    for _ in range(_STEPS):
        diagonal = np.diagonal(normal)
        floor = np.finfo(float).eps * max(float(diagonal.max()), _TINY)
        damped = normal + np.diag(damping * diagonal + floor)
        step = np.linalg.solve(damped, -slope).reshape(n, n).T
        found = normal_equations(scaled, columns + step)
        if found[2] < error:
            gained = 1 - found[2] / error
            columns = columns + step
            normal, slope, error = found
            damping /= 10
            if gained < _SETTLED or error < _ROUNDING:
                break
        else:
            damping *= 10
            if damping > _STUCK:
                break
    length = np.linalg.norm(columns, axis=0)
    columns = np.where(length > 0, columns / np.where(length > 0, length, 1), start)
    return _weighted(tensor, columns)
