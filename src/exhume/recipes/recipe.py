"""A recipe as one dataclass: the schema of a file in ``recipes/``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from exhume.audit.settings import as_options
from exhume.errors import InvalidInput
from exhume.runs.records import Options
from exhume.runs.settings import check_least, check_positive

__all__ = ["Gain", "Recipe", "Series", "Stack", "Training", "differences", "merged"]

Stack = tuple[Options, ...]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve: a stack of defenses with a list of numbers for its strength.

    Attributes:
        name: of the curve.
        defense: what is attacked; one option is a list of numbers, weak to strong.
        training: what the loss is measured with, where a paper takes other settings
            for it; as many strengths. Empty for the same as ``defense``.
        published: (error, training loss) pairs of the paper's figure, approximate.

    Raises:
        InvalidInput: there is not exactly one list of numbers, or the two stacks
            differ in how many strengths they have.
    """

    name: str
    defense: list[Options | str]
    training: list[Options | str] = field(default_factory=list)
    published: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.strengths) != len(self.trained):
            msg = (
                f"the series {self.name!r} attacks {len(self.strengths)} strengths and "
                f"trains {len(self.trained)}; give as many of both"
            )
            raise InvalidInput(msg)
        wrong = [pair for pair in self.published if not min(pair) > 0]
        if wrong:
            msg = (
                f"the series {self.name!r} was published at {wrong[0]}; expected "
                f"a positive error and a positive loss"
            )
            raise InvalidInput(msg)

    @property
    def option(self) -> str:
        """The option that varies."""
        return _varied(self.name, self.defense)[0][1]

    @property
    def strengths(self) -> list[float]:
        """The numbers that vary."""
        return list(_varied(self.name, self.defense)[1])

    @property
    def attacked(self) -> list[Stack]:
        """The stacks that are attacked, one per strength."""
        return _stacks(self.name, self.defense)

    @property
    def trained(self) -> list[Stack]:
        """The stacks that are trained with, one per strength."""
        return _stacks(self.name, self.training or self.defense)


def _varied(
    name: str, given: list[Options | str]
) -> tuple[tuple[int, str], list[float]]:
    found = [
        ((place, option), value)
        for place, options in enumerate(map(as_options, given))
        for option, value in options.items()
        if isinstance(value, list)
        and value
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    ]
    if len(found) != 1:
        msg = (
            f"the series {name!r} has {len(found)} lists of numbers; give exactly one "
            f"option as a list, for example {{name = 'pruning', ratio = [0.1, 0.5]}}"
        )
        raise InvalidInput(msg)
    return found[0]


