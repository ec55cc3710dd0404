"""The JSON record inside an observation file: what was computed, and what is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from exhume.config import validate
from exhume.errors import InvalidInput, shown

__all__ = ["ENTRY", "FORMAT", "DefenseRecord", "Metadata", "TaskRecord", "parse"]

#: name of the one metadata entry of the safetensors file
ENTRY = "exhume"
#: number of this format; a file with another number is refused
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """What the client trained: loss, mode, event, and the map applied to inputs.

    ``event`` is the record of an :class:`~exhume.problem.event.EventSpec`.
    """

    loss: str
    mode: Literal["eval", "train"]
    event: dict[str, Any]
    reduction: Literal["mean"] = "mean"
    normalise: dict[str, list[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class DefenseRecord:
    """Name and options of a defense, and its plan but for the arrays."""

    options: dict[str, Any]
    covers: list[str]
    numbers: dict[str, int | float]

    def __post_init__(self) -> None:
        for name, value in self.numbers.items():
            if not math.isfinite(value):
                msg = f"number {name!r} is {value}; expected a finite one"
                raise InvalidInput(msg)


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The whole record; it never holds private data.

    Attributes:
        format: number of the format.
        kind: ``gradient`` or ``update``; the tensors are named ``<kind>/<parameter>``.
        sign: ``gradient``: the tensors are +∇L; ``step``: weights after minus before.
        observation: name and options of the observation model, as far as they are
            known; null for one full-batch gradient.
        task: what was trained.
        reference_sha256: hash of the weights at which it was computed, or null.
        batch_size: B, or null if withheld.
        clients: how many clients were averaged.
        defense: name, options and plan of every defense in order; null if withheld.
        facts: what the file gives beside the tensors, for a reader.
        unknown: what it withholds.
        released_in_clear: tensors that no defense touched.
        made_by: versions of the software that wrote it.
    """

    format: int
    kind: Literal["gradient", "update"]
    sign: Literal["gradient", "step"]
    task: TaskRecord
    observation: dict[str, Any] | None = None
    reference_sha256: str | None = None
    batch_size: int | None = None
    clients: Literal[1] = 1
    defense: list[DefenseRecord] | None = None
    facts: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    released_in_clear: list[str] = field(default_factory=list)
    made_by: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            msg = f"batch_size is {self.batch_size}; expected at least 1, or null"
            raise InvalidInput(msg)

    def dump(self) -> dict[str, str]:
        """Return the metadata of the safetensors file: one entry, a JSON string."""
        return {ENTRY: json.dumps(asdict(self), sort_keys=True, allow_nan=False)}


def parse(metadata: Mapping[str, str], *, what: str) -> Metadata | None:
    """Read the record; None if the file has none (plain tensors).

    Args:
        metadata: string metadata of the safetensors file.
        what: how to call the file in messages.

    Raises:
        InvalidInput: not JSON, of another format number, or not of this schema.
    """
    if ENTRY not in metadata:
        return None
    try:
        raw = json.loads(metadata[ENTRY])
    except (ValueError, RecursionError) as error:
        msg = f"the metadata of {what} is not valid JSON; write the file again"
        raise InvalidInput(msg) from error
    number = raw.get("format") if isinstance(raw, dict) else None
    if number != FORMAT:
        msg = (
            f"{what} has observation format {shown(number)}, this version reads format "
            f"{FORMAT}; use the version of exhume that wrote it"
        )
        raise InvalidInput(msg)
    return validate(Metadata, raw, what=f"the metadata of {what}")
