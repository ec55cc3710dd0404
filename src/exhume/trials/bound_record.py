"""A bound as plain data: its record, and what readers of the record ask of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from exhume.runs.records import TrialResult

if TYPE_CHECKING:
    from exhume.problem.bound import BoundValue, RiskValue

__all__ = [
    "BOUNDED_METRIC",
    "SQUARED_ERROR",
    "Level",
    "binds_every_attack",
    "is_error",
    "level",
    "record_of",
    "whom",
]

#: the metric that bounds on the squared error bound; no other is compared with them
BOUNDED_METRIC = "mse"
#: what a record without a quantity of its own bounds from below
SQUARED_ERROR = "mean squared error ≥"
#: name of the member of ``problem.bound.Binds``, whose module imports torch
_EVERY_ATTACK = "EVERY_ATTACK"


@dataclass(frozen=True)
class Level:
    """One bound averaged over seeds.

    Attributes:
        value: per coordinate for a squared error, else in the units of the quantity.
        standard_error: Monte-Carlo standard error of the average.
    """

    value: float
    standard_error: float


def record_of(value: BoundValue | RiskValue) -> dict[str, Any]:
    """Write a bound as plain data; its array goes elsewhere."""
    from exhume.problem.bound import BoundValue

    kept = [f.name for f in fields(value) if f.name != "per_coordinate"]
    record = {name: getattr(value, name) for name in kept}
    record |= {
        "assumptions": list(value.assumptions),
        "binds": value.binds.name,
        "details": {name: float(v) for name, v in value.details.items()},
    }
    if isinstance(value, BoundValue):
        record |= {
            "mse": value.mse,
            "mse_standard_error": value.mse_standard_error,
            "per_example": list(value.per_example),
        }
    return record


def is_error(result: TrialResult) -> bool:
    """Say whether a trial holds a lower bound on the mean squared error."""
    return result.bound is not None and "mse" in result.bound


def binds_every_attack(result: TrialResult) -> bool:
    """Say whether a trial's bound is one that attacks may be compared with.

    A record that does not say whom it binds is of a version whose only bound binds
    every attack.
    """
    return _binds(result) == _EVERY_ATTACK


def whom(result: TrialResult) -> str:
    """Return whom a trial's bound binds, in words; "" without a bound."""
    from exhume.problem.bound import Binds

    name = _binds(result)
    known = Binds.__members__.get(name)
    return name if known is None else known.value


def _binds(result: TrialResult) -> str:
    return "" if result.bound is None else result.bound.get("binds", _EVERY_ATTACK)


def level(results: Sequence[TrialResult]) -> Level | None:
    """Average one bound over its seeds; None if no seed has a value."""
    bounds = [r.bound for r in results if r.bound is not None]
    if not bounds:
        return None
    mean = [float(b["mse"] if "mse" in b else b["value"]) for b in bounds]
    errors = [
        float(b["mse_standard_error"] if "mse" in b else b["standard_error"])
        for b in bounds
    ]
    return Level(sum(mean) / len(mean), math.hypot(*errors) / len(errors))
