"""Run an audit: settings → trials → store → report, resumable at any point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exhume.audit.settings import AuditSettings
from exhume.runs.carry_out import FixedPlan, Progress, carry_out, silent
from exhume.runs.folder import made, write_text
from exhume.runs.records import TrialResult, TrialSpec

if TYPE_CHECKING:
    from exhume.runs.store import Store

__all__ = ["AuditRun", "run"]

SETTINGS_FILE = "audit.toml"
RESULTS_FILE = "results.sqlite"


@dataclass(frozen=True, eq=False)
class AuditRun:
    """What an audit left behind.

    Attributes:
        folder: of the run.
        results: one per trial, in the order of the sweep.
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

    The folder keeps the settings, every finished trial and the report. Running again
    resumes: finished trials are read from the folder, failed ones are tried again. A
    trial is known by its settings, not by the contents of files they name: when such
    files change, use a new folder.

    Args:
        settings: settings, the path of a TOML file, or None for the embedded default.
        out: folder of the run; by default the settings' own, or ``runs/<title>``.
        progress: told how far the audit is.

    Raises:
        InvalidInput: something is wrong with the settings or the data; nothing ran.
        KeyboardInterrupt: after the report of what had finished was written.
    """
    from exhume.audit.sweep import expand
    from exhume.runs.settings_file import to_toml
    from exhume.runs.store import Store
    from exhume.trials.job import TRIAL

    settings = AuditSettings.given(settings)
    where, specs = settings.where, expand(settings)
    _prepare(specs)
    folder = made(settings.folder(out))
    with Store(folder / RESULTS_FILE) as store:
        write_text(folder / SETTINGS_FILE, to_toml(settings))
        try:
            carry_out(_plan(specs), TRIAL, store, where=where, tell=progress or silent)
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
        settings = [s.released for s in specs if s.seed == first]
        for setting in {s.id: s for s in settings}.values():
            prepare(setting)


def _plan(specs: Sequence[TrialSpec]) -> FixedPlan[TrialSpec, TrialResult]:
    return FixedPlan("attacking", specs, label=_label, kind=_method)


def _label(spec: TrialSpec) -> str:
    from exhume.report.naming import defense_label

    stack = defense_label(spec.defenses) if spec.defenses else "no defense"
    return f"{_method(spec)}, {stack}, seed {spec.seed}"


def _method(spec: TrialSpec) -> str:
    return str((spec.attack or spec.bound or {}).get("name"))


def _report(
    settings: AuditSettings, specs: Sequence[TrialSpec], store: Store, folder: Path
) -> AuditRun:
    from exhume.audit.report import write_report

    found = [store.get(spec.id) for spec in specs]
    results = tuple(result for result in found if result is not None)
    return AuditRun(folder, results, write_report(settings, results, folder))
