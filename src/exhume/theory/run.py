"""Run scaling experiments, or what is missing of them, and write their report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exhume.errors import InvalidInput
from exhume.runs.carry_out import FixedPlan, Progress, carry_out, silent
from exhume.runs.settings import made, write_text
from exhume.theory.findings import Findings, to_toml
from exhume.theory.settings import TheorySettings

if TYPE_CHECKING:
    from exhume.theory.point import PointSpec, PointStore

__all__ = ["Findings", "load", "run"]

SETTINGS_FILE = "theory.toml"
POINTS_FILE = "points.sqlite"


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
    from exhume.theory.measure import MEASURE
    from exhume.theory.point import PointStore

    settings = TheorySettings.given(settings)
    where, specs = settings.where, _specs(settings)
    plan = FixedPlan("measuring", specs, label=_label, weight=_size)
    folder = made(settings.folder(out))
    write_text(folder / SETTINGS_FILE, to_toml(settings))
    with PointStore(folder / POINTS_FILE) as store:
        try:
            carry_out(plan, MEASURE, store, where=where, tell=progress or silent)
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

    folder = Path(folder)
    for name in (SETTINGS_FILE, POINTS_FILE):
        if not (folder / name).is_file():
            msg = f"{str(folder)!r} has no {name}; exhume theory makes such a folder"
            raise InvalidInput(msg)
    settings = TheorySettings.read(folder / SETTINGS_FILE)
    with PointStore(folder / POINTS_FILE, create=False) as store:
        return _reported(folder, settings, _specs(settings), store)


def _specs(settings: TheorySettings) -> list[PointSpec]:
    """List every point once; small ones first, so that curves show early."""
    from exhume.theory.plan import points

    listed = {
        spec.id: spec for e in settings.experiments for spec in points(settings, e)
    }
    return sorted(listed.values(), key=_size)


def _size(spec: PointSpec) -> float:
    return spec.width * spec.dimension * spec.examples


def _label(spec: PointSpec) -> str:
    sizes = f"m {spec.width}, d {spec.dimension}, B {spec.examples}"
    return f"{spec.row}, {sizes}, seed {spec.seed}"


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
