"""Privacy accounting by dp-accounting and riskcal: ε, and the trade-off curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

from exhume.errors import InvalidInput
from exhume.problem.bound import NotApplicable
from exhume.problem.privacy import Guarantee
from exhume.problem.world import World

__all__ = [
    "MISSING_EXTRA",
    "Adjacency",
    "Epsilon",
    "check_training",
    "epsilon",
    "epsilon_of",
    "guarantee_of",
    "missing_extra",
    "training_assumptions",
    "type_two_error",
]

Adjacency = Literal["add-or-remove", "replace"]
MISSING_EXTRA = (
    "privacy accounting needs dp-accounting and riskcal; pip install exhume[dp]"
)

# Width of the grid of privacy losses, and how many cells one release may span.
_INTERVAL, _CELLS = 1e-4, 2e5


@dataclass(frozen=True)
class Epsilon:
    """An (ε, δ) guarantee with everything that it means nothing without.

    Attributes:
        value: ε ≥ 0; ∞ if there is no guarantee.
        delta: δ.
        adjacency: which data sets are neighbours.
        unit: whose presence is hidden, or None if nobody's.
        sampling_rate: probability q with which a unit takes part in a release
            (Poisson sampling, hidden from the attacker).
        steps: number T of releases.
        reasons: why ε is infinite, one sentence each; empty if it is finite.
    """

    value: float
    delta: float
    adjacency: Adjacency
    unit: str | None
    sampling_rate: float
    steps: int
    reasons: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """One line that names all of it."""
        if self.reasons:
            return f"ε is infinite: {'; '.join(self.reasons)}"
        sampled = (
            "taking part in every release"
            if self.sampling_rate == 1
            else f"Poisson-sampled at rate {self.sampling_rate:g}"
        )
        rounds = "one release" if self.steps == 1 else f"{self.steps} releases"
        return (
            f"ε = {self.value:.4g} at δ = {self.delta:g} for {rounds}: "
            f"{self.adjacency} one {self.unit}, {sampled}"
        )


def epsilon(
    guarantee: Guarantee,
    delta: float,
    *,
    steps: int = 1,
    sampling_rate: float = 1.0,
    adjacency: Adjacency = "add-or-remove",
) -> Epsilon:
    """Account for T releases of a mechanism: the smallest ε at δ.

    Noise that is not the same in all directions counts by its worst direction. The
    Gaussian mechanism without sampling has a closed form; everything else is the
    composed privacy-loss distribution, rounded so that ε is never too small.

    Args:
        guarantee: of one release, from ``Mechanism.guarantee``.
        delta: δ in (0, 1).
        steps: T ≥ 1.
        sampling_rate: q in (0, 1], of Poisson sampling.
        adjacency: add or remove one unit, or replace one by another, which moves the
            release twice as far.

    Raises:
        InvalidInput: an option is out of range, the extra is not installed, or
            dp-accounting has no answer for sampled Laplace noise and replacement.
    """
    check_training(steps, sampling_rate, adjacency)
    if not 0 < delta < 1:
        msg = f"delta is {delta}; expected a number in (0, 1), e.g. 1e-5"
        raise InvalidInput(msg)
    value = math.inf
    if guarantee.multiplier == math.inf:
        value = 0.0
    elif not guarantee.reasons:
        value = _epsilon(guarantee, delta, steps, sampling_rate, adjacency)
    return Epsilon(
        value,
        delta,
        adjacency,
        guarantee.unit,
        sampling_rate,
        steps,
        guarantee.reasons,
    )


def epsilon_of(
    world: World,
    delta: float,
    key: int = 0,
    *,
    steps: int = 1,
    sampling_rate: float = 1.0,
    adjacency: Adjacency = "add-or-remove",
) -> Epsilon:
    """Account for the mechanism of a world, see :func:`epsilon`.

    Args:
        world: its task and public data calibrate the defenses.
        delta: δ.
        key: calibrates as ``world.observe(key)`` does.
        steps: T.
        sampling_rate: q.
        adjacency: which data sets are neighbours.
    """
    plans = world.plans(key)
    found = world.mechanism.guarantee(plans)
    return epsilon(
        found, delta, steps=steps, sampling_rate=sampling_rate, adjacency=adjacency
    )


def type_two_error(
    guarantee: Guarantee,
    type_one_error: float,
    *,
    steps: int = 1,
    sampling_rate: float = 1.0,
) -> float:
    """Return the trade-off curve f(α): the least β of any test for one unit.

    Args:
        guarantee: finite, of one release.
        type_one_error: α in [0, 1].
        steps: T.
        sampling_rate: q of Poisson sampling.

    Returns:
        A lower bound on β for adding or removing one unit, both ways.

    Raises:
        InvalidInput: the extra is not installed.
    """
    loss = _loss_distribution(guarantee, steps, sampling_rate, "add-or-remove")
    from riskcal import analysis

    return float(analysis.get_beta_from_pld(loss, alpha=type_one_error))


def guarantee_of(
    world: World, key: int, *, gaussian: bool = False
) -> Guarantee | NotApplicable:
    """Return the guarantee of a world's mechanism, or why there is none.

    Args:
        world: its task and public data calibrate the defenses.
        key: calibrates as ``world.observe(key)`` does.
        gaussian: whether a bound holds for Gaussian noise alone.
    """
    plans = world.plans(key)
    found = world.mechanism.guarantee(plans)
    if found.reasons:
        reasons = "; ".join(found.reasons)
        return NotApplicable(f"the release is not differentially private: {reasons}")
    if found.multiplier == math.inf:
        return NotApplicable("everything is masked, so nothing is released")
    if gaussian and found.family != "gaussian":
        return NotApplicable(f"the noise is {found.family}; the bound is for Gaussian")
    return found


def training_assumptions(
    guarantee: Guarantee, steps: int, sampling_rate: float = 1.0
) -> tuple[str, ...]:
    """Say in sentences for which training and whom a number is meant."""
    whose = {"example": "one example", "client": "one client with all its examples"}
    sentences = [
        f"The secret is {whose[guarantee.unit or 'example']}; the attacker may know "
        f"all the rest, the model and every release.",
        f"{steps} release(s) by the same mechanism, with noise "
        f"{guarantee.multiplier:.4g} times the sensitivity in its worst direction.",
        "Nothing else that depends on the data is released (BatchNorm statistics, "
        "labels in clear, a loss).",
    ]
    if sampling_rate < 1:
        sentences.append(
            f"Each takes part in a release with probability {sampling_rate:g}, "
            f"independently, and the attacker does not see who does."
        )
    return tuple(sentences)


def check_training(
    steps: int, sampling_rate: float = 1.0, adjacency: str = "replace"
) -> None:
    """Check T, q and the adjacency.

    Raises:
        InvalidInput: one is out of range.
    """
    if steps < 1:
        msg = f"steps is {steps}; expected the number of releases, at least 1"
        raise InvalidInput(msg)
    if not 0 < sampling_rate <= 1:
        msg = f"sampling_rate is {sampling_rate}; expected a probability in (0, 1]"
        raise InvalidInput(msg)
    if adjacency not in get_args(Adjacency):
        known = " or ".join(repr(name) for name in get_args(Adjacency))
        msg = f"adjacency is {adjacency!r}; expected {known}"
        raise InvalidInput(msg)


def missing_extra() -> bool:
    """Whether dp-accounting or riskcal is not installed."""
    return any(find_spec(name) is None for name in ("dp_accounting", "riskcal"))


def _epsilon(
    guarantee: Guarantee,
    delta: float,
    steps: int,
    sampling_rate: float,
    adjacency: Adjacency,
) -> float:
    if guarantee.family == "gaussian" and sampling_rate == 1:
        _require_extra()
        from dp_accounting import get_epsilon_gaussian

        scale = guarantee.multiplier / math.sqrt(steps)
        moved = 2 if adjacency == "replace" else 1
        return float(get_epsilon_gaussian(scale / moved, delta))
    loss = _loss_distribution(guarantee, steps, sampling_rate, adjacency)
    return float(loss.get_epsilon_for_delta(delta))


def _loss_distribution(
    guarantee: Guarantee, steps: int, sampling_rate: float, adjacency: Adjacency
) -> Any:
    """Return the privacy-loss distribution of T releases."""
    _require_extra()
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as pld

    z = guarantee.multiplier
    options: dict[str, Any] = {"sampling_prob": sampling_rate}
    if guarantee.family == "laplace":
        if adjacency == "replace" and sampling_rate < 1:
            msg = (
                "dp-accounting does not account for sampled Laplace noise when one "
                "unit is replaced; use adjacency='add-or-remove'"
            )
            raise InvalidInput(msg)
        moved = 2 if adjacency == "replace" else 1
        options["value_discretization_interval"] = _interval(moved / z)
        one = pld.from_laplace_mechanism(z / moved, **options)
        return one.self_compose(steps)
    if adjacency == "replace":
        options["neighboring_relation"] = NeighboringRelation.REPLACE_ONE
    if sampling_rate == 1:
        # Without sampling T releases are one with less noise.
        z, steps = z / math.sqrt(steps), 1
    options["value_discretization_interval"] = _interval((1 / z + 20) / z)
    return pld.from_gaussian_mechanism(z, **options).self_compose(steps)


def _interval(largest_loss: float) -> float:
    """Coarsen the grid where little noise makes losses, and memory, large."""
    return max(_INTERVAL, largest_loss / _CELLS)


def _require_extra() -> None:
    if missing_extra():
        raise InvalidInput(MISSING_EXTRA)
