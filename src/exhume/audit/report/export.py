"""Write a report: the page, JSON (one record per trial), CSV (one row per example)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from exhume.audit.flags import find_flags
from exhume.audit.report.described import metrics_of
from exhume.audit.report.grouping import ordered
from exhume.audit.report.page import page
from exhume.audit.report.verdict import Flags
from exhume.audit.settings import AuditSettings
from exhume.report.words import defense_family, defense_label, defense_strength
from exhume.runs.records import TrialResult, dumps
from exhume.runs.settings import write_text
from exhume.trials.trial import whom

__all__ = ["to_csv", "to_json", "write_report"]


def write_report(
    settings: AuditSettings, results: Sequence[TrialResult], folder: Path
) -> Path:
    """Write report.html, results.json and results.csv into a folder.

    The same results give the same bytes, whatever order they come in.

    Args:
        settings: of the audit.
        results: the trials that ended; an interrupted audit may lack some.
        folder: of the run; made if absent.

    Returns:
        path of report.html.
    """
    in_order = ordered(settings, results)
    flags = find_flags(in_order)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("results.json", to_json(settings, in_order, flags)),
        ("results.csv", to_csv(in_order, flags)),
        ("report.html", page(settings, in_order, flags)),
    ):
        write_text(folder / name, text)
    return folder / "report.html"


def to_json(
    settings: AuditSettings, results: Sequence[TrialResult], flags: Flags
) -> str:
    """Write everything but the pictures, as strict JSON.

    Arrays stay in the run's store: the JSON holds their shapes.
    """
    records = [_record(result, flags) for result in results]
    return dumps({"settings": asdict(settings), "results": records})


def _record(result: TrialResult, flags: Flags) -> dict[str, Any]:
    values = {f.name: getattr(result, f.name) for f in fields(result)}
    values["spec"] = asdict(result.spec)
    values["arrays"] = {name: list(a.shape) for name, a in result.arrays.items()}
    return {
        "id": result.spec.id,
        "setting": result.spec.setting,
        "defense": _defense(result),
        **values,
        "flags": [asdict(flag) for flag in flags.get(result.spec.id, ())],
    }


def _defense(result: TrialResult) -> str:
    stack = result.spec.defenses
    return defense_label(stack) if stack else "no defense"


def to_csv(results: Sequence[TrialResult], flags: Flags) -> str:
    """Write one row per example of an attack, and one per bound or failed trial."""
    metrics = metrics_of(results)
    rows = [row for result in results for row in _rows(result, metrics, flags)]
    stream = io.StringIO()
    names = list(rows[0]) if rows else ["id"]
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _rows(
    result: TrialResult, metrics: Sequence[str], flags: Flags
) -> list[dict[str, Any]]:
    size = max(map(len, result.scores.values()), default=0)
    shared = _shared(result)
    tail = _tail(result, flags)
    return [
        {
            **shared,
            "example": index,
            "true_label": _item(result.true_labels, index),
            "guessed_label": _item(result.guessed_labels, index),
            **{m: _item(result.scores.get(m, []), index) for m in metrics},
            **tail,
        }
        for index in (range(size) if size else [None])
    ]


def _item(values: Sequence[Any], index: int | None) -> Any:
    return values[index] if index is not None and index < len(values) else None


def _shared(result: TrialResult) -> dict[str, Any]:
    spec = result.spec
    strength = defense_strength(spec.defenses) if spec.defenses else None
    return {
        "id": spec.id,
        "setting": spec.setting,
        "status": result.status,
        "reason": result.reason,
        "data": _options(spec.data),
        "model": _options(spec.model),
        "loss": spec.loss,
        "mode": spec.mode,
        "dtype": spec.dtype,
        "classes": spec.classes,
        "observation": _options(spec.observation),
        "batch_size": spec.batch_size,
        "seed": spec.seed,
        "threat": spec.threat,
        "prior": _options(spec.prior),
        "defense": _defense(result),
        "defense_family": defense_family(spec.defenses) if spec.defenses else "",
        "strength_option": strength[0] if strength else None,
        "strength": strength[1] if strength else None,
        "attack": _options(spec.attack),
        "bound": _options(spec.bound),
    }


def _tail(result: TrialResult, flags: Flags) -> dict[str, Any]:
    bound = result.bound or {}
    privacy = result.privacy or {}
    risk = "quantity" in bound
    return {
        "baseline": result.baseline,
        "outcome": result.outcome[0] if result.outcome else None,
        "objective": result.objective,
        "objective_at_truth": result.objective_at_truth,
        "adaptive": result.adaptive,
        "cpu_seconds": result.cost.get("cpu_seconds"),
        "wall_seconds": result.cost.get("wall_seconds"),
        "evaluations": result.cost.get("evaluations"),
        "trial_seconds": result.seconds,
        "bound_mse": bound.get("mse"),
        "bound_mse_standard_error": bound.get("mse_standard_error"),
        "bound_quantity": bound.get("quantity"),
        "bound_value": bound.get("value"),
        "bound_standard_error": bound.get("standard_error") if risk else None,
        "bound_binds": whom(result) or None,
        "epsilon": privacy.get("epsilon"),
        "delta": privacy.get("delta"),
        "flags": " ".join(flag.kind for flag in flags.get(result.spec.id, ())),
    }


def _options(options: dict[str, Any] | None) -> str | None:
    """Write a bare name where there are no options, else JSON."""
    if options is None:
        return None
    if set(options) == {"name"}:
        return options["name"]
    return json.dumps(options, sort_keys=True)
