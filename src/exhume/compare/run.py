"""Run a comparison: calibrate every family, attack it, and write the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exhume.compare.findings import ATTACKS, Comparison
from exhume.compare.settings import CompareSettings
from exhume.errors import InvalidInput
from exhume.runs.carry_out import Progress, carry_out, silent
from exhume.runs.settings import made, write_text

if TYPE_CHECKING:
    from exhume.audit.settings import AuditSettings
    from exhume.compare.family import Family
    from exhume.compare.search import Searched, UtilityLoss
    from exhume.runs.records import Options, TrialSpec

__all__ = ["Comparison", "load", "run"]

SETTINGS_FILE = "compare.toml"
UTILITY_FILE = "utility.sqlite"


def run(
    settings: CompareSettings | str | Path | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare defenses at equal utility, or do what is missing of it.

    Every training and every trial is kept in the folder as soon as it ends. Running
    again resumes: only what is missing, or failed, is computed.

    Args:
        settings: settings, the path of a TOML file, or None for the embedded default.
        out: folder of the run; by default the settings' own, or ``runs/<title>``.
        progress: told how far it is.

    Raises:
        InvalidInput: something is wrong with the settings or the data; nothing ran.
        KeyboardInterrupt: what had finished is kept.
    """
    from exhume import audit
    from exhume.compare.search import Rounds, replay
    from exhume.runs.settings import to_toml
    from exhume.trials.utility import MEASURE, UtilityStore

    settings = CompareSettings.given(settings)
    where, tell = settings.where, progress or silent
    loss, families = prepared(settings)
    folder = made(settings.folder(out))
    # A default that changes later leaves what this folder asks for as it is.
    complete = to_toml(_completed(settings, families), complete=True)
    write_text(folder / SETTINGS_FILE, complete)
    with UtilityStore(folder / UTILITY_FILE) as store:
        carry_out(Rounds(loss, families), MEASURE, store, where=where, tell=tell)
        plain, searches, _ = replay(loss, families, store)
    failed = [result.reason for result in plain if result.status == "failed"]
    if failed:
        msg = f"the model cannot be trained even without a defense: {failed[0]}"
        raise InvalidInput(msg)
    attacks = attack_settings(settings, searches)
    audit.run(attacks, out=folder / ATTACKS, progress=tell)
    return load(folder)


def load(folder: str | Path) -> Comparison:
    """Read a finished comparison and write its report again; nothing is computed anew.

    Args:
        folder: of the run.

    Raises:
        InvalidInput: the folder holds no comparison, or one that has not finished.
    """
    from exhume.audit.run import RESULTS_FILE
    from exhume.compare.collect import collect
    from exhume.compare.report import write_report
    from exhume.compare.search import replay
    from exhume.runs.store import Store
    from exhume.trials.utility import UtilityStore

    folder = Path(folder)
    if not (folder / SETTINGS_FILE).is_file():
        msg = f"{str(folder)!r} holds no comparison; exhume compare makes one"
        raise InvalidInput(msg)
    settings = CompareSettings.read(folder / SETTINGS_FILE)
    loss, families = prepared(settings, recorded=())
    unfinished = InvalidInput(
        f"the comparison in {str(folder)!r} has not finished; run it again with "
        f"exhume compare {folder / SETTINGS_FILE} --out {folder}"
    )
    results_file = folder / ATTACKS / RESULTS_FILE
    if not ((folder / UTILITY_FILE).is_file() and results_file.is_file()):
        raise unfinished
    with UtilityStore(folder / UTILITY_FILE, create=False) as store:
        plain, searches, complete = replay(loss, families, store)
    if not complete:
        raise unfinished
    attacks = attack_settings(settings, searches)
    from exhume.audit.settings import expand

    with Store(results_file, create=False) as results:
        found = {result.spec.id: result for result in results.results()}
    recorded = [result.spec for result in found.values()]
    wanted = [spec.id for spec in expand(attacks, recorded=recorded)]
    if not found.keys() >= set(wanted):
        raise unfinished
    ended = [found[spec_id] for spec_id in wanted]
    comparison = collect(settings, attacks, plain, searches, ended, folder)
    write_report(comparison)
    return comparison


def prepared(
    settings: CompareSettings, *, recorded: Sequence[TrialSpec] | None = None
) -> tuple[UtilityLoss, list[Family]]:
    """Check every name and option at once, and complete them.

    Args:
        settings: of the comparison.
        recorded: as in :func:`exhume.audit.settings.expand`; the settings in a folder
            are complete, so there nothing need be recorded.

    Raises:
        InvalidInput: every name or option that is wrong, in one message.
    """
    from exhume.audit.settings import Checked, as_options, expand
    from exhume.compare.family import families
    from exhume.compare.search import UtilityLoss

    checked = Checked(recorded)
    found = families(settings, checked)
    # An audit without defenses has everything else that there is to check.
    with checked.gathered():
        expand(attack_settings(settings, []), recorded=recorded)
    with checked.gathered():
        _check_utility(settings)
    checked.report()
    common: dict[str, Any] = {
        name: getattr(settings, name)
        for name in (
            "loss",
            "mode",
            "dtype",
            "classes",
            "batch_size",
            "steps",
            "optimiser",
            "learning_rate",
            "schedule",
            "held_out",
            "public_examples",
            "recalibrate",
        )
    }
    for kind in ("data", "model", "observation"):
        common[kind] = checked.options(kind, as_options(getattr(settings, kind)))
    trained = settings.utility in ("accuracy", "loss")
    common["kind"] = "training" if trained else "one-step"
    return UtilityLoss(settings, common), found


def _check_utility(settings: CompareSettings) -> None:
    from exhume.problem.losses import LOSSES

    loss = LOSSES.get(settings.loss)
    if settings.utility == "accuracy" and loss is not None and loss.real:
        msg = (
            f"utility is 'accuracy', but the targets of the loss {settings.loss!r} are "
            f"real numbers and no classes; set utility = 'loss'"
        )
        raise InvalidInput(msg)


def _completed(settings: CompareSettings, families: list[Family]) -> CompareSettings:
    """Write out every option that was left to its default."""
    from exhume.audit.settings import Checked, as_options

    checked = Checked()

    def full(kind: str, given: Options | str) -> Options:
        return checked.options(kind, as_options(given))

    return replace(
        settings,
        data=full("data", settings.data),
        model=full("model", settings.model),
        observation=full("observation", settings.observation),
        prior=None if settings.prior is None else full("prior", settings.prior),
        attacks=[full("attack", options) for options in settings.attacks],
        bounds=[full("bound", options) for options in settings.bounds],
        defenses=[family.written() for family in families],
    )


def attack_settings(
    settings: CompareSettings, searches: list[Searched]
) -> AuditSettings:
    """Write the audit of every strength that represents a budget."""
    from exhume.audit.settings import AuditSettings

    stacks = [
        list(search.family.at(strength))
        for search in searches
        if search.family is not None
        for strength in dict.fromkeys(
            s.step.strength for s in search.settled(settings) if s.step is not None
        )
    ]
    names = {field.name for field in fields(AuditSettings)}
    shared = {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if field.name in names - {"title", "defenses", "out"}
    }
    listed: list[Any] = [[], *stacks]
    title = f"{settings.title}: the attacks"
    return AuditSettings(title=title, defenses=listed, **shared)
