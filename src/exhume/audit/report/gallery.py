"""The pictures of a report: originals, reconstructions, and maps of the bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter

import numpy as np

from exhume.audit.report.results import Defended, Scenario, described, drawing, event_of
from exhume.audit.report.verdict import Finding
from exhume.report.pictures import Picture, png
from exhume.report.words import number, score
from exhume.runs.records import (
    BOUNDED_METRIC,
    TrialResult,
    binds_every_attack,
    is_error,
)
from exhume.trials.trial import whom

__all__ = ["Gallery", "Legend", "Maps", "Panel", "Row", "bound_maps", "gallery", "hero"]

#: examples of one batch that are shown at once; the others unfold
_EXAMPLES_SHOWN = 4


@dataclass(frozen=True)
class Row:
    """One example under one defense: the truth, then a picture per attack.

    Attributes:
        defense: label, on the first of the defense's rows only.
        span: number of rows of this defense in the same block.
        example: number within the batch, or None if the batch holds one.
        truth: the original.
        guesses: one per attack, None where there was no trial.
        floors: one map per bound that has any, None where it does not hold.
    """

    defense: str
    span: int
    example: int | None
    truth: Picture
    guesses: tuple[Picture | None, ...]
    floors: tuple[Picture | None, ...]

    @property
    def pictures(self) -> int:
        """How many pictures the row holds."""
        return 1 + sum(p.drawn for p in (*self.guesses, *self.floors) if p)


@dataclass(frozen=True)
class Panel:
    """Everything of one seed; ``more`` is folded away."""

    seed: int
    rows: tuple[Row, ...]
    more: tuple[Row, ...]


@dataclass(frozen=True)
class Gallery:
    """The pictures of one scenario.

    Attributes:
        attacks: column heads.
        maps: further column heads, each with whom the bound binds if not every attack.
        legend: colours of the maps, None without any.
        panels: one per seed that is shown.
        pictures: how many there are.
        seeds_left_out: seeds that did not fit.
    """

    attacks: tuple[str, ...]
    maps: tuple[tuple[str, str], ...]
    legend: Legend | None
    panels: tuple[Panel, ...]
    pictures: int
    seeds_left_out: tuple[int, ...]

    @property
    def target(self) -> int:
        """Width of a picture on the page that lets the columns fit side by side."""
        return min(150, max(88, 960 // (len(self.attacks) + len(self.maps) + 2)))


def gallery(scenario: Scenario, most: int) -> Gallery:
    """Collect the pictures of a scenario, seed by seed, up to ``most`` of them."""
    panels: dict[int, Panel] = {}
    total = 0
    maps = bound_maps(scenario)
    for seed in scenario.seeds:
        panel = _panel(scenario, maps, seed)
        size = sum(row.pictures for row in (*panel.rows, *panel.more))
        if panels and total + size > most:
            break
        if size:
            panels[seed] = panel
            total += size
    return Gallery(
        attacks=scenario.attacks,
        maps=maps.heads,
        legend=maps.legend,
        panels=tuple(panels.values()),
        pictures=total,
        seeds_left_out=tuple(s for s in scenario.seeds if panels and s not in panels),
    )


def _panel(scenario: Scenario, maps: Maps, seed: int) -> Panel:
    rows: list[Row] = []
    more: list[Row] = []
    for defense in scenario.defenses:
        trials = {a: scenario.trial(defense, a, seed) for a in scenario.attacks}
        kept = [r for r in trials.values() if r and "truth" in r.arrays]
        size = len(kept[0].arrays["truth"]) if kept else 0
        for index in range(size):
            row = _row(scenario, defense, trials, kept[0], index)
            shown = index < _EXAMPLES_SHOWN
            first, end = (0, _EXAMPLES_SHOWN) if shown else (_EXAMPLES_SHOWN, size)
            span = min(size, end) - first if index == first else 0
            floors = maps.row(defense, seed, index)
            (rows if shown else more).append(replace(row, span=span, floors=floors))
    return Panel(seed, tuple(rows), tuple(more))


def _row(
    scenario: Scenario,
    defense: Defended,
    trials: dict[str, TrialResult | None],
    kept: TrialResult,
    index: int,
) -> Row:
    """Show an example of a batch, which ``kept`` has kept, and the guesses of it."""
    errors = {
        attack: error
        for attack, result in trials.items()
        if result and (error := _score(result, scenario.headline, index)) is not None
    }
    least = min(errors, key=errors.__getitem__, default="")
    alone = len(kept.arrays["truth"]) == 1
    truth = kept.arrays["truth"][index]
    which = "" if alone else f", example {index + 1}"
    guesses: list[Picture | None] = []
    for attack, result in trials.items():
        if result is None:
            guesses.append(None)
            continue
        what = f"{attack}, {defense.label}{which}"
        picture = _picture(result, truth, index, what)
        # No attack is best where a chance level is.
        best = attack == least and attack not in scenario.baselines and picture.drawn
        guesses.append(replace(picture, best=best))
    label = _label(kept.true_labels, index)
    caption = (f"label {label}",) if label else ()
    drawn = drawing(kept)(truth, truth)
    original = replace(drawn, alt=f"original{which}", captions=caption)
    example = None if alone else index
    return Row(defense.label, 1, example, original, tuple(guesses), ())


def _score(result: TrialResult, metric: str, index: int) -> float | None:
    scores = result.scores.get(metric, [])
    value = scores[index] if index < len(scores) else None
    return None if value is None or math.isnan(value) else value


def _picture(result: TrialResult, truth: np.ndarray, index: int, what: str) -> Picture:
    guess = result.arrays.get("guess")
    if guess is None or index >= len(guess) or np.isnan(guess[index]).all():
        why = "no estimate" if result.status == "done" else result.status
        return Picture(f"no picture: {what}", (why.replace("-", " "),))
    captions = _captions(result, index)
    true = _label(result.true_labels, index)
    guessed = _label(result.guessed_labels, index)
    if true and guessed and true != guessed:
        captions = (*captions, f"label {guessed} ≠ {true}")
    alt = f"reconstruction: {what}: {', '.join(captions)}"
    drawn = drawing(result)(guess[index], truth)
    return replace(drawn, alt=alt, captions=captions)


def _label(labels: Sequence[object], index: int) -> str:
    """Write a class label; targets that are no class are too long for a caption."""
    label = labels[index] if index < len(labels) else None
    return str(label) if isinstance(label, int) else ""


def _captions(result: TrialResult, index: int) -> tuple[str, ...]:
    """Write the headline error; a squared error as PSNR and SSIM where they exist."""
    psnr, ssim = _score(result, "psnr", index), _score(result, "ssim", index)
    if psnr is None or result.headline != BOUNDED_METRIC:
        metric = described(result.headline)
        error = _score(result, result.headline, index)
        return (f"{metric.label} {score(result.headline, error, metric.unit)}",)
    lines = [score("psnr", psnr, "dB")]
    if ssim is not None:
        lines.append(f"SSIM {score('ssim', ssim)}")
    return tuple(lines)


def hero(gallery: Gallery, found: Sequence[Finding]) -> list[tuple[str, Picture]]:
    """Choose up to three pictures of the first example, with a title each.

    They are the original, the strongest attack without a defense, and the strongest
    attack under the defense that leaves it the largest error.
    """
    reached = [f for f in found if f.error is not None]
    plain = [f for f in reached if f.defense.is_none]
    held = [f for f in reached if not f.defense.is_none]
    chosen = [*plain, *sorted(held, key=attrgetter("error"))[-1:]]
    rows = gallery.panels[0].rows if gallery.panels else ()
    shown = []
    for finding in chosen:
        row = next((r for r in rows if r.defense == finding.defense.label), None)
        if row is None:
            continue
        picture = row.guesses[gallery.attacks.index(finding.attack)]
        if picture is not None and picture.drawn:
            shown.append((f"{finding.attack}, {finding.defense.label}", picture))
    return [("original", row.truth) for row in rows[:1] if shown] + shown


# --- maps of bounds -------------------------------------------------------------------

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
        scenario: the trials.
        heads: one per bound with a map: its label, and whom it binds if not all.
        legend: of their colours, None without any.
    """

    scenario: Scenario
    heads: tuple[tuple[str, str], ...]
    legend: Legend | None

    def row(
        self, defense: Defended, seed: int, example: int
    ) -> tuple[Picture | None, ...]:
        """Draw the maps of one example under one defense; None where there is none."""
        row: list[Picture | None] = []
        for head, _ in self.heads:
            result = self.scenario.trial(defense, head, seed)
            if result is None or self.legend is None:
                row.append(None)
            else:
                row.append(_map(result, self.legend, defense, head, example))
        return tuple(row)


def bound_maps(scenario: Scenario) -> Maps:
    """Collect the maps of images and their common scale.

    Bounds for every attack come first: another is labelled with whom it binds.
    """
    found = []
    for bound in scenario.bounds:
        done = [r for d in scenario.defenses for r in scenario.done(d, bound)]
        if kept := [r for r in done if _has_map(r)]:
            found.append((not all(map(binds_every_attack, kept)), bound, kept))
    found.sort(key=itemgetter(0, 1))
    heads = [(bound, whom(kept[0]) if loose else "") for loose, bound, kept in found]
    drawn = [result for _, _, kept in found for result in kept]
    return Maps(scenario, tuple(heads), _legend(drawn) if drawn else None)


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


def _map(
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
