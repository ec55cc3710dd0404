"""An audit as one dataclass: the schema of its TOML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from exhume.audit.records import Options

__all__ = ["AuditSettings"]


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """A sweep: attacks × defenses × data × seeds, with bounds.

    In a defense, a list of numbers stands for several strengths:
    ``{name = "gaussian-noise", std = [1e-4, 1e-3]}`` is two defenses of one family.

    Attributes:
        title: of the report.
        data: one data source, or several.
        model: the network.
        attacks: attacks to run; the baselines are always added.
        defenses: stacks of defenses; a stack is a list, ``[]`` is no defense.
        bounds: bounds to evaluate for every defense.
        seeds: seeds of the sweep, or how many.
        batch_size: B.
        loss: name of the training loss.
        mode: ``eval`` or ``train``.
        dtype: ``float32`` or ``float64``.
        threat: name of a threat model.
        prior: prior fitted to the public examples, or None.
        executor: ``serial`` or ``processes``.
        workers: number of processes; 0 takes one per core.
        out: folder of the run; "" makes ``runs/<title>``.
    """

    title: str = "Audit"
    data: list[Options | str] | Options | str = "faces"
    model: Options | str = "lenet-zhu"
    attacks: list[Options | str] = field(default_factory=lambda: ["gauss-newton"])
    defenses: list[list[Options]] = field(default_factory=lambda: [[]])
    bounds: list[Options | str] = field(default_factory=list)
    seeds: list[int] | int = 1
    batch_size: int = 1
    loss: str = "cross-entropy"
    mode: Literal["eval", "train"] = "eval"
    dtype: Literal["float32", "float64"] = "float32"
    threat: str = "labels-known"
    prior: Options | str | None = "gaussian"
    executor: Literal["serial", "processes"] = "processes"
    workers: int = 0
    out: str = ""


def as_options(value: Options | str) -> dict[str, Any]:
    """Write a bare name as options."""
    return {"name": value} if isinstance(value, str) else dict(value)
