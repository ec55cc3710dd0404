"""An audit as one dataclass: the schema of its TOML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from exhume.errors import InvalidInput
from exhume.runs.records import Options
from exhume.runs.settings import RunSettings, check_least

__all__ = ["AuditSettings"]


@dataclass(frozen=True, kw_only=True)
class AuditSettings(RunSettings):
    """A sweep: attacks × defenses × data × seeds, with bounds.

    In a defense, a list of numbers stands for several strengths:
    ``{name = "gaussian-noise", std = [1e-4, 1e-3]}`` is two defenses of one family.
    TOML has no null: the string ``"none"`` stands for it.

    Attributes:
        title: of the report.
        data: one data source, or several.
        model: the network.
        attacks: attacks to run; the baselines are always added.
        defenses: stacks of defenses; a stack is a list, ``[]`` is no defense, and a
            defense that stands alone needs no list.
        bounds: bounds to evaluate for every defense.
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
