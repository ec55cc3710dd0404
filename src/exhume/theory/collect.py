"""From measured points to curves, exponents and what the theory says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, geometric_mean

from exhume.bounds.rates import rate
from exhume.bounds.rates.exact import effective_pruning_ratio
from exhume.bounds.rates.table import Rate, Side
from exhume.errors import InvalidInput
from exhume.theory.plan import place, points, title
from exhume.theory.point import PointResult
from exhume.theory.settings import QUANTITIES, Experiment, TheorySettings
from exhume.theory.slopes import Slope, fit_slope, slope_of

__all__ = ["EXACT", "LOCAL", "Curve", "Measured", "collect"]

#: errors below this are exact up to rounding, and rounding has no exponent
EXACT = 1e-8

#: errors above this, half of that of a random guess, level off and have no exponent
LOCAL = 0.7

_LEAST = 1e-18

ByPlace = dict[float, dict[int, float]]


@dataclass(frozen=True)
class Measured:
    """One line of a plot: values by place and seed, and the exponent they show.

    Attributes:
        name: of the arm, or ``lower bound``.
        values: place on the axis → seed → value.
        slope: fitted to places whose mean is in the local regime; None if there are
            fewer than two.
    """

    name: str
    values: ByPlace
    slope: Slope | None

    @property
    def means(self) -> list[tuple[float, float]]:
        """Place and geometric mean over the seeds, from weak to strong."""
        return [
            (at, _mean(seeds.values())) for at, seeds in sorted(self.values.items())
        ]

    @property
    def fitted(self) -> list[tuple[float, float]]:
        """Those means that entered the slope."""
        return [(at, value) for at, value in self.means if EXACT <= value <= LOCAL]

    @property
    def exact(self) -> bool:
        """Whether nothing but rounding is left of the error, everywhere."""
        return all(value < EXACT for _, value in self.means)


@dataclass(frozen=True, eq=False)
class Curve:
    """What one experiment found.

    Attributes:
        experiment: what was swept.
        title: of the plot.
        axis: name of the quantity.
        rate: row of the table.
        arms: errors, in the order of the settings.
        floor: exact lower bound, or None.
        upper: exponent that the upper rate predicts, or None.
        lower: exponent that the lower rate predicts, or None.
        effective: ρ → ρ̂, of pruning.
        below: (arm, place) where the error is below the bound, both as root mean
            squares over the seeds: the bound is about a mean, single draws scatter.
        compared: how many errors were compared with the bound.
        results: every point.
    """

    experiment: Experiment
    title: str
    axis: str
    rate: Rate
    arms: tuple[Measured, ...]
    floor: Measured | None
    upper: float | None
    lower: float | None
    effective: dict[float, float] = field(default_factory=dict)
    below: tuple[tuple[str, float], ...] = ()
    compared: int = 0
    results: tuple[PointResult, ...] = ()

    @property
    def first(self) -> Measured | None:
        """The arm that is compared with the upper rate."""
        return self.arms[0] if self.arms else None

    @property
    def similarity(self) -> dict[str, dict[float, dict[int, list[float]]]]:
        """Return arm → place → seed → SSIM of every image; empty but for images."""
        option, _ = QUANTITIES[self.experiment.sweep]
        found: dict[str, dict[float, dict[int, list[float]]]] = {}
        for result in self.results:
            at = place(self.experiment, getattr(result.spec, option))
            for arm, values in result.similarity.items():
                found.setdefault(arm, {}).setdefault(at, {})[result.spec.seed] = values
        return found

    @property
    def failures(self) -> list[str]:
        """Why points failed, or had no bound, without repetition."""
        told = [r.reason for r in self.results if r.reason]
        told += [note for r in self.results for note in r.notes]
        return list(dict.fromkeys(told))


def collect(
    settings: TheorySettings, results: Mapping[str, PointResult]
) -> tuple[Curve, ...]:
    """Put every experiment together from the points that have ended.

    Args:
        settings: of the run.
        results: by id of the spec.
    """
    return tuple(_curve(settings, e, results) for e in settings.experiments)


def _curve(
    settings: TheorySettings,
    experiment: Experiment,
    results: Mapping[str, PointResult],
) -> Curve:
    option, axis = QUANTITIES[experiment.sweep]
    asked = points(settings, experiment)
    found = [results[spec.id] for spec in asked if spec.id in results]
    done = [
        (place(experiment, getattr(r.spec, option)), r)
        for r in found
        if r.status == "done"
    ]
    arms: dict[str, ByPlace] = {a: {} for a in settings.option(experiment, "arms")}
    floors: ByPlace = {}
    for at, result in done:
        for arm, error in result.errors.items():
            arms[arm].setdefault(at, {})[result.spec.seed] = error
        if result.floor is not None:
            floors.setdefault(at, {})[result.spec.seed] = result.floor
    row = rate(experiment.row)
    measured = tuple(_measured(n, v) for n, v in arms.items() if v)
    below, compared = _below(measured, floors)
    return Curve(
        experiment=experiment,
        title=title(settings, experiment),
        axis=axis,
        rate=row,
        arms=measured,
        floor=_measured("lower bound", floors) if floors else None,
        upper=predicted(row.upper, experiment, done),
        lower=predicted(row.lower, experiment, done) if floors else None,
        effective=_effective(done) if experiment.row == "pruning" else {},
        below=below,
        compared=compared,
        results=tuple(found),
    )


def _mean(values: Iterable[float]) -> float:
    """Return the geometric mean; an error of exactly zero counts as tiny."""
    return geometric_mean(max(v, _LEAST) for v in values)


def _measured(name: str, values: ByPlace) -> Measured:
    local = {
        at: seeds
        for at, seeds in values.items()
        if EXACT <= _mean(seeds.values()) <= LOCAL
    }
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for at, seeds in local.items():
        for seed, value in seeds.items():
            by_seed.setdefault(seed, []).append((at, max(value, _LEAST)))
    try:
        slope = fit_slope(by_seed)
    except InvalidInput:
        slope = None
    return Measured(name, values, slope)


def predicted(
    side: Side, experiment: Experiment, done: Sequence[tuple[float, PointResult]]
) -> float | None:
    """Return the exponent of a rate along a sweep, where the quantity dominates.

    What moves along with the quantity counts: the norm of a gradient that is clipped
    grows with the width. Its own exponent is measured.

    Args:
        side: the rate.
        experiment: what is swept.
        done: (place, result) of every point.
    """
    if not side.known:
        return None
    symbol, sign = {"C": ("C", -1), "rho": ("1-rho", -1)}.get(
        experiment.sweep, (experiment.sweep, 1)
    )
    exponent = sign * side.exponents.get(symbol, 0.0)
    norms: dict[float, list[float]] = {}
    for at, result in done:
        norms.setdefault(at, []).append(result.gradient_norm)
    clipped = all(0 < r.spec.clip < r.gradient_norm for _, r in done)
    if "|G|" in side.exponents and experiment.sweep != "C" and len(norms) > 1:
        curve = [(at, geometric_mean(n)) for at, n in norms.items() if clipped]
        exponent += side.exponents["|G|"] * (slope_of(curve) if curve else 0.0)
    return exponent


def _effective(done: Sequence[tuple[float, PointResult]]) -> dict[float, float]:
    """Return the effective ratio of every pruned fraction, averaged over the seeds."""
    found: dict[float, list[float]] = {}
    for _, result in done:
        if result.floor and result.unmasked:
            share = effective_pruning_ratio(result.unmasked, result.floor)
            found.setdefault(result.spec.ratio, []).append(share)
    return {ratio: fmean(shares) for ratio, shares in sorted(found.items())}


def _below(
    arms: Sequence[Measured], floors: ByPlace
) -> tuple[tuple[tuple[str, float], ...], int]:
    """List errors below their own bound, where it is small enough to mean something."""
    found, compared = [], 0
    for arm in arms:
        for at, errors in arm.values.items():
            shared = sorted(errors.keys() & floors.get(at, {}).keys())
            floor = _root_mean_square([floors[at][seed] for seed in shared])
            if not shared or floor > LOCAL:
                continue
            compared += 1
            if _root_mean_square([errors[seed] for seed in shared]) < floor:
                found.append((arm.name, at))
    return tuple(found), compared


def _root_mean_square(values: Sequence[float]) -> float:
    return fmean(v * v for v in values) ** 0.5 if values else 0.0
