"""How often does an audit train the client's network, and what does all of it cost?

    python benchmarks/trainings.py weights-digits                  # this checkout
    python benchmarks/trainings.py finetune-faces --checkout DIR   # another one

Runs an audit that comes with exhume, for its first seed, in one process and on one
thread, and counts the trainings to the end that an observation model starts: one for
each release is enough, however many attacks and defenses face it. Prints trainings,
trials and CPU seconds, those of trainings, of attacks and bounds, and of all.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
#: modules of observation models that call ``train``; registered names do not move
OBSERVED = ("exhume.observations.weights", "exhume.observations.fine_tuning")


class Counted:
    """A function that counts its calls and their CPU seconds."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls, self.seconds = function, 0, 0.0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        begun = time.process_time()
        try:
            return self.function(*arguments, **options)
        finally:
            self.calls += 1
            self.seconds += time.process_time() - begun


def measured(name: str, folder: Path) -> str:
    """Run the audit here, and say what it took."""
    import exhume

    try:
        from exhume.audit.settings import example_settings
    except ImportError:  # a checkout before sweep and settings became one file
        from exhume.audit.sweep import example_settings

    counters = []
    for module in map(importlib.import_module, OBSERVED):
        counters.append(Counted(module.train))
        module.train = counters[-1]
    settings = example_settings(name)
    settings = replace(settings, seeds=settings.seed_list[:1], executor="serial")
    begun = time.process_time()
    results = exhume.audit.run(settings, out=folder).results
    total = time.process_time() - begun
    attacks = sum(result.cost.get("cpu_seconds", 0.0) for result in results)
    trainings = sum(c.calls for c in counters)
    seconds = sum(c.seconds for c in counters)
    return (
        f"{name}: {trainings} trainings for {len(results)} trials; CPU seconds: "
        f"{seconds:.1f} trainings, {attacks:.1f} attacks, {total:.1f} in all"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", help="of an audit: exhume list audits")
    parser.add_argument("--checkout", type=Path, default=HERE, help="another one")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        with tempfile.TemporaryDirectory() as folder:
            print(measured(arguments.name, Path(folder)))
        return
    checkout = arguments.checkout.resolve()
    own = checkout / ".venv" / "bin" / "python"
    command = [own if own.exists() else sys.executable, __file__, "--here"]
    source = {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*map(str, command), arguments.name], env={**os.environ, **source}, check=True
    )


if __name__ == "__main__":
    main()
