"""exhume: data reconstruction attacks and defenses as inverse problems.

    O = D(F(S)),   Ŝ = A(O, knowledge),   d(S, Ŝ) ≥ bound

The public names are imported on first use, so ``import exhume`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exhume import audit, bounds, compare, defenses, observations
    from exhume.metrics.score import Scores, score
    from exhume.problem.batch import Batch
    from exhume.problem.bound import BoundValue, NotApplicable
    from exhume.problem.event import EventSpec
    from exhume.problem.knowledge import UNKNOWN, Fact, Problem
    from exhume.problem.mechanism import Mechanism
    from exhume.problem.reconstruction import Outcome, Reconstruction
    from exhume.problem.task import Normalisation, Task
    from exhume.problem.threat import ThreatModel
    from exhume.problem.world import World

__version__ = "0.1.0"

_HOMES = {
    "Batch": "problem.batch",
    "BoundValue": "problem.bound",
    "EventSpec": "problem.event",
    "Fact": "problem.knowledge",
    "Mechanism": "problem.mechanism",
    "Normalisation": "problem.task",
    "NotApplicable": "problem.bound",
    "Outcome": "problem.reconstruction",
    "Problem": "problem.knowledge",
    "Reconstruction": "problem.reconstruction",
    "Scores": "metrics.score",
    "Task": "problem.task",
    "ThreatModel": "problem.threat",
    "UNKNOWN": "problem.knowledge",
    "World": "problem.world",
    "score": "metrics.score",
}
_MODULES = ("audit", "bounds", "compare", "defenses", "observations")

__all__ = [
    "UNKNOWN",
    "Batch",
    "BoundValue",
    "EventSpec",
    "Fact",
    "Mechanism",
    "Normalisation",
    "NotApplicable",
    "Outcome",
    "Problem",
    "Reconstruction",
    "Scores",
    "Task",
    "ThreatModel",
    "World",
    "attack",
    "audit",
    "bound",
    "bounds",
    "compare",
    "dataset",
    "defense",
    "defenses",
    "model",
    "observations",
    "prior",
    "score",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"exhume.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"exhume.{name}")
    msg = f"module 'exhume' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _make(kind: str, name: str, options: dict[str, Any]) -> Any:
    from exhume.config import build

    return build(kind, {"name": name, **options})


def attack(name: str, **options: Any) -> Any:
    """Make a registered attack, e.g. ``attack("gauss-newton", iterations=50)``."""
    return _make("attack", name, options)


def bound(name: str, **options: Any) -> Any:
    """Make a registered bound, e.g. ``bound("bayesian-cramer-rao")``."""
    return _make("bound", name, options)


def dataset(name: str, **options: Any) -> Any:
    """Make a registered data source, e.g. ``dataset("faces").load()``.

    It is not called ``data``: importing the package ``exhume.data`` would replace it.
    """
    return _make("data", name, options)


def defense(name: str, **options: Any) -> Any:
    """Make a registered defense, e.g. ``defense("gaussian-noise", std=1e-3)``."""
    return _make("defense", name, options)


def model(name: str, **options: Any) -> Any:
    """Make a registered model source, e.g. ``model("lenet-zhu")``."""
    return _make("model", name, options)


def prior(name: str, **options: Any) -> Any:
    """Make a registered prior, e.g. ``prior("gaussian").fit(public, task)``."""
    return _make("prior", name, options)
