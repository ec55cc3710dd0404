"""The results of an audit as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from exhume.audit.report.results import Scenario
    from exhume.audit.report.tables import ResultRow
    from exhume.audit.settings import AuditSettings
    from exhume.runs.records import TrialResult

__all__ = ["other_bounds", "tables"]

#: headings that are shorter than the label of the metric
_SHORT = {"label-accuracy": "labels"}


def tables(settings: AuditSettings, results: Sequence[TrialResult]) -> list[Table]:
    """Make two tables per data source: what leaked, and the medians behind it.

    The first has the strongest attack on each defense, and how many examples it
    recovers. The second has medians over examples, beside the bound, the mean that it
    bounds, and ε; labels are right or wrong, so theirs is the share that is right. Rows
    of chance levels are marked: an attack that is no better has read nothing private.
    """
    from exhume.audit.report.results import metrics_of, scenarios

    # PSNR and SSIM of vectors are not defined: no column of dashes for them.
    scored = {metric for result in results for metric in result.scores}
    metrics = [m for m in metrics_of(results) if m in scored]
    return [
        table
        for scenario in scenarios(settings, results)
        for table in (_findings(scenario), _table(scenario, metrics))
    ]


def other_bounds(settings: AuditSettings, results: Sequence[TrialResult]) -> list[str]:
    """Say what ε in the table means, which other bounds hold, and why one does not.

    A bound that binds not every attack, or is not on the squared error, is told with
    whom it binds and what it is on.
    """
    from exhume.audit.report.bounds import bound_rows, promises
    from exhume.audit.report.results import scenarios

    lines, terms = list[str](), dict[str, None]()
    missing: dict[tuple[str, str], dict[str, None]] = {}
    for scenario in scenarios(settings, results):
        for row in bound_rows(scenario):
            for reason in row.reasons:
                missing.setdefault((row.bound, reason), {})[row.defense] = None
            if row.mean is not None and not row.strict:
                binds = f"; binds {row.binds}" if row.binds else ""
                lines.append(
                    f"{row.bound} ({row.defense}): {row.quantity} {row.value}{binds}"
                )
        terms |= {row.terms: None for row in promises(scenario) if row.terms}
    lines += [f"ε at {term}" for term in terms]
    return lines + [
        f"no bound {bound} ({', '.join(at)}): {why}"
        for (bound, why), at in missing.items()
    ]


def _findings(scenario: Scenario) -> Table:
    from exhume.audit.report.verdict import findings

    table = Table(title=f"{scenario.name}: what leaks", box=None, pad_edge=False)
    table.add_column("defense", overflow="fold")
    table.add_column("strongest attack", overflow="fold")
    for heading in ("recovered", "95 % interval", "median", "a guess"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for found in findings(scenario):
        table.add_row(
            found.defense.label,
            f"{found.attack} (recognition)" if found.recognises else found.attack,
            found.share,
            found.interval,
            "–" if found.reached is None else found.reached.measured,
            "–" if found.guessed is None else found.guessed.measured,
            found.word,
        )
    return table


def _table(scenario: Scenario, metrics: list[str]) -> Table:
    from exhume.audit.report.bounds import promises, tightest
    from exhume.audit.report.results import described
    from exhume.audit.report.tables import result_rows

    shares = ", labels are the share that is right" * ("label-accuracy" in metrics)
    table = Table(
        title=f"{scenario.name}: medians over examples (the bound is on the mean in "
        f"order{shares})",
        box=None,
        pad_edge=False,
    )
    table.add_column("defense", overflow="fold")
    table.add_column("attack", overflow="fold")
    for metric in metrics:
        heading = _SHORT.get(metric, described(metric).label)
        table.add_column(heading, justify="right", no_wrap=True)
    strict = tightest(scenario)
    if strict:
        table.add_column("mean MSE", justify="right", no_wrap=True)
    table.add_column("MSE bound", justify="right", no_wrap=True)
    promised = {row.defense: row.epsilon for row in promises(scenario)}
    table.add_column("ε", justify="right", no_wrap=True)
    bounds = {defense: row.value for defense, row in strict.items()}
    previous = None
    for row in result_rows(scenario, {}, metrics):
        first = row.defense != previous
        if first and previous is not None:
            table.add_section()
        table.add_row(
            row.defense if first else "",
            f"{row.attack} (chance)" if row.baseline else row.attack,
            *(number.text for number in row.scores),
            *([_mean(scenario, row)] if strict else []),
            bounds.get(row.defense, "–") if first else "",
            promised.get(row.defense, "–") if first else "",
            style="dim" if row.baseline else None,
        )
        previous = row.defense
    return table


def _mean(scenario: Scenario, row: ResultRow) -> str:
    """Write the mean that a bound is about; – where labels do not order a batch."""
    from exhume.audit.report.bounds import mean_in_order
    from exhume.report.words import number

    return number(mean_in_order(scenario, scenario.defenses[row.place], row.attack))
