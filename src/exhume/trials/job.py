"""Trials and trainings as jobs of an executor; libraries are loaded where they run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exhume.runs.executor import Job
from exhume.runs.records import SettingSpec, TrialResult, TrialSpec

if TYPE_CHECKING:
    from exhume.trials.exact import TrainingResult

__all__ = ["TRIAL", "training_job", "trial_job"]


def trial_job(folder: Path | None = None) -> Job[TrialSpec, TrialResult]:
    """Return the job of trials.

    Args:
        folder: of the run, where the results of trainings lie; None trains where a
            trial runs.
    """
    return Job(partial(_try, folder), TrialResult)


def _try(folder: Path | None, spec: TrialSpec) -> TrialResult:
    from exhume.trials.trial import run_trial

    return run_trial(spec, folder)


#: trials that make all they need themselves
TRIAL = trial_job()


def training_job(folder: Path) -> Job[SettingSpec, TrainingResult]:
    """Return the job of trainings, whose results go to the folder of the run."""
    from exhume.trials.exact import TrainingResult

    return Job(partial(_train, folder), TrainingResult)


def _train(folder: Path, spec: SettingSpec) -> TrainingResult:
    from exhume.trials.exact import run_training

    return run_training(spec, folder)
