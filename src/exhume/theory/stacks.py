"""The shipped defenses at the strengths of the theory, which are in natural units."""

from __future__ import annotations

import math
from collections.abc import Callable

import exhume
from exhume.errors import InvalidInput
from exhume.problem.defense import Defense
from exhume.theory.network import unit
from exhume.theory.point import PointSpec

__all__ = ["STACKS", "stack"]


def _unit(spec: PointSpec) -> float:
    return unit(spec.layer, spec.width, spec.examples)


def _noise(spec: PointSpec, clients: int = 1) -> list[Defense]:
    """Return noise of σ on the release; of each client √K times as much."""
    std = spec.noise * _unit(spec) * math.sqrt(clients)
    return [exhume.defense("gaussian-noise", std=std)] if std > 0 else []


def _none(spec: PointSpec) -> list[Defense]:
    return _noise(spec)


def _local_aggregation(spec: PointSpec) -> list[Defense]:
    # In natural units the gradient moves w_j by rate · Σᵢ rᵢ σ'(w_j·xᵢ) xᵢ, and a_j by
    # rate · Σᵢ rᵢ σ(w_j·xᵢ) / m.
    scale = 1 if spec.layer == "hidden" else spec.width
    rate = spec.rate / (_unit(spec) * scale)
    return [
        exhume.defense("local-aggregation", steps=spec.count, rate=rate),
        *_noise(spec),
    ]


def _clip(spec: PointSpec) -> float:
    if spec.clip <= 0:
        msg = f"the row {spec.row!r} needs a clip above 0, got {spec.clip}"
        raise InvalidInput(msg)
    return spec.clip


def _dp_sgd(spec: PointSpec) -> list[Defense]:
    # The gradient of one example is B times larger than its share of the mean.
    single = unit(spec.layer, spec.width, 1)
    clip = _clip(spec)
    return [
        exhume.defense(
            "dp-sgd",
            max_norm=clip * single,
            noise_multiplier=spec.noise / clip,
            batch_size=spec.batch_size,
        )
    ]


def _clipping(spec: PointSpec) -> list[Defense]:
    clipping = exhume.defense("clipping", max_norm=_clip(spec) * _unit(spec))
    return [clipping, *_noise(spec)]


def _dropout(spec: PointSpec) -> list[Defense]:
    return [
        exhume.defense("dropout", ratio=spec.ratio, rescale=False, layers=("act",)),
        *_noise(spec),
    ]


def _pruning(spec: PointSpec) -> list[Defense]:
    # Behind the noise, so that what is removed is seen and says nothing.
    return [
        *_noise(spec),
        exhume.defense("pruning", ratio=spec.ratio, kind=spec.kind),
    ]


def _secure_aggregation(spec: PointSpec) -> list[Defense]:
    return [
        *_noise(spec, spec.count),
        exhume.defense("secure-aggregation", clients=spec.count),
    ]


#: row of the table of rates → its defenses
STACKS: dict[str, Callable[[PointSpec], list[Defense]]] = {
    "none": _none,
    "local-aggregation": _local_aggregation,
    "gradient-noise": _none,
    "dp-sgd": _dp_sgd,
    "clipping": _clipping,
    "dropout": _dropout,
    "pruning": _pruning,
    "secure-aggregation": _secure_aggregation,
}


def stack(spec: PointSpec) -> tuple[Defense, ...]:
    """Return the defenses of a point, in order.

    Raises:
        InvalidInput: the row is not known, or a strength is out of range.
    """
    if spec.row not in STACKS:
        msg = f"the theory has no row {spec.row!r}; it has {', '.join(STACKS)}"
        raise InvalidInput(msg)
    return tuple(STACKS[spec.row](spec))
