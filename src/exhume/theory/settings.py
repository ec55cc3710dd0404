"""Scaling experiments as dataclasses: the schema of their TOML file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from exhume.config import validate
from exhume.errors import InvalidInput
from exhume.runs.records import Options
from exhume.runs.settings import RunSettings, parse_toml
from exhume.theory.measure import ARMS
from exhume.theory.point import Inputs, Kind, Layer
from exhume.theory.ranges import check_numbers, check_published, check_sweep

__all__ = [
    "QUANTITIES",
    "Experiment",
    "TheorySettings",
    "full_settings",
]

#: what an experiment can sweep → (option of a point, how its axis is called)
QUANTITIES = {
    "m": ("width", "width m"),
    "d": ("dimension", "dimension d"),
    "B": ("batch_size", "batch size B"),
    "sigma": ("noise", "noise σ"),
    "C": ("clip", "1/C of the clip"),
    "rho": ("ratio", "1/(1 − ρ)"),
    "K": ("count", "number K"),
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One sweep of one quantity under one defense.

    What is left out (None) is that of the settings.

    Attributes:
        row: of the table of rates, e.g. ``dropout``.
        sweep: ``m``, ``d``, ``B``, ``sigma``, ``C``, ``rho`` or ``K``.
        values: of the quantity; two or more.
        title: in place of a made one.
        arms: ways of the attack; the first is compared with the upper rate.
        published: [quantity, RMS error] of a paper, drawn beside ours.
        floor: compute the exact lower bound.
        kind: of pruning, ``random`` or ``magnitude``.
        clip: C, in natural units.
        ratio: ρ.
        count: K.
        rate: of local steps.
        inputs: ``sphere``, ``basis`` or ``images``.
        data: source of images.
        activation: σ.
        layer: ``hidden`` or ``output``.
        bias: of the last layer.
        noise: σ, in natural units.
        width: m.
        dimension: d.
        batch_size: B.

    Raises:
        InvalidInput: row, quantity, arm or values are not known or out of range.
    """

    row: str
    sweep: Literal["m", "d", "B", "sigma", "C", "rho", "K"]
    values: list[float]
    title: str = ""
    arms: list[str] | None = None
    published: list[list[float]] = field(default_factory=list)
    floor: bool = True
    kind: Kind = "random"
    clip: float = 0.0
    ratio: float = 0.0
    count: int = 1
    rate: float = 3e-4
    inputs: Inputs = "sphere"
    data: Options = field(default_factory=dict)
    activation: str | None = None
    layer: Layer | None = None
    bias: float | None = None
    noise: float | None = None
    width: int | None = None
    dimension: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        from exhume.bounds.rates import rate

        rate(self.row)
        check_numbers(self)
        check_sweep(self.row, self.sweep)
        check_published(self.published)
        if len(set(self.values)) < 2:
            msg = f"{self.row} over {self.sweep}: give two values or more"
            raise InvalidInput(msg)
        if any(not self._allowed(value) for value in self.values):
            msg = (
                f"{self.row} over {self.sweep}: the values {self.values} are not all "
                f"in its range (rho in [0, 1), all others above 0)"
            )
            raise InvalidInput(msg)
        _check_arms(self.arms or [])

    def _allowed(self, value: float) -> bool:
        return 0 <= value < 1 if self.sweep == "rho" else 0 < value < math.inf


@dataclass(frozen=True, kw_only=True)
class TheorySettings(RunSettings):
    """Scaling experiments of the tensor attack, and what they have in common.

    Attributes:
        title: of the report.
        experiments: what to sweep.
        seeds: seeds, or how many; each has its own network, batch and noise.
        arms: ways of the attack; ``moments`` is the estimator of the theorem, ``svd``
            takes the subspace from the gradient's own rows, ``auto`` chooses, and
            ``polished`` fits the gradient afterwards.
        activation: σ.
        layer: whose gradient is released.
        bias: of the last layer: 2 keeps labels readable, 30 is the paper's.
        noise: σ on every release, in natural units; without it there is no bound.
        width: m.
        dimension: d.
        batch_size: B.
        executor: where points are measured, as trials in an audit.
        workers: number of processes; 0 takes one per core.
        out: folder of the run; "" makes ``runs/<title>``.

    Raises:
        InvalidInput: a value is out of range, or there is nothing to run.
    """

    title: str = "Theory"
    experiments: list[Experiment] = field(default_factory=list)
    seeds: list[int] | int = 5
    arms: list[str] = field(default_factory=lambda: ["moments", "svd", "polished"])
    activation: str = "quadratic-cubic"
    layer: Layer = "hidden"
    bias: float = 2.0
    noise: float = 1.0
    width: int = 4000
    dimension: int = 25
    batch_size: int = 2
    executor: str = "processes"
    workers: int = 0
    out: str = ""

    def __post_init__(self) -> None:
        self.check_run()
        check_numbers(self)
        if not self.experiments:
            msg = "experiments is empty, so there is nothing to measure"
            raise InvalidInput(msg)
        if not self.arms:
            msg = f"arms is empty; choose among {', '.join(ARMS)}"
            raise InvalidInput(msg)
        _check_arms(self.arms)

    @classmethod
    def parse(cls, given: dict[str, Any], *, what: str) -> Self:
        """Make settings of plain data; a message names the experiment."""
        listed = given.get("experiments")
        if isinstance(listed, list):
            experiments = [
                _experiment(one, f"{what}, experiment {number}")
                for number, one in enumerate(listed, 1)
            ]
            given = {**given, "experiments": experiments}
        return super().parse(given, what=what)

    def option(self, experiment: Experiment, name: str) -> Any:
        """Return an option of an experiment, or the one in common."""
        given = getattr(experiment, name, None)
        return getattr(self, name) if given is None else given


def _experiment(given: Any, what: str) -> Any:
    if not isinstance(given, dict):
        return given
    # In the TOML of exhume "none" stands for nothing at all; here it names a row.
    row = {"row": "none"} if given.get("row", "") is None else {}
    return validate(Experiment, {**given, **row}, what=what)


def _check_arms(arms: list[str]) -> None:
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        msg = f"no arm is called {unknown[0]!r}; known: {', '.join(ARMS)}"
        raise InvalidInput(msg)


def full_settings(mnist: str | Path | None = None) -> TheorySettings:
    """Return the experiments of ``exhume theory --full``.

    Args:
        mnist: folder of MNIST, for one experiment more.
    """
    text = (resources.files("exhume.theory") / "full.toml").read_text("utf-8")
    given = parse_toml(text, what="the shipped full.toml")
    if mnist is not None:
        faces = [e for e in given["experiments"] if e.get("inputs") == "images"]
        digits = {"name": "mnist", "path": str(mnist)}
        for one in faces:
            more = {**one, "data": digits, "dimension": 784}
            more["title"] = one["title"].replace("faces", "MNIST digits")
            given["experiments"].append(more)
    return TheorySettings.parse(given, what="the shipped full.toml")


def as_plain(experiment: Experiment) -> dict[str, Any]:
    """Return the options of an experiment that are not the default, for TOML."""
    plain = {}
    for one in fields(experiment):
        value = getattr(experiment, one.name)
        if value is not None and value not in ({}, [], ""):
            plain[one.name] = value
    return plain
