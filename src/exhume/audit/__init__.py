"""Experiments: trials, sweeps, executors, the store, flags and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Bound here at once, not on first use: the module of the same name would hide it.
from exhume.audit.run import AuditRun, run
from exhume.audit.settings import AuditSettings
from exhume.runs.records import TrialResult, TrialSpec

if TYPE_CHECKING:
    from exhume.trials.trial import run_trial

__all__ = ["AuditRun", "AuditSettings", "TrialResult", "TrialSpec", "run", "run_trial"]


def __getattr__(name: str) -> Any:
    if name == "run_trial":
        from exhume.trials.trial import run_trial

        return run_trial
    msg = f"module 'exhume.audit' has no attribute {name!r}"
    raise AttributeError(msg)
