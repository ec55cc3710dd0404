"""Bounds pixel by pixel: the root-mean-square error that no attack gets below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exhume.audit.report.events import event_of
from exhume.audit.report.grouping import Defended, Scenario
from exhume.report.pictures import Picture, png
from exhume.report.words import number
from exhume.runs.records import TrialResult
from exhume.trials.bound_record import binds_every_attack, is_error, whom

__all__ = ["Legend", "Maps", "bound_maps"]

# Matplotlib's perceptually uniform scale; readers of every colour vision can order it.
_PALETTE = "viridis"
_STOPS = 9
#: a scale on which nothing varies still needs two ends
_NARROWEST = 2.0


@dataclass(frozen=True)
class Legend:
    """What the colours of the maps mean, on a logarithmic scale.

    Attributes:
        low: error of the darkest colour, > 0.
        high: error of the brightest.
        prior: least and largest error if nothing is released, or None if not known.
        clipped: some bound lies above ``high``.
    """

    low: float
    high: float
    prior: tuple[float, float] | None
    clipped: bool

    @property
    def ends(self) -> tuple[str, str]:
        """Both ends in print."""
        return number(self.low, 2), number(self.high, 2) + (
            " and more" if self.clipped else ""
        )

    @property
    def guess(self) -> str:
        """The range of the prior in print, "" if it is not known."""
        if self.prior is None:
            return ""
        least, most = (number(v, 2) for v in self.prior)
        return least if least == most else f"{least} to {most}"

    @property
    def span(self) -> tuple[float, float]:
        """Where the range of the prior begins on the bar, and its width, in percent."""
        least, most = self.place(np.array(self.prior or (self.high, self.high)))
        return round(100 * float(least), 1), round(100 * float(most - least), 1)

    @property
    def gradient(self) -> str:
        """The colours from low to high, as CSS."""
        levels = _colours(np.linspace(0, 1, _STOPS))
        rgb = [", ".join(str(round(255 * c)) for c in level) for level in levels]
        return ", ".join(f"rgb({colour})" for colour in rgb)

    def place(self, errors: np.ndarray) -> np.ndarray:
        """Put errors on the scale from 0 to 1."""
        inside = np.clip(errors, self.low, self.high)
        return np.log(inside / self.low) / np.log(self.high / self.low)


@dataclass(frozen=True)
class Maps:
    """The maps of one scenario.

    Attributes:
        heads: one per bound with a map: its label, and whom it binds if not all.
        legend: of their colours, None without any.
        shown: (defense label, seed) → one trial per head, None where it has no map.
    """

    heads: tuple[tuple[str, str], ...]
    legend: Legend | None
    shown: dict[tuple[str, int], tuple[TrialResult | None, ...]]

    def row(
        self, defense: Defended, seed: int, example: int
    ) -> tuple[Picture | None, ...]:
        """Draw the maps of one example under one defense."""
        trials = self.shown.get((defense.label, seed), ())
        return tuple(
            None
            if result is None or self.legend is None
            else _picture(result, self.legend, defense, head, example)
            for result, (head, _) in zip(trials, self.heads, strict=False)
        )


def bound_maps(scenario: Scenario) -> Maps:
    """Collect the maps of images and their common scale.

    Bounds for every attack come first: another is labelled with whom it binds.
    """
    found = {b: _mapped(scenario, b) for b in scenario.bounds}
    kept = {b: results for b, results in found.items() if results}
    order = sorted(kept, key=lambda b: (not _strict(kept[b]), b))
    heads = tuple((b, "" if _strict(kept[b]) else whom(kept[b][0])) for b in order)
    shown = {
        (defense.label, seed): tuple(scenario.trial(defense, b, seed) for b in order)
        for defense in scenario.defenses
        for seed in scenario.seeds
    }
    return Maps(heads, _legend([r for b in order for r in kept[b]]), shown)


def _mapped(scenario: Scenario, bound: str) -> list[TrialResult]:
    done = [r for d in scenario.defenses for r in scenario.done(d, bound)]
    return [r for r in done if _has_map(r)]


def _strict(results: Sequence[TrialResult]) -> bool:
    return all(map(binds_every_attack, results))


def _has_map(result: TrialResult) -> bool:
    if "bound_map" not in result.arrays or not is_error(result):
        return False
    event = event_of(result)
    return event is not None and event.grid is not None


def _legend(results: Sequence[TrialResult]) -> Legend | None:
    """Span from the lowest bound to what the prior alone leaves open."""
    errors = [_errors(example) for r in results for example in r.arrays["bound_map"]]
    seen = np.concatenate([e.ravel() for e in errors]) if errors else np.empty(0)
    positive = seen[np.isfinite(seen) & (seen > 0)]
    if not positive.size:
        return None
    priors = [
        _errors(r.arrays["prior_map"]) for r in results if "prior_map" in r.arrays
    ]
    known = np.concatenate([p.ravel() for p in priors]) if priors else None
    prior = None if known is None else (float(known.min()), float(known.max()))
    most = float(positive.max())
    high = most if prior is None else prior[1]
    low = min(float(positive.min()), high / _NARROWEST)
    # Rounding may leave a bound without information a little above the prior.
    return Legend(low, high, prior, bool((seen > 1.001 * high).any()))


def _errors(variances: np.ndarray) -> np.ndarray:
    """Return the root-mean-square error per pixel [H, W], over its channels."""
    return np.sqrt(np.maximum(variances.astype(np.float64), 0).mean(axis=0))


def _colours(places: np.ndarray) -> np.ndarray:
    """Return red, green and blue in [0, 1] along the last axis."""
    from matplotlib import colormaps

    return np.asarray(colormaps[_PALETTE](places))[..., :3]


def _picture(
    result: TrialResult, legend: Legend, defense: Defended, head: str, example: int
) -> Picture:
    which = "" if result.spec.batch_size == 1 else f", example {example + 1}"
    what = f"{head}, {defense.label}{which}"
    if not _has_map(result) or example >= len(result.arrays["bound_map"]):
        why = "no map" if result.status == "done" else "no bound"
        return Picture(f"{why}: {what}", (why,), reason=result.reason)
    variances = result.arrays["bound_map"][example]
    errors = _errors(variances)
    mean = float(np.sqrt(max(float(variances.mean(dtype=np.float64)), 0.0)))
    captions = (
        f"error ≥ {number(mean, 2)}",
        f"{number(float(errors.min()), 2)} to {number(float(errors.max()), 2)}",
    )
    alt = f"bound per pixel: {what}: {', '.join(captions)}"
    coloured = np.moveaxis(_colours(legend.place(errors)), -1, 0)
    return Picture(alt, captions, png(coloured, 0, 1), width=errors.shape[-1])
