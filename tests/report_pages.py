"""Trials made by hand, and a reader of the page that a report of them gives."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from exhume.audit.report.export import write_report
from exhume.audit.settings import AuditSettings
from exhume.runs.records import TrialResult, TrialSpec

NOISE = ({"name": "gaussian-noise", "std": 0.125, "only": ["*"]},)
CLIPPING = [({"name": "clipping", "max_norm": m, "only": ["*"]},) for m in (10.0, 0.1)]
BASELINES = {"prior-mean", "public-centres"}


def spec(attack=None, defenses=(), seed=0, **changes) -> TrialSpec:
    given = {"data": {"name": "faces"}, "model": {"name": "lenet-zhu"}}
    chosen = None if attack is None else {"name": attack}
    return TrialSpec(
        **{**given, **changes}, attack=chosen, defenses=tuple(defenses), seed=seed
    )


def trial(attack, mse, *, size=1, shape=(1, 6, 6), **changes) -> TrialResult:
    """A finished attack whose error is ``mse`` in every example."""
    of_spec = TrialSpec.__dataclass_fields__
    given = {name: changes.pop(name) for name in list(changes) if name in of_spec}
    rng = np.random.default_rng(len(attack))
    truth = rng.random((size, *shape), dtype=np.float32)
    guess = np.clip(truth + np.float32(mse**0.5), 0, 1)
    psnr = [300.0 if mse == 0 else float(-10 * np.log10(mse))] * size
    result = {
        "status": "done",
        "baseline": attack in BASELINES,
        "outcome": ("CONVERGED", "The objective stopped decreasing."),
        "scores": {"mse": [mse] * size, "psnr": psnr, "ssim": [0.5] * size},
        "true_labels": [3] * size,
        "guessed_labels": [3] * size,
        "cost": {"cpu_seconds": 1.5, "wall_seconds": 1.75, "evaluations": 20},
        "arrays": {"truth": truth, "guess": guess},
        **changes,
    }
    return TrialResult(spec=spec(attack, **given, batch_size=size), **result)


def bound(
    mse=None,
    *,
    name="bayesian-cramer-rao",
    defenses=NOISE,
    seed=0,
    size=1,
    error=0.0,
    details=(),
    record=(),
    **given,
) -> TrialResult:
    """A finished bound on the squared error; ``record`` changes what it says."""
    wanted = TrialSpec(
        data={"name": "faces"},
        model={"name": "lenet-zhu"},
        defenses=tuple(defenses),
        seed=seed,
        batch_size=size,
        bound={"name": name},
    )
    if mse is None:
        reason = "No noise."
        return TrialResult(spec=wanted, status="not-applicable", reason=reason, **given)
    value = {
        "name": name,
        "mse": mse,
        "mse_standard_error": error,
        "assumptions": ("The data follow the fitted prior.",),
        "reference": "Van Trees 1968",
        "details": dict(details),
        **dict(record),
    }
    return TrialResult(spec=wanted, status="done", bound=value, **given)


def risk(value=0.25, *, quantity="largest probability of success", **given):
    """A finished bound on something that is not a squared error."""
    made = bound(1.0, name="reconstruction-robustness", **given)
    record = {k: v for k, v in (made.bound or {}).items() if not k.startswith("mse")}
    record |= {"quantity": quantity, "value": value, "standard_error": 0.0}
    return replace(made, bound={**record, "binds": "EVERY_ATTACK"})


SETTINGS = AuditSettings(title="An audit", attacks=["gauss-newton", "dlg"], seeds=2)


class Page(HTMLParser):
    """Reads a page: tables as rows of cell texts, attributes, tags that stay open."""

    VOID = frozenset({"meta", "img", "br", "line", "rect", "input", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.section = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in {"td", "th"}:
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open or "script" in self.open:
            return
        self.sections[self.section] = self.sections.get(self.section, "") + data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def table(self, heading: str) -> list[dict[str, str]]:
        """Rows of the table whose first heading is this one, by heading."""
        for rows in self.tables:
            head = [" ".join(cell.split()) for cell in rows[0]]
            if head[0] == heading and "original" not in head:
                body = [[" ".join(c.split()) for c in row] for row in rows[1:]]
                return [dict(zip(head, row, strict=True)) for row in body]
        pytest.fail(f"there is no table {heading!r}")

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def written(tmp_path: Path, results, settings=SETTINGS) -> tuple[Page, str]:
    path = write_report(settings, results, tmp_path)
    assert path == tmp_path / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    return page, html


def rows_of(tmp_path: Path) -> list[dict[str, str]]:
    text = (tmp_path / "results.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))
