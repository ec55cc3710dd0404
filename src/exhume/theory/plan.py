"""From experiments to points, and to the place of each on the axes."""

from __future__ import annotations

from exhume.errors import InvalidInput
from exhume.theory.point import PointSpec
from exhume.theory.settings import QUANTITIES, Experiment, TheorySettings

__all__ = ["place", "points", "title"]

_WHOLE = {"width", "dimension", "batch_size", "count"}
_COMMON = (
    "activation", "layer", "bias", "noise", "width", "dimension", "batch_size"
)  # fmt: skip
_OWN = ("row", "kind", "clip", "ratio", "count", "rate", "inputs", "data", "floor")


def points(settings: TheorySettings, experiment: Experiment) -> list[PointSpec]:
    """List the points of an experiment, value by value and seed by seed.

    Raises:
        InvalidInput: a value of a size is not whole.
    """
    option, _ = QUANTITIES[experiment.sweep]
    shared = {name: settings.option(experiment, name) for name in _COMMON}
    shared |= {name: getattr(experiment, name) for name in _OWN}
    shared["arms"] = tuple(settings.option(experiment, "arms"))
    return [
        PointSpec(**{**shared, option: _value(option, value), "seed": seed})
        for value in experiment.values
        for seed in settings.seed_list
    ]


def _value(option: str, value: float) -> float | int:
    if option not in _WHOLE:
        return float(value)
    if value != int(value):
        msg = f"{option} is {value}; it must be a whole number"
        raise InvalidInput(msg)
    return int(value)


def place(experiment: Experiment, value: float) -> float:
    """Return where a value stands on the axis, which grows with the strength.

    Exponents are those of this number: of 1/C for a clip, of 1/(1 − ρ) for a mask.
    """
    if experiment.sweep == "C":
        return 1 / value
    return 1 / (1 - value) if experiment.sweep == "rho" else value


def title(settings: TheorySettings, experiment: Experiment) -> str:
    """Name an experiment."""
    if experiment.title:
        return experiment.title
    name = experiment.row.replace("-", " ").replace("dp sgd", "DP-SGD")
    if experiment.row == "pruning":
        name = f"{experiment.kind} pruning"
    if experiment.row == "none":
        name = "no defense"
    activation = settings.option(experiment, "activation")
    if activation != settings.activation:
        name += f", {activation}"
    if settings.option(experiment, "layer") != settings.layer:
        name += ", from the output layer"
    return name