def _stacks(name: str, given: list[Options | str]) -> list[Stack]:
    (place, option), values = _varied(name, given)
    stacks = []
    for value in values:
        stack = [as_options(options) for options in given]
        stack[place] = {**stack[place], option: value}
        stacks.append(tuple(stack))
    return stacks


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a paper measures the utility of a defense: the loss after training with it.

    Attributes:
        examples: that are trained on.
        public_examples: for the calibration of defenses.
        batch_size: of a step, all clients together.
        clients: parts of a batch; each is defended by itself, and the server steps
            along their mean.
        steps: of training.
        optimiser: ``adam``, ``sgd``, or ``nesterov``, sgd with momentum 0.9.
        learning_rate: at the first step.
        schedule: of the rate, ``constant`` or ``falling``.
        order: of the examples: ``shuffled`` in every epoch, or ``fixed``.
        mode: of BatchNorm: ``eval``, or ``train`` for the statistics of each part, in
            training and for the loss after it.
        seeds: how many trainings each strength has.
    """

    examples: int
    public_examples: int
    batch_size: int
    clients: int = 1
    steps: int
    optimiser: Literal["adam", "sgd", "nesterov"]
    learning_rate: float
    schedule: Literal["constant", "falling"] = "constant"
    order: Literal["shuffled", "fixed"] = "shuffled"
    mode: Literal["eval", "train"] = "eval"
    seeds: int = 1

    def __post_init__(self) -> None:
        check_least(self, examples=1, public_examples=1, clients=1, steps=1, seeds=1)
        if self.batch_size < 1 or self.batch_size % self.clients:
            msg = (
                f"batch_size is {self.batch_size}; expected a multiple of the "
                f"{self.clients} clients"
            )
            raise InvalidInput(msg)
        check_positive(self, "learning_rate")


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Two families of a comparison whose errors are divided at equal utility.

    Attributes:
        family: its place in ``defenses``, from 1.
        over: place of the family that it is compared with.
        published: the same ratio in the paper, approximate; 0 if there is none.
    """

    family: int
    over: int
    published: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published result: how to run it, what was published, what agreement means.

    It holds either ``audit``, ``training`` and ``series`` (curves of error against
    training loss, each with the paper's own points), or ``compare`` (strengths that are
    calibrated to equal utility first).

    Attributes:
        title: of the report.
        reproduces: what, and of which paper and figure.
        bibtex: of the paper.
        agreement: what counts as agreement, in words.
        budget: CPU time of the full and of the reduced version, in words.
        source: where the published numbers come from, and how exact they are.
        data: the data source, without its path.
        place: environment variable of the path; "" if the data need none.
        corrections: defects of the published experiment that this one does not have.
        deviations: what is not as published, and is not a correction.
        audit: settings of ``exhume audit``, without data and defenses.
        training: how the utility is measured.
        series: the curves; the first is the one that others are compared with.
        compare: settings of ``exhume compare``, without data.
        gains: which families of ``compare`` are put over which.
        reduced: what is less in the version that runs by default: ``audit``,
            ``training`` and ``compare`` are merged into those above, ``strengths`` is
            how many of each series stay.

    Raises:
        InvalidInput: the recipe holds neither or both, or the reduced version names
            what the full one does not have.
    """

    title: str
    reproduces: str
    bibtex: str
    agreement: str
    budget: str
    source: str
    data: Options
    place: str = ""
    corrections: list[str] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    audit: Options = field(default_factory=dict)
    training: Training | None = None
    series: list[Series] = field(default_factory=list)
    compare: Options = field(default_factory=dict)
    gains: list[Gain] = field(default_factory=list)
    reduced: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        curves = bool(self.series) and self.training is not None
        if curves == bool(self.compare):
            msg = (
                "a recipe has either series with a training, or a comparison; it has "
                + ("both" if curves else "neither")
            )
            raise InvalidInput(msg)
        for table, taken in (("audit", {"defenses"}), ("compare", set())):
            found = {"data", "title", "out", *taken} & set(getattr(self, table))
            if found:
                msg = (
                    f"[{table}] gives {', '.join(sorted(found))}, which the recipe "
                    f"gives elsewhere; remove it"
                )
                raise InvalidInput(msg)
        count = len(self.compare.get("defenses", []))
        for gain in self.gains:
            if not {gain.family, gain.over} <= set(range(1, count + 1)):
                msg = (
                    f"gains puts family {gain.family} over {gain.over}, but there are "
                    f"{count} families, counted from 1"
                )
                raise InvalidInput(msg)
        unknown = set(self.reduced) - {"audit", "training", "compare", "strengths"}
        if unknown:
            msg = f"[reduced] has no {', '.join(sorted(unknown))}"
            raise InvalidInput(msg)


def merged(full: Any, less: Any) -> Any:
    """Put a reduced setting over a full one; tables merge, and lists of as many tables.

    >>> merged({"a": 1, "b": [{"c": 2, "d": 3}]}, {"b": [{"c": 0}]})
    {'a': 1, 'b': [{'c': 0, 'd': 3}]}
    """
    if isinstance(full, Mapping) and isinstance(less, Mapping):
        both = {k: merged(full[k], less[k]) for k in less if k in full}
        return {**full, **less, **both}
    tables = [
        isinstance(v, list) and all(isinstance(item, Mapping) for item in v)
        for v in (full, less)
    ]
    if all(tables) and len(full) == len(less):
        return [merged(a, b) for a, b in zip(full, less, strict=True)]
    return less


def differences(full: Any, less: Any, where: str = "") -> list[str]:
    """Say what a reduced setting has otherwise: ``steps: 10 → 5``.

    >>> differences({"a": 1, "b": [{"c": 2}]}, {"a": 1, "b": [{"c": 0}]})
    ['b c: 2 → 0']
    """
    if isinstance(full, Mapping) and isinstance(less, Mapping):
        keys = dict.fromkeys([*full, *less])
        parts = [
            differences(full.get(k), less.get(k), f"{where} {k}".strip()) for k in keys
        ]
        return list(itertools.chain(*parts))
    if isinstance(full, list) and isinstance(less, list) and len(full) == len(less):
        named = [
            f"{where} of {item['name']}" if "name" in item else where
            for item in full
            if isinstance(item, Mapping)
        ]
        if len(named) == len(full):
            parts = [
                differences(a, b, n.replace("_", " "))
                for a, b, n in zip(full, less, named, strict=True)
            ]
            return list(itertools.chain(*parts))
    return [] if full == less else [f"{where.replace('_', ' ')}: {full} → {less}"]
