"""A family of defenses: a stack with one option free, its strength."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from exhume.audit.settings import Checked, as_options
from exhume.compare.settings import CompareSettings
from exhume.errors import InvalidInput
from exhume.report.words import label_without
from exhume.runs.records import Options

__all__ = ["Family", "Scale", "families"]

Scale = Literal["log", "linear", "integer", "remainder"]

_DIGITS = 3
_RANGE = (
    "give exactly one option as a range, for example "
    "{name = 'gaussian-noise', std = {weakest = 0.01, strongest = 10}}"
)


@dataclass(frozen=True)
class Family:
    """Defenses that differ in one number.

    Positions run from 0 (the weakest) to 1 (the strongest), evenly on the scale.

    Attributes:
        stack: the defenses, at the weakest.
        place: of the defense that varies in the stack.
        option: its option that varies.
        weakest: value at position 0.
        strongest: value at position 1.
        scale: ``log``, ``linear``, ``integer``, or ``remainder``: log of 1 − value.
    """

    stack: tuple[Options, ...]
    place: int
    option: str
    weakest: float
    strongest: float
    scale: Scale

    @property
    def label(self) -> str:
        """What it is called, without its strength."""
        return label_without(self.stack, self.place, self.option)

    def told(self, strength: float) -> str:
        """Name a strength: ``std 0.0316``, ``ratio 97.1 %``."""
        name = self.option.replace("_", " ")
        if self.scale == "remainder":
            return f"{name} {100 * strength:.6g} %"
        return f"{name} {strength:.{_DIGITS}g}"

    def at(self, strength: float) -> tuple[Options, ...]:
        """Return the stack of one strength."""
        stack = [dict(options) for options in self.stack]
        stack[self.place][self.option] = strength
        return tuple(stack)

    def written(self) -> Options | list[Options]:
        """Return the entry of ``defenses`` that asks for this family."""
        ends = {"weakest": self.weakest, "strongest": self.strongest}
        stack = [dict(options) for options in self.stack]
        stack[self.place][self.option] = {**ends, "scale": self.scale}
        return stack[0] if len(stack) == 1 else list(stack)

    def strength(self, position: float) -> float:
        """Return the value at a position, rounded to what a person would write."""
        first, last = self._scaled(self.weakest), self._scaled(self.strongest)
        value = first + position * (last - first)
        if self.scale == "integer":
            return round(value)
        if self.scale == "linear":
            return _rounded(value)
        if self.scale == "log":
            return _rounded(math.exp(value))
        return round(1 - _rounded(math.exp(value)), 12)

    def position(self, strength: float) -> float:
        """Undo :meth:`strength`, up to its rounding."""
        first, last = self._scaled(self.weakest), self._scaled(self.strongest)
        return (self._scaled(strength) - first) / (last - first)

    def _scaled(self, value: float) -> float:
        if self.scale == "log":
            return math.log(value)
        return math.log(1 - value) if self.scale == "remainder" else value


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def families(settings: CompareSettings, checked: Checked) -> list[Family]:
    """Read the families of a comparison; problems are gathered in ``checked``."""
    found = []
    observation = as_options(settings.observation)
    for given in settings.defenses:
        family = None
        with checked.gathered():
            family = _family(given)
        if family is None:
            continue
        for options in family.at(family.strongest):
            checked.options("defense", options)
        stack = tuple(checked.options("defense", options) for options in family.stack)
        checked.order(observation, stack)
        found.append(replace(family, stack=stack))
    labels = [family.label for family in found]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        checked.problems.append(f"{label!r} is given twice; keep one of the two")
    return found


def _family(given: list[Options | str] | Options) -> Family:
    listed = given if isinstance(given, list) else [given]
    stack = [as_options(options) for options in listed]
    ranges = [
        (place, name)
        for place, options in enumerate(stack)
        for name, value in options.items()
        if isinstance(value, Mapping)
    ]
    if len(ranges) != 1:
        msg = f"the defense {given!r} has {len(ranges)} ranges; {_RANGE}"
        raise InvalidInput(msg)
    place, option = ranges[0]
    weakest, strongest, scale = _ends(stack[place][option])
    stack[place][option] = weakest
    return Family(tuple(stack), place, option, weakest, strongest, scale)


def _ends(given: Mapping[str, Any]) -> tuple[float, float, Scale]:
    scale = given.get("scale", "log")
    ends: list[Any] = [given.get("weakest"), given.get("strongest")]
    numbers = all(isinstance(e, int | float) and math.isfinite(e) for e in ends)
    if not numbers or set(given) - {"weakest", "strongest", "scale"}:
        msg = f"the range {dict(given)!r} is not two numbers and a scale; {_RANGE}"
        raise InvalidInput(msg)
    if scale not in get_args(Scale):
        msg = f"the scale is {scale!r}; expected one of {', '.join(get_args(Scale))}"
        raise InvalidInput(msg)
    low, high = sorted(map(float, ends))
    fits = {"log": low > 0, "remainder": low >= 0 and high < 1}.get(scale, True)
    if low == high or not fits:
        msg = (
            f"the range {dict(given)!r} does not fit the scale {scale!r}: the ends "
            f"differ, on 'log' they are positive, on 'remainder' in [0, 1)"
        )
        raise InvalidInput(msg)
    return float(ends[0]), float(ends[1]), scale
