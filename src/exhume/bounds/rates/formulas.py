"""Upper and lower rates of the reconstruction error, one function per statement.

Constants and logarithms are left out: a rate says how the error moves, not how large it
is. :mod:`exhume.bounds.rates.exact` computes lower bounds with their constants.
"""

from __future__ import annotations

import math

from exhume.bounds.rates.quantities import Quantities
from exhume.formula import formula

__all__ = [
    "lower_clipped",
    "lower_masked",
    "lower_undefended",
    "noise_against_reconstruction",
    "noise_for_privacy",
    "upper_dp_sgd",
    "upper_dropout",
    "upper_gradient_noise",
    "upper_local_aggregation",
    "upper_secure_aggregation",
    "upper_undefended",
]

_TENSOR = "Wang, Lee and Lei, AISTATS 2023, theorem 5.1"
_TABLE = "Liu, Wang, Chen and Lei, AISTATS 2025, table of upper and lower bounds"
_SECOND_HAND = "Liu, Wang, Chen and Lei, AISTATS 2025, proposition 2.1 (second-hand)"


def _over_width(q: Quantities) -> float:
    return math.sqrt(q.dimension / q.width)


def _shrinkage(q: Quantities) -> float:
    """Return max{1, ‖G‖/C}, by which clipping divides the gradient."""
    return max(1.0, q.gradient_norm / q.clip)


@formula(r"R_U = \tilde O\big( B \sqrt{d/m} \big)", reference=_TENSOR)
def upper_undefended(q: Quantities) -> float:
    """Rate of the tensor attack without a defense, and with clipping alone."""
    return q.batch_size * _over_width(q)


@formula(r"R_U = \tilde O\big( K B \sqrt{d/m} \big)", reference=_TABLE)
def upper_local_aggregation(q: Quantities) -> float:
    """Rate of the tensor attack after K local steps."""
    return q.count * q.batch_size * _over_width(q)


@formula(r"R_U = \tilde O\big( (B + \sigma) \sqrt{d/m} \big)", reference=_TABLE)
def upper_gradient_noise(q: Quantities) -> float:
    """Rate of the tensor attack beside Gaussian noise."""
    return (q.batch_size + q.noise) * _over_width(q)


@formula(
    r"R_U = \tilde O\big( (B + \sigma \max\{1, \|G\|/C\}) \sqrt{d/m} \big)",
    reference=_TABLE,
)
def upper_dp_sgd(q: Quantities) -> float:
    """Rate of the tensor attack on a clipped gradient with noise."""
    return (q.batch_size + q.noise * _shrinkage(q)) * _over_width(q)


@formula(r"R_U = \tilde O\big( B \sqrt{d / ((1 - \rho) m)} \big)", reference=_TABLE)
def upper_dropout(q: Quantities) -> float:
    """Rate of the tensor attack on the neurons that a dropout keeps."""
    return q.batch_size * _over_width(q) / math.sqrt(q.kept)


@formula(
    r"R_U = \tilde O\big( K \sqrt{d/m} \big)",
    reference="an older talk on Wang, Lee and Lei 2023 (second-hand)",
)
def upper_secure_aggregation(q: Quantities) -> float:
    """Rate of the tensor attack on the sum of K clients of one fixed batch size."""
    return q.count * _over_width(q)


@formula(r"R_L = \Omega\big( \sigma \sqrt{d/m} \big)", reference=_TABLE)
def lower_undefended(q: Quantities) -> float:
    """Rate below which no unbiased attack gets beside noise of σ on the release."""
    return q.noise * _over_width(q)


@formula(
    r"R_L = \Omega\big( \sigma \max\{1, \|G\|/C\} \sqrt{d/m} \big)", reference=_TABLE
)
def lower_clipped(q: Quantities) -> float:
    """Rate below which no unbiased attack gets on a clipped gradient with noise."""
    return q.noise * _shrinkage(q) * _over_width(q)


@formula(r"R_L = \Omega\big( \sigma \sqrt{d / ((1 - \rho) m)} \big)", reference=_TABLE)
def lower_masked(q: Quantities) -> float:
    """Rate below which no unbiased attack gets where 1 − ρ of the release is kept.

    For pruning ρ is the effective ratio ρ̂, see
    :func:`exhume.bounds.rates.exact.effective_pruning_ratio`.
    """
    return q.noise * _over_width(q) / math.sqrt(q.kept)


@formula(
    r"\sigma^2 = \Omega\big( m \log(1/\delta) / \varepsilon \big)",
    reference=_SECOND_HAND,
)
def noise_for_privacy(width: float, epsilon: float, delta: float) -> float:
    """Rate of the noise that differential privacy asks of a two-layer network.

    Args:
        width: m; the sensitivity of the gradient grows as √m.
        epsilon: ε > 0.
        delta: δ in (0, 1).

    Returns:
        σ up to a constant, in natural units.
    """
    return math.sqrt(width * math.log(1 / delta) / epsilon)


@formula(r"\sigma = \Omega\big( \sqrt{m/d} \big)", reference=_SECOND_HAND)
def noise_against_reconstruction(width: float, dimension: float) -> float:
    """Rate of the noise beside which no unbiased attack reconstructs anything.

    It is √d times less than privacy asks for: the lower bound reaches 1.

    Args:
        width: m.
        dimension: d.

    Returns:
        σ up to a constant, in natural units.
    """
    return math.sqrt(width / dimension)
