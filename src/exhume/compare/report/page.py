"""Render the report of a comparison as one HTML page without any outside reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from exhume.audit.report.results import described
from exhume.compare.findings import ATTACKS, Comparison
from exhume.compare.leaderboard import boards, undefended_row
from exhume.compare.places import at_budget
from exhume.compare.remarks import dropped
from exhume.compare.report.plot import frontier_plot, legend
from exhume.compare.settings import CompareSettings
from exhume.compare.wording import shown, told_loss
from exhume.report.page import render
from exhume.report.words import number, object_label, several
from exhume.runs.records import BOUNDED_METRIC
from exhume.runs.settings import to_toml

__all__ = ["page", "recommendations", "summary"]


def page(comparison: Comparison) -> str:
    """Render the page."""
    listed = boards(comparison)
    rows = [row for board in listed for row in board.rows]
    view = {
        "title": comparison.settings.title,
        "quantity": described(comparison.metric).quantity,
        "squared": comparison.metric == BOUNDED_METRIC,
        "summary": summary(comparison),
        "recommendations": recommendations(comparison),
        "tiles": _tiles(comparison),
        "boards": listed,
        "undefended": undefended_row(comparison),
        "dropped": dropped("no defense", [comparison.undefended]),
        "legend": legend(comparison),
        "plot": frontier_plot(comparison),
        "reasons": _reasons(rows),
        "setting": _setting(comparison),
        "attacks": f"{ATTACKS}/report.html",
        "searches": _searches(comparison),
        "toml": to_toml(comparison.settings),
        "folder": Path(comparison.folder).name,
    }
    return render("exhume.compare.report", "compare.html.j2", view)


def summary(comparison: Comparison) -> list[str]:
    """Say in one sentence per budget which defense is the best, and by how much."""
    told = []
    for board in boards(comparison):
        if not board.rows:
            told.append(f"At {board.title}, no defense was brought to this utility.")
            continue
        first = board.rows[0]
        best = (
            f"At {board.title}, {first.defense} ({first.strength}) protects best: the "
            f"strongest attack has an error of {first.error}"
            f"{' (interpolated to the budget)' if first.interpolated else ''}"
        )
        worst = board.rows[-1]
        if worst is not first:
            best += f", against {worst.error} for {worst.defense}"
        if board.rivals:
            best += (
                f". Within the 95 % intervals of the differences, "
                f"{several(list(board.rivals))} may be as good"
            )
        told.append(f"{best}.")
    return told


def recommendations(comparison: Comparison) -> list[str]:
    """Answer the question of `advise` for the best error at every budget."""
    told = []
    for budget in comparison.settings.budgets:
        places = [at_budget(f, budget) for f in comparison.frontiers]
        found = [place for place in places if place is not None]
        if not found:
            continue
        best = max(found, key=lambda place: place.error)
        asked = _first_digit(best.error)
        # A family that was not attacked above the budget stands at its own loss.
        most = max(budget, best.loss)
        advice = comparison.advise(min_error=asked, max_loss=most)
        told.append(str(advice))
    return told


def _first_digit(value: float) -> float:
    """Round down to one significant digit."""
    if value <= 0:
        return math.ulp(0.0)
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.floor(value / unit * (1 + 1e-12)) * unit:.1g}")


def _tiles(comparison: Comparison) -> list[tuple[str, str]]:
    utility = comparison.settings.utility
    tiles = [(str(len(comparison.frontiers)), "families of defenses")]
    if utility in comparison.baseline:
        value = comparison.baseline[utility]
        what = {"accuracy": "accuracy undefended", "loss": "training loss undefended"}
        tiles.append((shown(utility, value), what.get(utility, utility)))
    bare = comparison.undefended.strongest
    if bare is not None:
        tiles.append((number(bare.error), "attack's error undefended"))
    if comparison.chance is not None:
        tiles.append((number(comparison.chance), "error of a mere guess"))
    return tiles


def _setting(comparison: Comparison) -> list[tuple[str, str]]:
    s = comparison.settings
    budgets = several([shown(s.utility, budget) for budget in s.budgets])
    trained = (
        f"{s.steps} steps of {s.optimiser}, one client of batch size {s.batch_size} "
        f"each, learning rate {_rate(s)}; "
        f"{len(s.training_seed_list)} seeds"
    )
    rows = [
        ("Data", object_label("data", s.data)),
        ("Network", object_label("model", s.model)),
        (
            "Utility",
            {
                "accuracy": f"accuracy on {s.held_out} held-out examples",
                "loss": "mean loss on the training data",
                "u1": "first-order decrease of one step (U1)",
                "u2": "second-order cost of one step (U2)",
            }[s.utility],
        ),
        ("Budgets", f"{budgets}, each within {shown(s.utility, s.tolerance)}"),
    ]
    if s.utility in ("accuracy", "loss"):
        rows.append(("Training", trained))
    return [
        *rows,
        (
            "Public data",
            f"defenses are calibrated on {s.public_examples} examples, drawn at random "
            f"for every seed, in training and under attack; attackers have all but the "
            f"private batch",
        ),
        ("Attacks", several([object_label("attack", a) for a in s.attacks])),
        (
            "Attacked",
            f"one client at the initial weights, batch size {s.batch_size}; "
            f"{len(s.seed_list)} seeds",
        ),
        ("Threat model", s.threat),
        ("Bounds", several([object_label("bound", b) for b in s.bounds]) or "none"),
    ]


def _rate(s: CompareSettings) -> str:
    if s.schedule == "falling":
        return f"from {s.learning_rate:g} falling to 0"
    return f"{s.learning_rate:g} throughout"


def _reasons(rows: Any) -> list[tuple[str, str]]:
    """List why there is no bound, with the defenses that it concerns."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.reason:
            found.setdefault(row.reason, {})[row.defense] = None
    return [(several(list(names)), reason) for reason, names in found.items()]


def _searches(comparison: Comparison) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """List every budget of every family, and what became of it."""
    utility = comparison.settings.utility
    listed = []
    for frontier in comparison.frontiers:
        rows = []
        for settled in frontier.settled:
            reached = "–"
            if settled.step is not None:
                strength = frontier.family.told(settled.step.strength)
                reached = f"{shown(utility, settled.step.loss)} at {strength}"
            verdict = "equal" if settled.within else settled.reason
            rows.append((told_loss(utility, settled.budget), reached, verdict))
        if frontier.failure:
            rows.append(("", "–", frontier.failure))
        listed.append((frontier.family.label, rows))
    return listed
