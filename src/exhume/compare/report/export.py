"""A comparison as strict JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from exhume.compare.findings import Comparison
from exhume.compare.frontier import Frontier
from exhume.compare.leaderboard import boards
from exhume.compare.places import at_budget
from exhume.runs.records import dumps

__all__ = ["to_json"]


def to_json(comparison: Comparison) -> str:
    """Write settings, frontiers and leaderboards."""
    record = {
        "settings": asdict(comparison.settings),
        "baseline": comparison.baseline,
        "chance": comparison.chance,
        "undefended": asdict(comparison.undefended),
        "frontiers": [
            _frontier(frontier, comparison.settings.budgets)
            for frontier in comparison.frontiers
        ],
        "leaderboards": [asdict(board) for board in boards(comparison)],
    }
    return dumps(record)


def _frontier(frontier: Frontier, budgets: Sequence[float]) -> dict[str, Any]:
    family = frontier.family
    return {
        "family": family.label,
        "option": family.option,
        "failure": frontier.failure,
        "budgets": [asdict(settled) for settled in frontier.settled],
        "at_budgets": [_at(frontier, budget) for budget in budgets],
        "points": [
            {
                **asdict(point),
                "defenses": [] if point.strength is None else family.at(point.strength),
            }
            for point in frontier.points
        ],
    }


def _at(frontier: Frontier, budget: float) -> dict[str, Any]:
    """Write what is said at a budget, and by the points of which losses."""
    place = at_budget(frontier, budget)
    if place is None:
        return {"budget": budget, "place": None}
    told = {
        "loss": place.loss,
        "strength": place.strength,
        "error": place.error,
        "interval": place.interval,
        "per_seed": place.per_seed,
        "floor": place.floor,
        "floor_is_bound": place.floor is not None and not place.interpolated,
        "interpolated": place.interpolated,
        "between": [point.loss for point in place.points],
    }
    return {"budget": budget, "place": told}
