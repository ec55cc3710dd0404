"""What the user says of an observation on the command line, beside what a file says."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from exhume.errors import InvalidInput

if TYPE_CHECKING:
    from exhume.observations.shared import SharedObservation
    from exhume.problem.event import EventSpec
    from exhume.problem.observation import ObservationModel

__all__ = ["Said", "complete", "options"]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the user says about an observation on the command line, as text.

    Attributes:
        shape: of one example, ``3,32,32`` or ``100``.
        event: kind of the examples; None takes it from the shape.
        range_: ``0,1``, or ``none`` for unbounded.
        mode: ``eval`` or ``train``.
        loss: name of the training loss.
        mean: of the normalisation, one number per channel.
        std: likewise.
        labels: of the batch.
        batch_size: B.
        scale: the file holds this multiple of the mean gradient.
        no_defense: the gradient was released as it was computed.
        schedule: what the client did over several steps, ``key=value`` options of an
            observation, ``update`` unless a name is among them; None for one gradient.
    """

    shape: str | None = None
    event: str | None = None
    range_: str | None = None
    mode: str | None = None
    loss: str | None = None
    mean: str | None = None
    std: str | None = None
    labels: str | None = None
    batch_size: int | None = None
    scale: float | None = None
    no_defense: bool = False
    schedule: tuple[str, ...] | None = None

    def observation(self) -> ObservationModel:
        """Return the local training that is said; nothing said of it stays open."""
        from exhume.config import build

        given = {"name": "update", **options(self.schedule or (), "--schedule")}
        unsaid = {"rate": None, "order": "unknown"}
        open_ = unsaid if given["name"] == "update" else {}
        return build("observation", {**open_, **given})

    def assumed(self) -> str:
        """Return a sentence on what is assumed of a local training, or ""."""
        given = options(self.schedule or (), "--schedule")
        missing = [n for n in ("epochs", "batch_size") if n not in given]
        if given.get("name", "update") != "update" or not missing:
            return ""
        steps = {
            "epochs": "one epoch, epochs=1",
            "batch_size": "all examples in every step, batch_size=0",
        }
        return (
            f"--schedule does not say {' and '.join(missing)}: attacks that simulate "
            f"the training assume {' and '.join(steps[n] for n in missing)}; an update "
            f"of another training is not explained by that"
        )

    def facts(self) -> dict[str, Any]:
        """Return the fields of a ``SharedObservation`` that are said."""
        import torch

        said: dict[str, Any] = {"mode": self.mode, "loss": self.loss}
        said["normalise"] = self._normalise()
        said["batch_size"] = self.batch_size
        if self.labels is not None:
            labels = [int(n) for n in _numbers("labels", self.labels, int)]
            said["targets"] = torch.tensor(labels).sort().values
            said["batch_size"] = self.batch_size or len(labels)
        if self.shape is not None:
            said["spec"] = self._spec()
        if self.no_defense:
            said["defenses"] = ()
        if self.schedule is not None:
            said["observation"] = self.observation()
        return {name: value for name, value in said.items() if value is not None}

    def _spec(self) -> EventSpec:
        from exhume.problem.event import EventSpec

        shape = tuple(int(n) for n in _numbers("shape", self.shape or "", int))
        ends = self._range()
        if self.event is None:
            spec = EventSpec.of_shape(shape)
        else:
            spec = EventSpec.of(self.event, shape)
        low, high = spec.usual or (None, None) if ends is None else ends
        return replace(spec, low=low, high=high)

    def _range(self) -> tuple[float | None, float | None] | None:
        """Return the range that is said, or None if nothing is said of it."""
        if self.range_ in (None, "none"):
            return None if self.range_ is None else (None, None)
        ends = _numbers("range", self.range_, float)
        if len(ends) != 2:
            msg = f"--range is {self.range_!r}; expected two numbers, like 0,1, or none"
            raise InvalidInput(msg)
        return ends[0], ends[1]

    def _normalise(self) -> Any:
        from exhume.problem.task import Normalisation

        if self.mean is None and self.std is None:
            return None
        if self.mean is None or self.std is None:
            msg = "give both --mean and --std of the normalisation, or neither"
            raise InvalidInput(msg)
        mean, std = _numbers("mean", self.mean, float), _numbers("std", self.std, float)
        return Normalisation(tuple(mean), tuple(std))


def _numbers(what: str, text: str, kind: type[int] | type[float]) -> list[float]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        example = "3,5" if kind is int else "0.5,0.25"
        msg = f"--{what} is {text!r}; expected numbers with commas, like {example}"
        raise InvalidInput(msg) from error


def complete(shared: SharedObservation, said: Said) -> SharedObservation:
    """Add what the user says to what the file says.

    Raises:
        InvalidInput: the two contradict each other, or neither says the shape of an
            example, the mode, or the batch size.
    """
    from exhume.problem.knowledge import UNKNOWN

    facts, recorded = said.facts(), shared.spec is not None
    if said.scale is not None:
        if recorded:
            msg = "the file says itself what it holds; --scale is for plain tensors"
            raise InvalidInput(msg)
        if said.scale == 0:
            msg = (
                "--scale is 0; expected the factor that the gradient was multiplied by"
            )
            raise InvalidInput(msg)
        facts["values"] = {n: t / said.scale for n, t in shared.values.items()}
    if recorded:
        _refuse_contradictions(shared, facts)
    full = replace(shared, **facts)
    for field, option in (("spec", "--shape"), ("mode", "--mode")):
        if getattr(full, field) is None:
            msg = f"the file does not say the {option[2:]}, so give {option}"
            raise InvalidInput(msg)
    if full.batch_size is UNKNOWN:
        msg = (
            "the file does not say how many examples the gradient was averaged over; "
            "give --batch-size (or --labels)"
        )
        raise InvalidInput(msg)
    return full


def _refuse_contradictions(shared: SharedObservation, facts: dict[str, Any]) -> None:
    from exhume.problem.knowledge import UNKNOWN

    for name, said in facts.items():
        held = getattr(shared, name)
        if held is UNKNOWN:
            continue
        if name == "targets":
            held, said = held.tolist(), said.tolist()
        if held != said:
            msg = f"the file says {name} = {held}, you say {said}; drop the option"
            raise InvalidInput(msg)


def options(given: Sequence[str], flag: str = "--option") -> dict[str, Any]:
    """Read ``key=value`` pairs; a value is TOML, or text where it is not.

    >>> options(["iterations=50", "start=prior-mean", "seconds=none"])
    {'iterations': 50, 'start': 'prior-mean', 'seconds': None}
    """
    pairs: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            example = "iterations=50" if flag == "--option" else "epochs=5"
            msg = f"{flag} is {text!r}; expected key=value, like {example}"
            raise InvalidInput(msg)
        try:
            pairs[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            pairs[key] = None if value == "none" else value
    return pairs
