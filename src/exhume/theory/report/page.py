"""Render scaling experiments as one HTML page without any outside reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from exhume.bounds.rates import RATES
from exhume.report.page import render
from exhume.report.pictures import Picture, Plot, limits, png
from exhume.report.words import count, number, score
from exhume.theory.collect import Curve
from exhume.theory.findings import Findings, to_toml
from exhume.theory.point import PointResult
from exhume.theory.report.plot import legend, plot
from exhume.theory.settings import TheorySettings
from exhume.theory.verdict import HEADINGS, rows, summary

__all__ = ["Group", "page"]

Group = dict[str, Any]

_ORIGINS = {
    "paper": "",
    "second-hand": "second-hand",
    "derived": "derived here",
    "unknown": "",
}


def page(found: Findings) -> str:
    """Render the page."""
    curves = found.curves
    view = {
        "title": found.settings.title,
        "unfinished": unfinished(found),
        "summary": summary(curves),
        "tiles": _tiles(found),
        "headings": HEADINGS,
        "rows": [row.cells for row in rows(curves)],
        "second_hand": any(c.rate.upper.origin == "second-hand" for c in curves),
        "groups": _groups(curves),
        "legend": legend(curves),
        "rates": _rates(),
        "galleries": _galleries(curves),
        "setting": _setting(found.settings),
        "toml": to_toml(found.settings),
    }
    return render("exhume.theory.report", "theory.html.j2", view)


def unfinished(found: Findings) -> str:
    """Say how much is missing, or "" if nothing is."""
    if not found.missing:
        return ""
    return f"This run is not finished: {count(found.missing, 'point')} have not ended."


def _tiles(found: Findings) -> list[tuple[str, str]]:
    points = {r.spec.id: r for c in found.curves for r in c.results}.values()
    below = sum(len(curve.below) for curve in found.curves)
    failed = sum(r.status == "failed" for r in points)
    tiles = [
        (str(len(found.curves)), "experiments"),
        (str(len(points)), "points measured"),
        (str(below), "errors below the bound"),
        (f"{number(sum(r.seconds for r in points))} s", "time of the points"),
    ]
    return [*tiles, (str(failed), "failed")] if failed else tiles


def _groups(curves: Sequence[Curve]) -> list[Group]:
    """Put the experiments of one defense under one heading, in order."""
    listed = []
    numbered = list(enumerate(curves))
    for name, members in groupby(numbered, key=lambda pair: pair[1].rate.name):
        inside = list(members)
        drawn: list[Plot] = [
            found for i, c in inside if (found := plot(c, f"theory-{i}")) is not None
        ]
        row = RATES[name]
        listed.append(
            {
                "name": "no defense" if name == "none" else name.replace("-", " "),
                "upper": row.upper.text + _origin(row.upper.origin),
                "lower": row.lower.text + _origin(row.lower.origin),
                "plots": drawn,
                "effective": [
                    (c.title, [(number(r), number(e)) for r, e in c.effective.items()])
                    for _, c in inside
                    if len(c.effective) > 1
                ],
                "notes": list(dict.fromkeys(n for _, c in inside for n in c.failures)),
            }
        )
    return listed


def _origin(origin: str) -> str:
    told = _ORIGINS[origin]
    return f" ({told})" if told else ""


def _rates() -> list[tuple[str, str, str, list[str]]]:
    """List the table of the theory: name, upper, lower, what each row adds."""
    common = set(RATES["none"].assumptions)
    return [
        (
            name,
            row.upper.text + _origin(row.upper.origin),
            row.lower.text + _origin(row.lower.origin),
            [s for s in row.assumptions if name == "none" or s not in common],
        )
        for name, row in RATES.items()
    ]


def _galleries(curves: Sequence[Curve]) -> list[Group]:
    """Show the images of the last value of every experiment on images, one seed."""
    found = []
    for curve in curves:
        shown = [r for r in curve.results if "truth" in r.arrays]
        if shown:
            last = max(
                (r for r in shown if r.spec.seed == shown[0].spec.seed),
                key=lambda r: shown.index(r),
            )
            found.append(
                {
                    "name": f"{curve.title}, width {last.spec.width}",
                    "lines": _pictures(last),
                    "axis": curve.axis,
                    "arms": list(curve.similarity),
                    "rows": _similarities(curve),
                }
            )
    return found


def _similarities(curve: Curve) -> list[list[str]]:
    """List place, then the mean SSIM and the smallest one of every arm."""
    similarity = curve.similarity
    places = sorted({at for by_place in similarity.values() for at in by_place})
    return [
        [
            f"{at:g}",
            *(_spread(by_place.get(at, {})) for by_place in similarity.values()),
        ]
        for at in places
    ]


def _spread(by_seed: Mapping[int, Sequence[float]]) -> str:
    values = [value for seed in by_seed.values() for value in seed]
    if not values:
        return "–"
    return f"{score('ssim', fmean(values))} ({score('ssim', min(values))})"


def _pictures(result: PointResult) -> list[list[Picture]]:
    rows = []
    side = _side(result.spec.dimension)
    for index, flat in enumerate(result.arrays["truth"]):
        truth = flat.reshape(1, side, side)
        low, high = limits(truth)
        low = min(low, float(truth.min()))
        high = float(truth.max())
        row = [_picture(truth, ("original",), low, high)]
        for arm, error in result.errors.items():
            guess = result.arrays[arm][index].reshape(1, side, side)
            captions = [f"{arm}, RMS {number(error)}"]
            if arm in result.similarity:
                captions.append(f"SSIM {score('ssim', result.similarity[arm][index])}")
            row.append(_picture(guess, captions, low, high))
        rows.append(row)
    return rows


def _side(dimension: int) -> int:
    return round(dimension**0.5)


def _picture(image: Any, captions: Sequence[str], low: float, high: float) -> Picture:
    return Picture(
        alt=", ".join(captions),
        captions=tuple(captions),
        png=png(image, low, high),
        width=image.shape[-1],
    )


def _setting(s: TheorySettings) -> list[tuple[str, str]]:
    return [
        ("Network", f"two layers, width {s.width}, {s.activation}, a_j = 1/m"),
        ("Hidden weights", "independent N(0, 1)"),
        ("Inputs", f"{count(s.batch_size, 'input')} of norm 1 in {s.dimension} dims"),
        ("Labels", "±1, alternating; unknown to the attack"),
        ("Loss", f"mean squared error; the last layer has the constant {s.bias:g}"),
        ("Released", f"gradient of the {s.layer} layer"),
        ("Noise on every release", f"σ = {s.noise:g} in natural units"),
        ("Seeds", ", ".join(map(str, s.seed_list))),
    ]
