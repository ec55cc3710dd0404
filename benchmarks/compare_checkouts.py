"""Do two checkouts compute the same bits? Small trials in both, on this machine.

    python benchmarks/compare_checkouts.py OLD NEW              # every row
    python benchmarks/compare_checkouts.py OLD NEW --row kkt    # labels with "kkt"

Runs the table of ``small_trials.py`` in each checkout with its own interpreter
(``.venv/bin/python``, else this one), its own ``src`` and one thread, and compares
SHA-256 of what came out: the id of the completed spec, status and reason, estimates,
scores, labels, objectives, the course of the objective, evaluations, bound values and
maps, facts, guarantees and notes. Times and versions are left out. Bits differ between
processors, so no hash is kept: both sides are computed here, side by side.

Prints each part that differs with its largest relative difference, and every row that
failed, for a trial that failed compares nothing; exits with 1 if any part differs.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import small_trials

Row = dict[str, Any]

#: where a name may be found, the newest place first; modules move, these are kept
PLACES = {
    "run_trial": ("exhume.audit",),
    "TrialSpec": ("exhume.audit",),
    "Checked": ("exhume.audit.settings", "exhume.audit.sweep"),
    "UtilitySpec": ("exhume.trials.utility", "exhume.compare.utility"),
    "measure": ("exhume.trials.utility", "exhume.compare.utility"),
    "PointSpec": ("exhume.theory.point",),
    "theory.measure": ("exhume.theory.measure",),
}
#: parts of a result that measure time, or that have columns of their own here
_LEFT_OUT = {"spec", "seconds", "versions", "arrays"}
_SECONDS = 2  # the column of a trace
_KINDS = ("attack", "bound", "data", "defense", "model", "observation", "prior")


def found(name: str) -> Any:
    """Import something from the first of its places that has it."""
    for module in PLACES[name]:
        try:
            return getattr(importlib.import_module(module), name.rsplit(".", 1)[-1])
        except (ModuleNotFoundError, AttributeError):
            continue
    msg = f"{name} is in none of {', '.join(PLACES[name])}; add its place to PLACES"
    raise SystemExit(msg)


# --- in a checkout -------------------------------------------------------------------


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the options of every registered object, as a sweep does."""
    checked = found("Checked")()

    def full(kind: str, options: Any) -> Any:
        return None if options is None else checked.options(kind, options)

    ready = {k: full(k, v) if k in _KINDS else v for k, v in given.items()}
    stack = given.get("defenses", [])
    ready["defenses"] = tuple(full("defense", options) for options in stack)
    checked.report()
    return ready


def jobs() -> dict[str, tuple[Any, Any]]:
    """List every row: the function that computes it, and its spec."""
    rows: dict[str, tuple[Any, Any]] = {}
    for label, given in small_trials.trials().items():
        rows[label] = (found("run_trial"), found("TrialSpec")(**completed(given)))
    for label, given in small_trials.TRAININGS.items():
        rows[label] = (found("measure"), found("UtilitySpec")(**completed(given)))
    for label, given in small_trials.POINTS.items():
        spec = found("PointSpec")(**{**given, "arms": tuple(given["arms"])})
        rows[label] = (found("theory.measure"), spec)
    return rows


def record(result: Any) -> Row:
    """Write what a row gave as plain data; floats keep every bit."""
    parts = {
        field.name: getattr(result, field.name)
        for field in fields(result)
        if field.name not in _LEFT_OUT
    }
    if "cost" in parts:
        parts["cost"] = {k: v for k, v in parts["cost"].items() if "seconds" not in k}
    if "trace" in parts:
        parts["trace"] = [[*r[:_SECONDS], *r[_SECONDS + 1 :]] for r in parts["trace"]]
    parts["id"] = result.spec.id
    for name, array in result.arrays.items():
        data = base64.b64encode(array.tobytes()).decode()
        parts[f"array {name}"] = [str(array.dtype), list(array.shape), data]
    return parts


def compute(chosen: str, path: Path) -> None:
    """Run the rows in the checkout whose package is imported, and write them."""
    from exhume.registry import names

    rows = {}
    for label, (run, spec) in jobs().items():
        if chosen in label:
            rows[label] = record(run(spec))
    registered = {kind: names(kind) for kind in ("attack", "bound", "defense")}
    path.write_text(json.dumps({"rows": rows, "registered": registered}))


