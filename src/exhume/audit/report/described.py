"""What the metrics and the examples of stored results are called, and how drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from exhume.errors import ExhumeError, UnknownName
from exhume.problem.event import EventSpec
from exhume.registry import find
from exhume.report.pictures import Picture, line
from exhume.runs.records import TrialResult

__all__ = [
    "Described",
    "described",
    "drawing",
    "event_of",
    "examples_of",
    "headline",
    "metrics_of",
]

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
    """Describe a metric, given its key; one that is not known here by the key alone."""
    name, bracket, options = metric.partition("(")
    with_options = f" {bracket}{options}" if options else ""
    try:
        found: Any = find("metric", name, own="loaded")
    except UnknownName:
        found = None
    words = re.sub("[-_]", " ", name.rpartition(".")[2])
    label = (getattr(found, "label", "") or words) + with_options
    if found is None:
        return Described(label, label)
    first = "descending" if found.higher_is_better else "ascending"
    return Described(label, found.quantity or label, found.unit, first)


def headline(results: Sequence[TrialResult]) -> str:
    """Return the metric that ranks the attacks of some trials on one kind of data."""
    for result in results:
        if result.event is not None:
            return result.headline
    return "mse"


def metrics_of(results: Sequence[TrialResult]) -> list[str]:
    """List the metrics of some trials in the order of the columns.

    The usual ones and those that the audit names are there even where they do not fit
    the data, and say why.
    """
    scored = set[str]().union(*(r.scores for r in results))
    known = scored.union(*(r.not_applicable for r in results))
    first = dict.fromkeys([*(r.headline for r in results if r.scores), *_ORDER])
    asked = {options["name"] for r in results for options in r.spec.metrics}
    others = scored | {metric for metric in known if metric.partition("(")[0] in asked}
    return [m for m in first if m in known] + sorted(others.difference(first))


def event_of(result: TrialResult) -> EventSpec | None:
    """Return the event that a result recorded.

    Results of versions that did not record it have that of the shape of their arrays.
    It is None if nothing tells it, or if its kind is neither registered nor
    a module that is imported already.
    """
    if result.event is not None:
        return _recorded(json.dumps(result.event))
    shapes = [array.shape[1:] for array in result.arrays.values() if array.ndim > 1]
    return _of_shape(shapes[0]) if shapes else None


def drawing(result: TrialResult) -> Callable[[np.ndarray, np.ndarray], Picture]:
    """Return what draws an example over its truth; lines where the event is unknown."""
    event = event_of(result)
    return line if event is None else event.draw


def examples_of(results: Sequence[TrialResult]) -> tuple[str, bool]:
    """Say what the examples of some results are.

    Returns:
        what one is called: the word of their event if all agree; and whether some are
        grids of pixels.
    """
    known = [e for e in map(event_of, results) if e is not None]
    nouns = list(dict.fromkeys(event.noun for event in known))
    noun = nouns[0] if len(nouns) == 1 else "example"
    return noun, any(event.grid is not None for event in known)


@lru_cache(maxsize=16)
def _recorded(record: str) -> EventSpec | None:
    try:
        return EventSpec.from_record(json.loads(record), own="loaded")
    except ExhumeError:
        return None


@lru_cache(maxsize=16)
def _of_shape(shape: tuple[int, ...]) -> EventSpec | None:
    try:
        return EventSpec.of_shape(shape)
    except ExhumeError:
        return None
