"""How much of the project must one read to follow one audit of one attack?

    python benchmarks/journey.py                          # this checkout
    python benchmarks/journey.py --checkout DIR --files   # another, every file named

Runs one small serial audit per attack, each in a fresh process: one attack beside the
chance levels, one batch of faces behind noise, one seed, the report included. Counts
the Python files of the package in which a function runs, and the functions: pairs of
file and qualified name, so that comprehensions and lambdas count, those of one kind in
one function once. Bodies of modules and classes do not count, for importing a file is
not reading it; what they call while they are imported does. Lines are those of the
files, with comments and docstrings. A larger budget changes files not at all, and
functions by a handful. (Python 3.12 and later have fewer comprehensions to count.)
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parents[1]
NOISE = {"name": "gaussian-noise", "std": 1e-3}
#: faces at half of their size; the class says what is a face
SMALL = {"name": "relabelled", "source": {"name": "faces"}, "pool": 2}
TRAINED: dict[str, Any] = {
    "data": SMALL,
    "batch_size": 4,
    "loss": "logistic",
    "dtype": "float64",
    "prior": None,
}
TUNED: dict[str, Any] = {
    **TRAINED,
    "model": {"name": "tangent-mlp", "hidden": [50]},
    "observation": {"name": "fine-tuning", "target_loss": 0.05},
}
TANGENT = {"iterations": 20, "polish": 5, "newton": 5, "rounds": 1}
#: attack → its options, and fields of the audit
AUDITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gauss-newton": ({"iterations": 2, "restarts": 1}, {}),
    "inverting-gradients": ({"iterations": 5}, {}),
    "kkt": (
        {"iterations": 10, "restarts": 1},
        {
            **TRAINED,
            "model": {"name": "homogeneous-mlp", "hidden": [50], "mean": [0.3]},
            "observation": {"name": "weights", "target_loss": 0.05},
        },
    ),
    "tensor": (
        {"restarts": 10, "starts": 2},
        {
            "model": {"name": "two-layer", "width": 2000},
            "dtype": "float64",
            "defenses": [{**NOISE, "std": 1e-6}],
        },
    ),
    "tangent-kernel": (TANGENT, TUNED),
    "subspace": ({"options": TANGENT}, TUNED),
}


def trace(attack: str, source: Path) -> list[tuple[str, str]]:
    """Run the audit of an attack here; list the functions that ran, file and name."""
    from exhume.audit import AuditSettings, run

    codes = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            codes.add(frame.f_code)

    options, more = AUDITS[attack]
    given = {"defenses": [NOISE], "attacks": [{"name": attack, **options}], **more}
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(watch)
        try:
            settings = AuditSettings(executor="serial", seeds=1, **given)
            results = run(settings, out=folder).results
        finally:
            sys.setprofile(None)
    (own,) = [r for r in results if r.spec.attack and r.spec.attack["name"] == attack]
    if own.status != "done":
        raise SystemExit(f"the trial of {attack} is {own.status}: {own.reason}")
    function = inspect.CO_OPTIMIZED | inspect.CO_NEWLOCALS
    ran = [code for code in codes if code.co_flags & function == function]
    found = {
        (str(Path(code.co_filename).relative_to(source)), code.co_qualname)
        for code in ran
        if code.co_filename.startswith(str(source)) and code.co_filename[-3:] == ".py"
    }
    return sorted(found)


def traced(attack: str, checkout: Path) -> dict[str, int]:
    """Run the audit of an attack in a process of a checkout: file → functions."""
    own = checkout / ".venv" / "bin" / "python"
    command = [own if own.exists() else sys.executable, __file__, "--trace", attack]
    done = subprocess.run(
        [str(c) for c in command],
        env={
            **os.environ,
            "PYTHONPATH": str(checkout / "src"),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        check=True,
    )
    return Counter(file for file, _ in json.loads(done.stdout))


def lines(files: Mapping[str, int], package: Path) -> int:
    """Count the lines of files."""
    return sum(len((package / f).read_text("utf-8").splitlines()) for f in files)


def room(file: str) -> str:
    """Name the room of a file: its folder, or "." for one that stands alone."""
    return file.split("/")[0] if "/" in file else "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--checkout", type=Path, default=HERE, help="another one")
    parser.add_argument("--attack", action="append", choices=list(AUDITS))
    parser.add_argument("--files", action="store_true", help="name every file")
    parser.add_argument("--trace", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trace:
        import exhume

        source = Path(exhume.__file__).parent
        print(json.dumps(trace(arguments.trace, source)))
        return
    checkout = arguments.checkout.resolve()
    package = checkout / "src" / "exhume"
    table = {a: traced(a, checkout) for a in arguments.attack or AUDITS}
    rooms = sorted({room(file) for ran in table.values() for file in ran})
    widths = [max(len(name), 3) + 2 for name in rooms]
    print(f"{'attack':20} files functions  lines  files per room:", end="")
    print("".join(f"{name:>{w}}" for name, w in zip(rooms, widths, strict=True)))
    for attack, ran in table.items():
        per = Counter(map(room, ran))
        total = f"{len(ran):5} {sum(ran.values()):9} {lines(ran, package):6}"
        print(f"{attack:20} {total}{'':17}", end="")
        print("".join(f"{per[r]:{w}}" for r, w in zip(rooms, widths, strict=True)))
    if arguments.files:
        for attack, ran in table.items():
            print(f"\n{attack}")
            for file, count in sorted(ran.items()):
                print(f"  {file:50} {count:3} functions")


if __name__ == "__main__":
    main()
