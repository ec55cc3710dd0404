"""Run scaling experiments, or what is missing of them, and write their report."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from exhume.errors import InvalidInput
from exhume.runs.folder import made, write_text
from exhume.theory.findings import Findings, to_toml
from exhume.theory.settings import TheorySettings

if TYPE_CHECKING:
    from exhume.theory.point import PointResult, PointSpec, PointStore

__all__ = ["Findings", "Progress", "load", "run"]

SETTINGS_FILE = "theory.toml"
POINTS_FILE = "points.sqlite"


class Progress(Protocol):
    """Called once before the first point, and after every point."""

    def __call__(
        self, phase: str, done: int, total: int, what: str, seconds_left: float | None
    ) -> None:
        """Tell how far the run is.

        Args:
            phase: always ``measuring``.
            done: points that ended, those of earlier runs included.
            total: points of the run.
            what: just ended; "" at the start.
            seconds_left: estimate, or None while there is nothing to go by.
        """


def run(
    settings: TheorySettings | str | Path | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Measure every point that is missing, fit the exponents, write the report.

    Every point is kept in the folder as soon as it ends. Running again resumes: only
    what is missing, or failed, is measured.

    Args:
        settings: settings, the path of a TOML file, or None for the embedded default.
        out: folder of the run; by default the settings' own, or ``runs/<title>``.
        progress: told how far it is.

    Raises:
        InvalidInput: something is wrong with the settings; nothing ran.
        KeyboardInterrupt: after the report of what had finished was written.
    """
    from exhume.theory.point import PointStore
    from exhume.theory.settings import default_settings, load_settings

    if settings is None:
        settings = default_settings()
    elif not isinstance(settings, TheorySettings):
        settings = load_settings(settings)
    specs = _specs(settings)
    folder = made(settings.folder(out))
    write_text(folder / SETTINGS_FILE, to_toml(settings))
    with PointStore(folder / POINTS_FILE) as store:
        try:
            _measure_missing(settings, specs, store, progress or _silent)
        except KeyboardInterrupt:
            _reported(folder, settings, specs, store)
            raise
        return _reported(folder, settings, specs, store)


def load(folder: str | Path) -> Findings:
    """Read a run and write its report again; nothing is measured.

    Args:
        folder: of the run; it may be unfinished.

    Raises:
        InvalidInput: the folder holds no such run.
    """
    from exhume.theory.point import PointStore
    from exhume.theory.settings import load_settings

    folder = Path(folder)
    for name in (SETTINGS_FILE, POINTS_FILE):
        if not (folder / name).is_file():
            msg = f"{str(folder)!r} has no {name}; exhume theory makes such a folder"
            raise InvalidInput(msg)
    settings = load_settings(folder / SETTINGS_FILE)
    with PointStore(folder / POINTS_FILE, create=False) as store:
        return _reported(folder, settings, _specs(settings), store)


def _specs(settings: TheorySettings) -> list[PointSpec]:
    """List every point once; small ones first, so that curves show early."""
    from exhume.theory.plan import points

    listed = {
        spec.id: spec for e in settings.experiments for spec in points(settings, e)
    }
    return sorted(listed.values(), key=lambda s: s.width * s.dimension * s.examples)


def _measure_missing(
    settings: TheorySettings,
    specs: Sequence[PointSpec],
    store: PointStore,
    tell: Progress,
) -> None:
    from exhume.theory.measure import MEASURE

    ended = store.finished()
    queue = deque(spec for spec in specs if spec.id not in ended)
    done, total, started = len(specs) - len(queue), len(specs), time.perf_counter()
    tell("measuring", done, total, "", None)
    if not queue:
        return
    weights = {s.id: s.width * s.dimension * s.examples for s in queue}
    left, spent = sum(weights.values()), 0.0
    with closing(settings.where.map(MEASURE, queue)) as jobs:
        for result in jobs:
            store.put(result)
            done += 1
            spent += weights[result.spec.id]
            elapsed = time.perf_counter() - started
            # The time of a point grows with its size, and small ones come first.
            seconds = elapsed * (left - spent) / spent
            tell("measuring", done, total, _told(result), seconds)


def _told(result: PointResult) -> str:
    spec = result.spec
    status = "" if result.status == "done" else " (failed)"
    sizes = f"m {spec.width}, d {spec.dimension}, B {spec.examples}"
    return f"{spec.row}, {sizes}, seed {spec.seed}{status}"


def _reported(
    folder: Path,
    settings: TheorySettings,
    specs: Sequence[PointSpec],
    store: PointStore,
) -> Findings:
    from exhume.theory.collect import collect
    from exhume.theory.report import write_report

    wanted = {spec.id for spec in specs}
    results = {r.spec.id: r for r in store.results() if r.spec.id in wanted}
    found = Findings(
        folder=folder,
        settings=settings,
        curves=collect(settings, results),
        missing=len(wanted) - len(results),
        report=folder / "report.html",
    )
    write_report(found)
    return found


def _silent(
    phase: str, done: int, total: int, what: str, seconds_left: float | None
) -> None:
    """Tell nobody."""