# --- beside both ---------------------------------------------------------------------


def answers(checkout: Path, chosen: str, folder: Path) -> dict[str, Any]:
    """Compute the rows in a checkout by a process of its own."""
    own = checkout / ".venv" / "bin" / "python"
    out = folder / "rows.json"
    # A warning of a row is no concern of who compares: it is the same on both sides.
    command = [own if own.exists() else sys.executable, "-W", "ignore::UserWarning"]
    command += [__file__, "--compute", out, "--row", chosen]
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout / "src"),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([str(c) for c in command], env=environment, check=True)
    return json.loads(out.read_text())


def digest(part: Any) -> str:
    """Return the SHA-256 of one part, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


def numbers(part: Any) -> list[float]:
    """List every number in a part, in order."""
    if isinstance(part, bool) or part is None:
        return []
    if isinstance(part, int | float):
        return [float(part)]
    if isinstance(part, dict):
        return [n for key in sorted(part) for n in numbers(part[key])]
    if not isinstance(part, list):
        return []
    if len(part) == 3 and isinstance(part[0], str) and isinstance(part[2], str):
        import numpy as np

        return np.frombuffer(base64.b64decode(part[2]), part[0]).astype(float).tolist()
    return [n for item in part for n in numbers(item)]


def difference(old: Any, new: Any) -> str:
    """Say how far two parts are from each other."""
    before, after = numbers(old), numbers(new)
    if not before or len(before) != len(after):
        return f"{_short(old)} → {_short(new)}"
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    if not pairs or not all(math.isfinite(a) and math.isfinite(b) for a, b in pairs):
        return f"{_short(old)} → {_short(new)}"
    scale = max(abs(a) for a in before) or 1.0
    return f"{max(abs(a - b) for a, b in pairs) / scale:.1e} relative"


def _short(part: Any) -> str:
    text = json.dumps(part, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def differences(old: Row, new: Row) -> list[tuple[str, str]]:
    """List the parts of one row that are not the same, and how far apart they are."""
    parts = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            parts.append((name, "only in the old one"))
        elif name not in old:
            parts.append((name, "only in the new one"))
        elif digest(old[name]) != digest(new[name]):
            parts.append((name, difference(old[name], new[name])))
    return parts


def without_row(registered: Mapping[str, list[str]]) -> list[str]:
    """List the attacks, bounds and defenses that no row runs."""
    used = json.dumps(small_trials.trials())
    return [
        f"{kind} {name}"
        for kind, listed in registered.items()
        for name in listed
        if f'"name": "{name}"' not in used
    ]


def report(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Print what differs; return how many parts do."""
    before, after = old["rows"], new["rows"]
    unequal = 0
    for label in sorted(before.keys() | after.keys()):
        if label not in before or label not in after:
            rows = [("row", f"only in the {'new' if label in after else 'old'} one")]
        else:
            rows = differences(before[label], after[label])
        unequal += len(rows)
        for part, text in rows:
            print(f"{label:60} {part:22} {text}")
    for label, row in sorted(before.items()):
        if row["status"] == "failed":
            print(f"{label:60} failed in the old one: {row['reason']}")
    for name in without_row(new["registered"]):
        print(f"{name:60} has no row in small_trials.py")
    counts = Counter(row["status"] for row in before.values())
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    print(f"{len(before)} rows ({told}): {unequal} parts differ")
    print(f"old {digest(before)[:16]}, new {digest(after)[:16]}")
    return unequal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkouts", nargs="*", metavar="OLD NEW", help="two folders")
    parser.add_argument("--row", default="", help="only labels that contain this")
    parser.add_argument("--compute", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compute:
        compute(arguments.row, Path(arguments.compute))
        return
    if len(arguments.checkouts) != 2:
        parser.error("give two checkouts, the old one first")
    both = [Path(text).resolve() for text in arguments.checkouts]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        places = [Path(folder) / name for name in ("old", "new")]
        for place in places:
            place.mkdir()
        old, new = pool.map(answers, both, [arguments.row] * 2, places)
    sys.exit(1 if report(old, new) else 0)


if __name__ == "__main__":
    main()
