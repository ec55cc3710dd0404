"""The table of upper and lower rates, one row per defense."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from exhume.bounds.rates.formulas import (
    lower_clipped,
    lower_masked,
    lower_undefended,
    upper_dp_sgd,
    upper_dropout,
    upper_gradient_noise,
    upper_local_aggregation,
    upper_secure_aggregation,
    upper_undefended,
)
from exhume.bounds.rates.quantities import Quantities
from exhume.errors import InvalidInput

__all__ = ["RATES", "UNKNOWN", "Origin", "Rate", "Side", "local_exponent", "rate"]

Origin = Literal["paper", "second-hand", "derived", "unknown"]
Exponents = Mapping[str, float]


@dataclass(frozen=True)
class Side:
    """One rate: a formula and its exponents, or nothing that is known.

    Attributes:
        at: quantities ↦ the rate up to its constant; None if no rate is known.
        exponents: symbol → exponent where this quantity dominates: B, sigma and |G| as
            they grow, C and 1-rho as they fall. What is absent does not enter.
        origin: where the statement comes from; ``second-hand`` was not read in a paper.
        text: the rate as a reader writes it.
    """

    at: Callable[[Quantities], float] | None
    exponents: Exponents = field(default_factory=dict)
    origin: Origin = "paper"
    text: str = "unknown"

    @property
    def known(self) -> bool:
        """Whether there is a rate at all."""
        return self.at is not None


#: the theory states no rate here
UNKNOWN = Side(None, origin="unknown")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What the theory says about one defense.

    Attributes:
        name: of the row.
        defense: registered name of the defense; None without one.
        upper: reached by the tensor attack.
        lower: not beaten by any unbiased attack, beside noise of σ on the release.
        assumptions: under which both hold, and what else was said, as sentences.
    """

    name: str
    defense: str | None
    upper: Side
    lower: Side
    assumptions: tuple[str, ...] = ()


_COMMON = (
    "Two-layer network with Gaussian hidden weights and a_j = 1/m, square loss, inputs "
    "of norm 1, labels ±1.",
    "The upper rate needs linearly independent inputs, a batch of at most about d^(1/4)"
    " and a width of at least about d; it hides logarithms and the conditioning of the "
    "batch.",
    "The lower rate is a Cramér-Rao bound: it binds unbiased attacks, and holds beside "
    "Gaussian noise of σ on the release; without noise there is none.",
)
_DM: Exponents = {"d": 0.5, "m": -0.5}
_BDM: Exponents = {"B": 1.0, **_DM}
_LOWER: Exponents = {"sigma": 1.0, **_DM}
_CLIPPED: Exponents = {"sigma": 1.0, "|G|": 1.0, "C": -1.0, **_DM}

_UPPER = Side(upper_undefended, _BDM, text="B √(d/m)")
_PLAIN = Side(lower_undefended, _LOWER, text="σ √(d/m)")
_SHRUNK = "σ max{1, ‖G‖/C} √(d/m)"


def _row(
    name: str, defense: str | None, upper: Side, lower: Side, *more: str
) -> tuple[str, Rate]:
    sentences = (*_COMMON, *more)
    return name, Rate(
        name=name, defense=defense, upper=upper, lower=lower, assumptions=sentences
    )


#: name of the row → what is known, in the order of the table
RATES: Mapping[str, Rate] = dict(
    (
        _row("none", None, _UPPER, _PLAIN),
        _row(
            "local-aggregation",
            "local-aggregation",
            Side(upper_local_aggregation, {"K": 1.0, **_BDM}, text="K B √(d/m)"),
            _PLAIN,
            "K full-batch steps at a small rate; second-hand: they give no essential "
            "protection (propositions 3.1 and 3.2), and an older talk has K √(d/m).",
        ),
        _row(
            "gradient-noise",
            "gaussian-noise",
            Side(upper_gradient_noise, {"sigma": 1.0, **_BDM}, text="(B + σ) √(d/m)"),
            _PLAIN,
            "Second-hand: an older talk has √((1 + σ²) d/m).",
        ),
        _row(
            "dp-sgd",
            "dp-sgd",
            Side(
                upper_dp_sgd,
                {"B": 1.0, **_CLIPPED},
                text="(B + σ max{1, ‖G‖/C}) √(d/m)",
            ),
            Side(lower_clipped, _CLIPPED, text=_SHRUNK),
            "‖G‖ grows with the width itself, as √m for a fixed batch; at a fixed clip "
            "and a fixed σ more neurons then stop helping.",
            "Second-hand: privacy asks for σ² of m log(1/δ)/ε, while reconstruction is "
            "prevented at σ of √(m/d) already (proposition 2.1).",
        ),
        _row(
            "clipping",
            "clipping",
            _UPPER,
            Side(lower_clipped, _CLIPPED, "derived", _SHRUNK),
            "Clipping alone scales the gradient; the attack does not depend on scale, "
            "so without noise it gives no protection.",
            "The lower rate is that of DP-SGD: noise behind the clipping weighs more.",
        ),
        _row(
            "dropout",
            "dropout",
            Side(upper_dropout, {"1-rho": -0.5, **_BDM}, text="B √(d/((1−ρ) m))"),
            Side(lower_masked, {"1-rho": -0.5, **_LOWER}, text="σ √(d/((1−ρ) m))"),
            "Units that stay are not rescaled; rescaled by 1/(1 − ρ) their gradients "
            "grow beside the noise, and the lower rate is σ √((1−ρ) d/m) instead.",
            "Second-hand: an older talk has √(d/(ρ m)), with ρ for what is kept.",
        ),
        _row(
            "pruning",
            "pruning",
            UNKNOWN,
            Side(lower_masked, {"1-rho": -0.5, **_LOWER}, text="σ √(d/((1−ρ̂) m))"),
            "ρ is the effective ratio ρ̂ of the Jacobian, 1 − ρ̂ = (R₀/R_D)²; it is "
            "about the pruned fraction for a random mask, and not for the largest "
            "entries.",
            "Second-hand: an older talk calls the tensor attack not applicable.",
        ),
        _row(
            "secure-aggregation",
            "secure-aggregation",
            Side(
                upper_secure_aggregation,
                {"K": 1.0, **_DM},
                "second-hand",
                "K √(d/m)",
            ),
            UNKNOWN,
            "K clients of one fixed batch size each; the statement is from an older "
            "talk, which has no lower rate.",
        ),
    )
)


def rate(name: str) -> Rate:
    """Return one row of the table.

    Args:
        name: a key of :data:`RATES`.

    Raises:
        InvalidInput: no row has the name.
    """
    if name not in RATES:
        msg = f"the theory has no row {name!r}; it has {', '.join(RATES)}"
        raise InvalidInput(msg)
    return RATES[name]


def local_exponent(side: Side, symbol: str, at: Quantities) -> float:
    """Return ∂ log rate / ∂ log quantity at one point, by a central difference.

    Args:
        side: a rate that is known.
        symbol: of the quantity.
        at: all quantities.

    Raises:
        InvalidInput: the rate is not known.
    """
    if side.at is None:
        msg = "the theory states no rate here, so it has no exponent"
        raise InvalidInput(msg)
    step, value = 1e-4, at.value(symbol)
    # 1 − ρ may be 1 already: the step then goes down only.
    top = min(1.0, value * math.exp(step)) if symbol == "1-rho" else None
    high = top or value * math.exp(step)
    low = value * math.exp(-step)
    ends = [math.log(side.at(at.at(symbol, v))) for v in (low, high)]
    return (ends[1] - ends[0]) / math.log(high / low)
