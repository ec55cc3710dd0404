"""Decompose a small symmetric tensor into cubes of directions, orthogonal or not."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exhume.formula import formula
from exhume.keys import generator

__all__ = ["Cubes", "jennrich", "symmetric_cubes"]

_REFINED = 4  # starts that are refined by least squares


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


def _cubes(columns: np.ndarray) -> np.ndarray:
    """Return vec(q_k⊗³) as columns, shape [n³, n]."""
    return np.einsum("ik,jk,lk->ijlk", columns, columns, columns).reshape(
        -1, columns.shape[1]
    )


def _weighted(
    tensor: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit the weights, and say how much of the tensor is missed."""
    cubes, wanted = _cubes(columns), tensor.reshape(-1)
    weights = np.linalg.lstsq(cubes, wanted, rcond=None)[0]
    size = np.linalg.norm(wanted)
    missed = np.linalg.norm(cubes @ weights - wanted)
    return columns, weights, float(missed / size) if size > 0 else 0.0


def _refined(
    tensor: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Minimise ‖T − Σ λ_k q_k⊗³‖ from a start, the weights inside the directions.

    λ^{1/3} q is one vector, so that n² unknowns meet n(n + 1)(n + 2)/6 equations.
    """
    from scipy.optimize import least_squares

    n = len(tensor)
    size = max(float(np.linalg.norm(tensor)), np.finfo(float).tiny)
    index = np.array(list(itertools.combinations_with_replacement(range(n), 3))).T
    wanted = tensor[tuple(index)] / size
    root = np.array([np.sqrt(_repeats(*triple)) for triple in index.T])

    def missed(flat: np.ndarray) -> np.ndarray:
        v = flat.reshape(n, n)
        return root * ((v[index[0]] * v[index[1]] * v[index[2]]).sum(axis=1) - wanted)

    def slopes(flat: np.ndarray) -> np.ndarray:
        v = flat.reshape(n, n)
        result = np.zeros((index.shape[1], n, n))
        at = np.arange(index.shape[1])
        for place in range(3):
            rest = [index[other] for other in range(3) if other != place]
            np.add.at(result, (at, index[place]), v[rest[0]] * v[rest[1]])
        return root[:, None] * result.reshape(len(at), -1)

    _, weights, _ = _weighted(tensor / size, start)
    begin = start * np.cbrt(weights)
    if not np.isfinite(begin).all() or index.shape[1] < n * n:
        return _weighted(tensor, start)
    jacobian: Any = slopes  # scipy's stubs know names of finite differences only
    found = least_squares(
        missed, begin.ravel(), jac=jacobian, method="lm", max_nfev=300
    ).x
    columns = found.reshape(n, n)
    length = np.linalg.norm(columns, axis=0)
    columns = np.where(length > 0, columns / np.where(length > 0, length, 1), start)
    return _weighted(tensor, columns)


def _repeats(i: int, j: int, k: int) -> int:
    """Return how often an entry of the upper part stands in the whole tensor."""
    return len(set(itertools.permutations((i, j, k))))
