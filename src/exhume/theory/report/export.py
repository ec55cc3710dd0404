"""Scaling experiments as strict JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from exhume.runs.records import dumps
from exhume.theory.collect import Curve, Measured
from exhume.theory.findings import Findings
from exhume.theory.settings import as_plain
from exhume.theory.verdict import summary, verdict

__all__ = ["to_json"]


def to_json(found: Findings) -> str:
    """Write settings, exponents and every mean."""
    settings = asdict(found.settings)
    settings["experiments"] = [as_plain(e) for e in found.settings.experiments]
    record = {
        "settings": settings,
        "missing": found.missing,
        "summary": summary(found.curves),
        "curves": [_curve(curve) for curve in found.curves],
    }
    return dumps(record)


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "title": curve.title,
        "row": curve.rate.name,
        "over": curve.experiment.sweep,
        "axis": curve.axis,
        "upper": {
            "rate": curve.rate.upper.text,
            "origin": curve.rate.upper.origin,
            "exponent": curve.upper,
        },
        "lower": {
            "rate": curve.rate.lower.text,
            "origin": curve.rate.lower.origin,
            "exponent": curve.lower,
        },
        "arms": [{**_line(arm), "verdict": verdict(curve, arm)} for arm in curve.arms],
        "bound": None if curve.floor is None else _line(curve.floor),
        "published": curve.experiment.published,
        "effective_ratio": curve.effective,
        "below_the_bound": [list(one) for one in curve.below],
        "compared_with_the_bound": curve.compared,
        "ssim": curve.similarity,
        "notes": curve.failures,
    }


def _line(measured: Measured) -> dict[str, Any]:
    return {
        "name": measured.name,
        "slope": None if measured.slope is None else asdict(measured.slope),
        "means": measured.means,
        "values": measured.values,
    }
