"""An audit: the schema of its TOML file, and the trials that it stands for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from exhume.config import build, describe
from exhume.errors import ExhumeError, InvalidInput, NotImported, UnknownName
from exhume.registry import OwnModules, did_you_mean
from exhume.runs.records import Options, TrialSpec
from exhume.runs.settings import RunSettings, check_least

__all__ = [
    "BASELINES",
    "READS_SCALE",
    "AuditSettings",
    "Checked",
    "as_options",
    "example_names",
    "example_settings",
    "expand",
    "listed",
]


@dataclass(frozen=True, kw_only=True)
class AuditSettings(RunSettings):
    """A sweep: attacks × defenses × data × seeds, with bounds.

    In a defense, a list of numbers stands for several strengths:
    ``{name = "gaussian-noise", std = [1e-4, 1e-3]}`` is two defenses of one family.
    TOML has no null: the string ``"none"`` stands for it.

    Attributes:
        title: of the report.
        data: one data source, or several.
        model: the network; ``module:function`` for one of your own.
        attacks: attacks to run; the baselines are always added.
        defenses: stacks of defenses; a stack is a list, ``[]`` is no defense, and a
            defense that stands alone needs no list.
        bounds: bounds to evaluate for every defense.
        metrics: metrics with options of your own, or modules of your own; every
            registered metric that fits the data is computed anyway.
        seeds: seeds of the sweep, or how many.
        batch_size: B.
        classes: number K of outputs; 0 takes it from the labels (at least 2).
        observation: what the client computes.
        loss: name of the training loss.
        mode: ``eval`` or ``train``.
        dtype: ``float32`` or ``float64``.
        threat: name of a threat model.
        prior: prior fitted to the public examples, or None.
        public_examples: that defenses are calibrated on, drawn at random for each seed;
            0 for all. The prior and the attacks always have all.
        executor: where trials run, ``processes`` or ``serial`` (see ``exhume list
            executors``), or a module of one's own.
        workers: number of processes; 0 takes one per core.
        out: folder of the run; "" makes ``runs/<title>``.

    Raises:
        InvalidInput: a size is out of range, or there is nothing to run.
    """

    title: str = "Audit"
    data: list[Options | str] | Options | str = "faces"
    model: Options | str = "lenet-zhu"
    attacks: list[Options | str] = field(default_factory=lambda: ["gauss-newton"])
    defenses: list[list[Options | str] | Options | str] = field(
        default_factory=lambda: [[]]
    )
    bounds: list[Options | str] = field(default_factory=list)
    metrics: list[Options | str] = field(default_factory=list)
    seeds: list[int] | int = 1
    batch_size: int = 1
    classes: int = 0
    observation: Options | str = "gradient"
    loss: str = "cross-entropy"
    mode: Literal["eval", "train"] = "eval"
    dtype: Literal["float32", "float64"] = "float32"
    threat: str = "labels-known"
    prior: Options | str | None = "gaussian"
    public_examples: int = 0
    executor: str = "processes"
    workers: int = 0
    out: str = ""

    def __post_init__(self) -> None:
        self.check_run()
        check_least(self, batch_size=1, classes=0, public_examples=0)
        for name in ("data", "defenses"):
            if getattr(self, name) == []:
                msg = f"{name} is an empty list, so there is nothing to audit"
                raise InvalidInput(msg)


def as_options(value: Options | str) -> dict[str, Any]:
    """Write a bare name as options."""
    return {"name": value} if isinstance(value, str) else dict(value)


# --- the trials of a sweep ------------------------------------------------------------

#: that every sweep runs beside its attacks: chance levels, and recognition
BASELINES = ("prior-mean", "public-centres", "nearest-public")

Stack = tuple[Options, ...]

#: the attack on noise whose scale depends on the private data
READS_SCALE = "covariance-aware"


def example_names() -> list[str]:
    """List the audits that come with exhume, by name."""
    folder = resources.files("exhume.audit") / "examples"
    return sorted(
        file.name.removesuffix(".toml")
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    )


def example_settings(name: str) -> AuditSettings:
    """Return an audit that comes with exhume.

    Raises:
        UnknownName: none is called so; the message offers the nearest.
    """
    if name not in example_names():
        raise UnknownName(did_you_mean("audit", name, example_names()))
    return AuditSettings.shipped(f"examples/{name}.toml")


def expand(
    settings: AuditSettings, *, recorded: Sequence[TrialSpec] | None = None
) -> list[TrialSpec]:
    """List the trials of an audit, without repetition.

    Chance levels and bounds come first, because they are cheap and everything is drawn
    against them; then all attacks of the first seed, so that a sweep that is stopped
    early has complete pictures of fewer examples. Noise whose scale comes from the
    private batch is always attacked by ``covariance-aware`` as well, with its default
    options unless the audit names it with others.

    Every object is built once: options in the specs are complete, so that a changed
    default changes the ids and no result is mistaken for another.

    Args:
        settings: of the audit.
        recorded: the trials in the folder that the settings were read from; modules of
            the user's own are then not imported, see :class:`Checked`. None if the user
            gave the settings.

    Raises:
        InvalidInput: every name or option that is wrong, in one message.
    """
    from exhume.problem.losses import loss_named
    from exhume.problem.threat import ThreatModel

    checked = Checked(recorded)
    data = [checked.options("data", d) for d in listed(settings.data)]
    stacks = [s for given in settings.defenses for s in _stacks(given, checked)]
    attacks = [checked.options("attack", a) for a in settings.attacks]
    bounds = [checked.options("bound", b) for b in settings.bounds]
    metrics = tuple([checked.options("metric", m) for m in settings.metrics])
    had = {spec.attack["name"] for spec in recorded or () if spec.attack is not None}
    # A stored run had the chance levels of its time; they ran before any attack.
    began = had - set(BASELINES)
    chance = [
        checked.options("attack", name)
        for name in BASELINES
        if name in had or not began
    ]
    # Where the noise itself tells, the attack that reads it is always tried.
    private = [s for s in stacks if "private" in [o.get("scale_source") for o in s]]
    wanted = private and READS_SCALE not in [o.get("name") for o in attacks]
    reads_scale = [checked.options("attack", READS_SCALE)] if wanted else []
    common = _common(settings, checked)
    with checked.gathered():
        ThreatModel(settings.threat)
        loss_named(settings.loss)
    for stack in stacks:
        checked.order(common["observation"], stack)
    checked.report()
    specs: dict[str, TrialSpec] = {}
    for kind, chosen, over in (
        ("attack", chance, stacks),
        ("bound", bounds, stacks),
        ("attack", attacks, stacks),
        ("attack", reads_scale, private),
    ):
        cells = itertools.product(settings.seed_list, data, chosen, over)
        for seed, source, options, stack in cells:
            what = {"seed": seed, "data": source, "defenses": stack, kind: options}
            if kind == "attack":
                what["metrics"] = metrics
            spec = TrialSpec(**common, **what)
            specs[spec.id] = spec
    return list(specs.values())


def _common(settings: AuditSettings, checked: Checked) -> dict[str, Any]:
    """Return the fields that all trials share."""
    prior = settings.prior
    return {
        "model": checked.options("model", settings.model),
        "prior": None if prior is None else checked.options("prior", prior),
        "observation": checked.options("observation", settings.observation),
        "loss": settings.loss,
        "mode": settings.mode,
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "classes": settings.classes,
        "threat": settings.threat,
        "public_examples": settings.public_examples,
    }


def listed(value: Sequence[Options | str] | Options | str) -> Sequence[Options | str]:
    """Return what the settings give as a list or alone as a list."""
    return [value] if isinstance(value, str | Mapping) else value


@dataclass
class Checked:
    """Builds objects and gathers every problem, so that one run shows them all.

    Attributes:
        recorded: None if the user gave the names; a dotted one is imported. Otherwise
            the trials of a stored run: a module of the user's own that this process has
            not imported stays so, and its complete options are those of the last trial
            that they fit.
        problems: one sentence each.
    """

    recorded: Sequence[TrialSpec] | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def own(self) -> OwnModules:
        """What is done for a dotted name."""
        return "import" if self.recorded is None else "loaded"

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the sentence of an error instead of raising it."""
        try:
            yield
        except ExhumeError as error:
            self.problems.append(str(error))

    def options(self, kind: str, given: Options | str) -> Options:
        """Return complete options in plain JSON types."""
        options = as_options(given)
        full: Options = {}
        with self.gathered():
            try:
                full = describe(build(kind, options, own=self.own))
            except NotImported:
                full = self._as_recorded(kind, options)
        return _plain({**full, "name": options.get("name")})

    def _as_recorded(self, kind: str, given: Options) -> Options:
        asked = _plain(given)
        for spec in reversed(self.recorded or ()):
            for other, options in spec.objects():
                if other == kind and asked.items() <= options.items():
                    return options
        return asked

    def order(self, observation: Options, stack: Stack) -> None:
        """Keep the sentence if the defenses cannot follow each other."""
        from exhume.problem.mechanism import Mechanism

        # What does not build is said by `options`, or an own module of a stored run.
        with suppress(ExhumeError):
            built = build("observation", observation, own=self.own)
            defenses = tuple([build("defense", o, own=self.own) for o in stack])
            with self.gathered():
                Mechanism(built, defenses)

    def report(self) -> None:
        """Raise every problem in one message, if there is any."""
        found = list(dict.fromkeys(self.problems))
        if found:
            raise InvalidInput("\n".join(found))


def _plain(value: Any) -> Any:
    """Write options in JSON types; an infinite number becomes its name."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def _stacks(
    given: list[Options | str] | Options | str, checked: Checked
) -> list[Stack]:
    """Expand one entry of ``defenses`` to the stacks that it stands for."""
    families = [_strengths(as_options(d)) for d in listed(given)]
    return [
        tuple(checked.options("defense", options) for options in stack)
        for stack in itertools.product(*families)
    ]


def _strengths(options: Options) -> list[Options]:
    """Expand options that are lists of numbers to every combination."""
    lists = {name: v for name, v in options.items() if _is_numbers(v)}
    return [
        {**options, **dict(zip(lists, values, strict=True))}
        for values in itertools.product(*lists.values())
    ]


def _is_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    )
