"""Run an audit: settings → trainings → trials → store → report, resumable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from exhume.audit.settings import AuditSettings, expand
from exhume.runs.carry_out import FixedPlan, Progress, carry_out, silent
from exhume.runs.records import SettingSpec, TrialResult, TrialSpec
from exhume.runs.settings import made, write_text

if TYPE_CHECKING:
    from exhume.runs.executor import Executor
    from exhume.runs.store import Store

__all__ = ["AuditRun", "run"]

SETTINGS_FILE = "audit.toml"
RESULTS_FILE = "results.sqlite"


@dataclass(frozen=True, eq=False)
class AuditRun:
    """What an audit left behind.

    Attributes:
        folder: of the run.
        results: one per trial, in the order of the sweep; placebos come last.
        report: path of report.html.
    """

    folder: Path
    results: tuple[TrialResult, ...]
    report: Path


def run(
    settings: AuditSettings | str | Path | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> AuditRun:
    """Run an audit, or what is missing of it, and write its report.

    The folder keeps the settings, finished trainings and trials, and the report.
    Running again resumes: what has finished is read from the folder, what failed is
    tried again. Both are known by their settings, not by the contents of files they
    name: when such files change, use a new folder.

    Args:
        settings: settings, the path of a TOML file, or None for the embedded default.
        out: folder of the run; by default the settings' own, or ``runs/<title>``.
        progress: told how far the audit is.

    Raises:
        InvalidInput: something is wrong with the settings or the data; nothing ran.
        KeyboardInterrupt: after the report of what had finished was written.
    """
    from exhume.runs.settings import to_toml
    from exhume.runs.store import Store

    settings = AuditSettings.given(settings)
    where, specs = settings.where, expand(settings)
    _prepare(specs)
    folder = made(settings.folder(out))
    with Store(folder / RESULTS_FILE) as store:
        write_text(folder / SETTINGS_FILE, to_toml(settings))
        tell = progress or silent
        try:
            _carry_out(specs, store, folder, where=where, tell=tell)
            if placebos := _placebos(settings, _ended(specs, store)):
                _carry_out(placebos, store, folder, where=where, tell=tell)
        except KeyboardInterrupt:
            _report(settings, specs, store, folder)
            raise
        return _report(settings, specs, store, folder)


def _prepare(specs: Sequence[TrialSpec]) -> None:
    """Load every data source and build every setting once, to fail before the sweep."""
    from exhume.runs.executor import single_threaded

    # Trials in this process find the fitted prior in a cache: the bits must be theirs.
    with single_threaded():
        from exhume.trials.setting import prepare

        first = specs[0].seed
        settings = [spec.released for spec in specs if spec.seed == first]
        for setting in {setting.id: setting for setting in settings}.values():
            prepare(setting)


def _carry_out(
    specs: Sequence[TrialSpec],
    store: Store,
    folder: Path,
    *,
    where: Executor,
    tell: Progress,
) -> None:
    """Run the trainings that missing trials wait for, each once, and then the trials.

    A training that fails leaves its reason, with which all of its trials fail.
    """
    from exhume.trials.exact import Trainings, training_job, training_specs
    from exhume.trials.trial import trial_job

    finished = store.finished()
    waiting = [spec.released for spec in specs if spec.id not in finished]
    if trainings := training_specs(waiting):
        plan = FixedPlan("training", trainings, label=_training)
        carry_out(plan, training_job(folder), Trainings(folder), where=where, tell=tell)
    plan = FixedPlan("attacking", specs, label=_label, kind=_method)
    carry_out(plan, trial_job(folder), store, where=where, tell=tell)


def _ended(specs: Iterable[TrialSpec], store: Store) -> list[TrialResult]:
    """Return the results of the trials that have ended, in their order."""
    return [r for spec in specs if (r := store.get(spec.id)) is not None]


def _placebos(
    settings: AuditSettings, results: Sequence[TrialResult]
) -> list[TrialSpec]:
    """List the placebos of attacks that come nearer than guesses and recover nothing.

    Which attacks these are is known only when all trials have ended.
    """
    from exhume.audit.report.results import scenarios
    from exhume.audit.report.verdict import gains

    return [
        replace(result.spec, placebo=True)
        for scenario in scenarios(settings, results)
        for cell, gain in gains(scenario).items()
        if gain.needs_placebo
        for result in scenario.trials[cell]
        if result.status == "done"
    ]


def _training(spec: SettingSpec) -> str:
    return f"{spec.observation['name']}, seed {spec.seed}"


def _label(spec: TrialSpec) -> str:
    from exhume.report.words import defense_label

    placebo = ", placebo" if spec.placebo else ""
    return f"{_method(spec)}, {defense_label(spec.defenses)}, seed {spec.seed}{placebo}"


def _method(spec: TrialSpec) -> str:
    return str((spec.attack or spec.bound or {}).get("name"))


def _report(
    settings: AuditSettings, specs: Sequence[TrialSpec], store: Store, folder: Path
) -> AuditRun:
    from exhume.audit.report.export import write_report

    placebos = [replace(spec, placebo=True) for spec in specs if spec.attack]
    results = _ended([*specs, *placebos], store)
    return AuditRun(folder, tuple(results), write_report(settings, results, folder))
