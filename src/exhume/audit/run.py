"""Run an audit: settings → trials → store → report, resumable at any point."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

from exhume.audit.settings import AuditSettings
from exhume.runs.folder import made, write_text
from exhume.runs.records import TrialResult, TrialSpec

if TYPE_CHECKING:
    from exhume.runs.store import Store

__all__ = ["AuditRun", "Progress", "run"]

SETTINGS_FILE = "audit.toml"
RESULTS_FILE = "results.sqlite"


class Progress(Protocol):
    """Called once before the first trial, and after every trial."""

    def __call__(
        self,
        done: int,
        total: int,
        result: TrialResult | None,
        seconds_left: float | None,
    ) -> None:
        """Tell how far the audit is.

        Args:
            done: trials that ended, those of earlier runs included.
            total: trials of the audit.
            result: what just ended; None before the first trial.
            seconds_left: estimate, or None while there is nothing to go by.
        """


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
    from exhume.audit.sweep import default_settings, expand, load_settings
    from exhume.runs.store import Store

    if settings is None:
        settings = default_settings()
    elif not isinstance(settings, AuditSettings):
        settings = load_settings(settings)
    specs = expand(settings)
    _prepare(specs)
    folder = made(settings.folder(out))
    with Store(folder / RESULTS_FILE) as store:
        _write_settings(settings, folder)
        try:
            _run_missing(settings, specs, store, progress)
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


def _write_settings(settings: AuditSettings, folder: Path) -> None:
    from exhume.runs.settings_file import to_toml

    write_text(folder / SETTINGS_FILE, to_toml(settings))


def _run_missing(
    settings: AuditSettings,
    specs: Sequence[TrialSpec],
    store: Store,
    progress: Progress | None,
) -> None:
    from exhume.trials.job import TRIAL

    tell: Callable[..., None] = progress or (lambda *_: None)
    finished = store.finished()
    missing = [spec for spec in specs if spec.id not in finished]
    done = len(specs) - len(missing)
    where = settings.where
    clock = _Clock(missing, where.parallel)
    tell(done, len(specs), None, None)
    with closing(where.map(TRIAL, deque(missing))) as trials:
        for result in trials:
            store.put(result)
            done += 1
            tell(done, len(specs), result, clock.left_after(result))


class _Clock:
    """Estimates the time left from the mean time of each attack and bound so far."""

    def __init__(self, specs: Sequence[TrialSpec], parallel: int) -> None:
        self._waiting = {spec.id: _method(spec) for spec in specs}
        self._seconds: dict[str, list[float]] = {}
        self._parallel = parallel

    def left_after(self, result: TrialResult) -> float | None:
        self._waiting.pop(result.spec.id, None)
        self._seconds.setdefault(_method(result.spec), []).append(result.seconds)
        # Unknown methods are taken to be as slow as the slowest known: the cheap ones
        # run first, and an estimate that falls is better than one that grows.
        means = {name: fmean(values) for name, values in self._seconds.items()}
        slowest = max(means.values())
        total = sum(means.get(name, slowest) for name in self._waiting.values())
        return total / self._parallel


def _method(spec: TrialSpec) -> str:
    options = spec.attack or spec.bound or {}
    return str(options.get("name"))


def _report(
    settings: AuditSettings, specs: Sequence[TrialSpec], store: Store, folder: Path
) -> AuditRun:
    from exhume.audit.report import write_report

    found = [store.get(spec.id) for spec in specs]
    results = tuple(result for result in found if result is not None)
    return AuditRun(folder, results, write_report(settings, results, folder))
