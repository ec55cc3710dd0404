"""Metrics as a report names and orders them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exhume.errors import UnknownName
from exhume.registry import find
from exhume.runs.records import TrialResult

__all__ = ["Described", "described", "headline", "metrics_of"]

#: metrics in the order of the columns, behind the headline; others follow by name
_ORDER = ("mse", "psnr", "ssim", "ncc", "label-accuracy")


@dataclass(frozen=True)
class Described:
    """A metric in words, see :class:`~exhume.problem.metric.Metric`.

    Attributes:
        label: heading of its column.
        quantity: what it is in a sentence.
        unit: of its values, or "".
        first: order in which a table shows the best first.
    """

    label: str
    quantity: str
    unit: str = ""
    first: str = "ascending"

    def axis(self, whose: str) -> str:
        """Write the label of an axis: quantity, whose it is, and the unit."""
        return f"{self.quantity} {whose}" + (f", {self.unit}" if self.unit else "")


def described(metric: str) -> Described:
    """Describe a metric; one that is not known here by its name alone."""
    try:
        found: Any = find("metric", metric, own="loaded")
    except UnknownName:
        found = None
    label = getattr(found, "label", "") or metric.replace("-", " ")
    if found is None:
        return Described(label, label)
    first = "descending" if found.higher_is_better else "ascending"
    return Described(label, found.quantity or label, found.unit, first)


def headline(results: Sequence[TrialResult]) -> str:
    """Return the metric that ranks the attacks of some trials on one kind of data."""
    return next((r.headline for r in results if r.event is not None), "mse")


def metrics_of(results: Sequence[TrialResult]) -> list[str]:
    """List the metrics of some trials in the order of the columns.

    The usual ones are there even where they do not fit the data, and say why.
    """
    scored = dict.fromkeys(metric for r in results for metric in sorted(r.scores))
    refused = {metric for r in results for metric in r.not_applicable}
    first = dict.fromkeys([*(r.headline for r in results if r.scores), *_ORDER])
    usual = [metric for metric in first if metric in scored or metric in refused]
    return [*usual, *sorted(metric for metric in scored if metric not in first)]
