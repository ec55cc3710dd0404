"""Run folders of version 0.1.0 open today: same page, same numbers, nothing runs again.

The folders and the commands that made them are in ``golden/runs``.
"""

import json
import re
import sqlite3
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exhume.cli import app

RUNS = Path(__file__).parent / "golden" / "runs"
PLAIN = re.compile(r"/(id|setting|status|name)$")
VERDICT = re.compile(r'<p class="verdict">.*</p>')
#: run → (command that resumes it, its settings, its exported JSON)
FOLDERS = {
    "audit": ("audit", "audit.toml", "results.json"),
    "weights": ("audit", "audit.toml", "results.json"),
    "fine-tuning": ("audit", "audit.toml", "results.json"),
    "comparison": ("compare", "compare.toml", "comparison.json"),
    "theory": ("theory", "theory.toml", "theory.json"),
}
every_run = pytest.mark.parametrize("name", FOLDERS)


@pytest.fixture
def folder(name, tmp_path):
    with zipfile.ZipFile(RUNS / f"{name}.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def stored(folder):
    """Return the status, the number of runs and the record of every result."""
    query = "SELECT id, status, runs, record FROM results"
    found = {}
    for path in sorted(folder.rglob("*.sqlite")):
        with sqlite3.connect(path) as database:
            rows = database.execute(query).fetchall()
        database.close()
        found |= {key: (status, runs, text) for key, status, runs, text in rows}
    return found


def leaves(value, path=""):
    """List numbers, names, ids, statuses and infinities by their paths; no prose."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        parts = [leaves(item, f"{path}/{key}") for key, item in items]
        return {where: leaf for part in parts for where, leaf in part.items()}
    kept = value in ("Infinity", "NaN") or PLAIN.search(path)
    return {path: value} if kept or not isinstance(value, str) else {}


def exported(path):
    """Read an export; trials by their ids, for their order is the page's."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if "results" in record:
        record["results"] = {r["id"]: r for r in record["results"]}
    return record


@every_run
def test_the_page_of_an_old_run_has_a_verdict_and_the_same_numbers(name, folder):
    _, _, export = FOLDERS[name]
    verdicts = len(VERDICT.findall((folder / "verdict.html").read_text("utf-8")))
    numbers = leaves(exported(folder / export))
    (folder / export).unlink()
    done = invoke("report", folder)
    assert done.exit_code == 0, done.output + repr(done.exception)
    page = (folder / "report.html").read_text(encoding="utf-8")
    # What is said of the numbers may get better; nothing has to be computed for it.
    assert len(VERDICT.findall(page)) == verdicts
    today = leaves(exported(folder / export))
    for path, value in numbers.items():
        if path.endswith("/chance"):
            continue  # what counts as a guess got stricter
        # Means and fits are computed again, by the kernels of this machine.
        close = pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
        assert today[path] == close, path
    assert len(numbers) > 50


@every_run
def test_nothing_of_an_old_run_is_run_again(name, folder):
    command, settings, _ = FOLDERS[name]
    before = stored(folder)
    failed = {key for key, (status, *_) in before.items() if status == "failed"}
    done = invoke(command, folder / settings, "--out", folder)
    assert done.exit_code == (1 if failed else 0), done.output + repr(done.exception)
    after = stored(folder)
    # A chance level that came later is the only thing that is missing.
    new = [json.loads(after[key][2]) for key in after.keys() - before.keys()]
    assert all(r["spec"]["attack"] == {"name": "public-centres"} for r in new)
    for key, (status, runs, record) in before.items():
        # What failed is tried again, as always; everything else is as it was.
        if key in failed:
            assert after[key][1] == runs + 1
        else:
            assert after[key] == (status, runs, record)
    assert bool(failed) == (name == "audit")


def test_old_runs_hold_every_status_and_an_infinite_number():
    with zipfile.ZipFile(RUNS / "audit.zip") as archive:
        trials = json.loads(archive.read("results.json"))["results"]
    assert {t["status"] for t in trials} == {"done", "failed", "not-applicable"}
    assert any((t["privacy"] or {}).get("epsilon") == "Infinity" for t in trials)
