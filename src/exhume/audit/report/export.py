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
from exhume.audit.report.page import page
from exhume.audit.report.results import metrics_of, ordered
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
    records = []
    for result in results:
        values = {f.name: getattr(result, f.name) for f in fields(result)}
        values["spec"] = asdict(result.spec)
        values["arrays"] = {name: list(a.shape) for name, a in result.arrays.items()}
        record = {
            "id": result.spec.id,
            "setting": result.spec.setting,
            "defense": defense_label(result.spec.defenses),
            **values,
            "flags": [asdict(flag) for flag in flags.get(result.spec.id, ())],
        }
        records.append(record)
    return dumps({"settings": asdict(settings), "results": records})


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
    """Return the rows of one trial: what its examples share stands in each of them."""
    spec = result.spec
    bound, privacy = result.bound or {}, result.privacy or {}
    strength = defense_strength(spec.defenses) or (None, None)
    before = {
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
        "defense": defense_label(spec.defenses),
        "defense_family": defense_family(spec.defenses),
        "strength_option": strength[0],
        "strength": strength[1],
        "attack": _options(spec.attack),
        "bound": _options(spec.bound),
    }
    after = {
        "baseline": result.baseline,
        "placebo": result.spec.placebo,
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
        "bound_standard_error": (
            bound.get("standard_error") if "quantity" in bound else None
        ),
        "bound_binds": whom(result) or None,
        "epsilon": privacy.get("epsilon"),
        "delta": privacy.get("delta"),
        "flags": " ".join([flag.kind for flag in flags.get(spec.id, ())]),
    }
    rows = []
    # One row without an example where a trial scored none.
    for index in range(max(map(len, result.scores.values()), default=0)) or (None,):
        own = {
            "example": index,
            "true_label": _item(result.true_labels, index),
            "guessed_label": _item(result.guessed_labels, index),
        }
        scores = {m: _item(result.scores.get(m, []), index) for m in metrics}
        rows.append({**before, **own, **scores, **after})
    return rows


def _item(values: Sequence[Any], index: int | None) -> Any:
    return values[index] if index is not None and index < len(values) else None


def _options(options: dict[str, Any] | None) -> str | None:
    """Write a bare name where there are no options, else JSON."""
    if options is None:
        return None
    if set(options) == {"name"}:
        return options["name"]
    return json.dumps(options, sort_keys=True)
