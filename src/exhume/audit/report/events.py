"""The event of stored results: how their examples are drawn, and whether on a grid."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from exhume.errors import ExhumeError
from exhume.problem.event import EventSpec
from exhume.report.pictures import Picture, line
from exhume.runs.records import TrialResult

__all__ = ["drawing", "event_of", "has_pixels", "noun_of"]


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


def noun_of(results: Sequence[TrialResult]) -> str:
    """Return what one example is called: the word of their event if all agree."""
    events = [event_of(result) for result in results]
    nouns = {event.noun for event in events if event is not None}
    return nouns.pop() if len(nouns) == 1 else "example"


def has_pixels(results: Sequence[TrialResult]) -> bool:
    """Say whether the examples of some results are grids of pixels."""
    events = [event_of(result) for result in results]
    return any(event is not None and event.grid is not None for event in events)


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
