"""Originals beside reconstructions: rows are defenses, columns are attacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from exhume.audit.report.bound_maps import Legend, Maps, bound_maps
from exhume.audit.report.events import drawing
from exhume.audit.report.grouping import Defended, Scenario
from exhume.audit.report.metrics import described
from exhume.report.pictures import Picture
from exhume.report.words import score
from exhume.runs.records import TrialResult
from exhume.trials.bound_record import BOUNDED_METRIC

__all__ = ["Gallery", "Panel", "Row", "gallery"]

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
        shown = [p for p in (*self.guesses, *self.floors) if p is not None]
        return 1 + sum(p.drawn for p in shown)


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
    panels: list[Panel] = []
    total = 0
    maps = bound_maps(scenario)
    for seed in scenario.seeds:
        panel = _panel(scenario, maps, seed)
        size = sum(row.pictures for row in (*panel.rows, *panel.more))
        if panels and total + size > most:
            break
        if size:
            panels.append(panel)
            total += size
    shown = {panel.seed for panel in panels}
    left_out = tuple(s for s in scenario.seeds if s not in shown) if panels else ()
    return Gallery(
        scenario.attacks, maps.heads, maps.legend, tuple(panels), total, left_out
    )


def _panel(scenario: Scenario, maps: Maps, seed: int) -> Panel:
    rows: list[Row] = []
    more: list[Row] = []
    for defense in scenario.defenses:
        made = _rows(scenario, defense, seed)
        made = [
            replace(row, floors=maps.row(defense, seed, row.example or 0))
            for row in made
        ]
        rows += _spanned(made[:_EXAMPLES_SHOWN])
        more += _spanned(made[_EXAMPLES_SHOWN:])
    return Panel(seed, tuple(rows), tuple(more))


def _spanned(rows: Sequence[Row]) -> list[Row]:
    return [
        replace(row, span=0 if index else len(rows)) for index, row in enumerate(rows)
    ]


def _rows(scenario: Scenario, defense: Defended, seed: int) -> list[Row]:
    trials = {a: scenario.trial(defense, a, seed) for a in scenario.attacks}
    truths = [r.arrays["truth"] for r in trials.values() if r and "truth" in r.arrays]
    if not truths:
        return []
    truth = truths[0]
    return [
        _row(scenario, defense, trials, truth[index], index if len(truth) > 1 else None)
        for index in range(len(truth))
    ]


def _row(
    scenario: Scenario,
    defense: Defended,
    trials: dict[str, TrialResult | None],
    truth: np.ndarray,
    example: int | None,
) -> Row:
    index = example or 0
    errors = {a: _score(r, scenario.headline, index) for a, r in trials.items()}
    best = _best(scenario, errors)
    which = "" if example is None else f", example {example + 1}"
    guesses = tuple(
        None
        if result is None
        else _picture(
            result,
            truth,
            index,
            f"{attack}, {defense.label}{which}",
            best=attack == best,
        )
        for attack, result in trials.items()
    )
    label = next((_label(r.true_labels, index) for r in trials.values() if r), "")
    caption = (f"label {label}",) if label else ()
    (draw, *_) = [drawing(r) for r in trials.values() if r and "truth" in r.arrays]
    original = replace(draw(truth, truth), alt=f"original{which}", captions=caption)
    return Row(defense.label, 1, example, original, guesses, ())


def _best(scenario: Scenario, errors: dict[str, float | None]) -> str:
    """Name the attack with the least error if it beats every baseline, else ""."""
    known = {a: e for a, e in errors.items() if e is not None}
    attack = min(known, key=lambda a: known[a], default="")
    return "" if attack in scenario.baselines else attack


def _score(result: TrialResult | None, metric: str, index: int) -> float | None:
    if result is None:
        return None
    scores = result.scores.get(metric, [])
    value = scores[index] if index < len(scores) else None
    return None if value is None or math.isnan(value) else value


def _picture(
    result: TrialResult, truth: np.ndarray, index: int, what: str, *, best: bool
) -> Picture:
    guess = result.arrays.get("guess")
    if guess is None or index >= len(guess) or np.isnan(guess[index]).all():
        why = "no estimate" if result.status == "done" else result.status
        return Picture(f"no picture: {what}", (why.replace("-", " "),))
    captions = _captions(result, index)
    true, guessed = (
        _label(result.true_labels, index),
        _label(result.guessed_labels, index),
    )
    if true and guessed and true != guessed:
        captions = (*captions, f"label {guessed} ≠ {true}")
    alt = f"reconstruction: {what}: {', '.join(captions)}"
    drawn = drawing(result)(guess[index], truth)
    return replace(drawn, alt=alt, captions=captions, best=best)


def _label(labels: Sequence[object], index: int) -> str:
    """Write a class label; targets that are no class are too long for a caption."""
    label = labels[index] if index < len(labels) else None
    return str(label) if isinstance(label, int) else ""


def _captions(result: TrialResult, index: int) -> tuple[str, ...]:
    """Write the headline error; a squared error as PSNR and SSIM where they exist."""
    psnr, ssim = (_score(result, metric, index) for metric in ("psnr", "ssim"))
    if psnr is None or result.headline != BOUNDED_METRIC:
        metric = described(result.headline)
        error = _score(result, result.headline, index)
        return (f"{metric.label} {score(result.headline, error, metric.unit)}",)
    lines = [score("psnr", psnr, "dB")]
    if ssim is not None:
        lines.append(f"SSIM {score('ssim', ssim)}")
    return tuple(lines)
