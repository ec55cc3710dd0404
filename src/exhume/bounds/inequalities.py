"""Cramér-Rao inequalities: from Fisher information to a smallest mean squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula

__all__ = [
    "bayesian_cramer_rao_bound",
    "diagonal_and_factor",
    "diagonal_of_inverse",
    "trace_bound",
    "trace_of_inverse",
    "unbiased_cramer_rao_bound",
]

# Relative rounding error up to which an inverted information matrix is trusted.
_TRUSTED = 1e-2
_BLOCK = 512  # columns of an inverse at once


@formula(
    r"E \| \hat x - x \|^2 \ge \mathrm{tr}\, (E_x J_F + J_P)^{-1}",
    reference="van Trees 1968; Gill and Levit 1995",
)
def bayesian_cramer_rao_bound(fisher: Tensor, prior_information: Tensor) -> float:
    """Bound the error of every attack, biased or not, averaged over the prior.

    Args:
        fisher: E_x J_F, shape [q, q], 1 / squared units of the data.
        prior_information: J_P of the whole batch, shape [q, q].

    Returns:
        The bound, summed over the q unknowns, in squared units of the data.

    Raises:
        InvalidInput: the sum is singular in float64.
    """
    return trace_of_inverse(fisher.double() + prior_information.double())


@formula(
    r"E \| \hat x - x \|^2 \ge \frac{q^2}{\mathrm{tr}\, E_x J_F + \mathrm{tr}\, J_P}",
    reference="Chen, Gursoy and Lei 2024 (with the prior's information)",
)
def trace_bound(fisher_trace: float, prior_trace: float, unknowns: int) -> float:
    """Weaken the Bayesian bound to one that needs traces only.

    Args:
        fisher_trace: tr E_x J_F.
        prior_trace: tr J_P of the whole batch.
        unknowns: q.
    """
    return unknowns**2 / (fisher_trace + prior_trace)


@formula(
    r"E_x E \| \hat x - x \|^2 \ge E_x\, \mathrm{tr}\, J_F(x)^{-1}",
    reference="Cramér 1946; Rao 1945; at every x, so on average",
)
def unbiased_cramer_rao_bound(fisher: Tensor) -> Tensor:
    """Bound the variance of every unknown by an unbiased attack, at one point.

    Args:
        fisher: J_F(x), shape [q, q].

    Returns:
        The diagonal of J_F⁻¹, shape [q], whose sum bounds the squared error.

    Raises:
        InvalidInput: the information is singular: no unbiased attack exists.
    """
    return diagonal_of_inverse(fisher.double())


def trace_of_inverse(information: Tensor) -> float:
    """Return tr M⁻¹ of a symmetric positive definite matrix.

    Raises:
        InvalidInput: M is so badly conditioned that float64 cannot invert it.
    """
    return float(diagonal_of_inverse(information).sum())


def diagonal_of_inverse(information: Tensor) -> Tensor:
    """Return the diagonal of M⁻¹, shape [q], of a symmetric positive definite matrix.

    Raises:
        InvalidInput: M is so badly conditioned that float64 cannot invert it.
    """
    return diagonal_and_factor(information)[0]


def diagonal_and_factor(information: Tensor) -> tuple[Tensor, Tensor]:
    """Return the diagonal of M⁻¹, shape [q], and the lower factor L of M = L Lᵀ.

    Raises:
        InvalidInput: M is so badly conditioned that float64 cannot invert it.
    """
    factor, failed = torch.linalg.cholesky_ex(information)
    if not bool(failed):
        diagonal = _squared_columns_of_inverse(factor)
        # ‖M‖_F tr M⁻¹ bounds the condition number from above.
        condition = float(torch.linalg.matrix_norm(information) * diagonal.sum())
        if condition * torch.finfo(information.dtype).eps < _TRUSTED:
            return diagonal, factor
    msg = (
        "the information matrix is singular in float64, so its inverse means nothing; "
        "raise the noise, or the ridge of the prior"
    )
    raise InvalidInput(msg)


def _squared_columns_of_inverse(factor: Tensor) -> Tensor:
    """Return the squared norm of every column of L⁻¹, shape [q], L lower triangular.

    A column of L⁻¹ is zero above the diagonal, so it needs the rest of L only: a third
    of the work of a full solution.
    """
    norms = []
    for start in range(0, len(factor), _BLOCK):
        tail = factor[start:, start:]
        unit = tail.new_zeros(len(tail), min(_BLOCK, len(tail)))
        unit.diagonal().fill_(1)
        columns = torch.linalg.solve_triangular(tail, unit, upper=False)
        norms.append(columns.square_().sum(dim=0))
    return torch.cat(norms)
