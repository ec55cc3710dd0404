"""Trials as jobs of an executor; the libraries are loaded where they run."""

from __future__ import annotations

from exhume.runs.job import Job
from exhume.runs.records import TrialResult, TrialSpec

__all__ = ["TRIAL"]


def _run(spec: TrialSpec) -> TrialResult:
    from exhume.trials.trial import run_trial

    return run_trial(spec)


TRIAL = Job(_run, TrialResult)
