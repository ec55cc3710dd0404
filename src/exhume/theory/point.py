"""One point of a scaling experiment: what to measure, and what was found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

from exhume.runs.records import Options, content_hash
from exhume.runs.store import ResultFile

__all__ = ["Inputs", "Kind", "Layer", "PointResult", "PointSpec", "PointStore"]

Layer = Literal["hidden", "output"]
Kind = Literal["random", "magnitude"]
Inputs = Literal["sphere", "basis", "images"]


@dataclass(frozen=True, kw_only=True)
class PointSpec:
    """A network, a batch, a defense and the ways to attack, as plain data.

    Strengths are in natural units, see :mod:`exhume.theory.network`.

    Attributes:
        row: of the table of rates.
        width: m.
        dimension: d; of images it is theirs.
        batch_size: B, of each client.
        activation: σ.
        layer: whose gradient is released.
        bias: constant that is added to every output, the last-layer bias trick.
        noise: σ ≥ 0, on the release of every row.
        clip: C > 0 of ``clipping`` and ``dp-sgd``; 0 for none.
        ratio: ρ of ``dropout`` and ``pruning``.
        kind: of pruning.
        count: K, local steps or clients.
        rate: of local steps, the share of a neuron's gradient that moves it.
        inputs: ``sphere`` draws them uniformly, ``basis`` takes e₁ … e_B, ``images``
            those of ``data``, scaled to norm 1.
        data: source of images.
        arms: ways of the tensor attack, see :data:`exhume.theory.measure.ARMS`.
        floor: compute the exact lower bound as well.
        seed: of everything random.
    """

    row: str
    width: int
    dimension: int
    batch_size: int
    activation: str
    layer: Layer
    bias: float
    noise: float
    clip: float = 0.0
    ratio: float = 0.0
    kind: Kind = "random"
    count: int = 1
    rate: float = 0.01
    inputs: Inputs = "sphere"
    data: Options = field(default_factory=dict)
    arms: tuple[str, ...]
    floor: bool = True
    seed: int

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON: equal specs have equal ids everywhere."""
        return content_hash(asdict(self))

    @property
    def examples(self) -> int:
        """How many inputs are behind the release: those of all clients."""
        clients = self.count if self.row == "secure-aggregation" else 1
        return clients * self.batch_size


@dataclass(frozen=True, eq=False, kw_only=True)
class PointResult:
    """What one point gave.

    Attributes:
        spec: what was asked.
        status: ``done`` or ``failed``.
        reason: one sentence if failed, else "".
        errors: arm → root-mean-square distance of an input; an arm that failed is
            missing.
        floor: the exact lower bound of the same quantity, or None.
        unmasked: the same without the mask, for pruning, or None.
        gradient_norm: ‖G‖ in natural units, before the defense.
        notes: why an arm failed or there is no bound, as sentences.
        seconds: wall time.
        versions: of exhume, torch, numpy and Python.
        similarity: of images: arm → SSIM of every image at the length of the original.
        arrays: of images: ``truth`` and one array per arm, of norm 1, shape [B, d].
    """

    spec: PointSpec
    status: Literal["done", "failed"]
    reason: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    floor: float | None = None
    unmasked: float | None = None
    gradient_norm: float = 0.0
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    similarity: dict[str, list[float]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class PointStore(ResultFile[PointResult]):
    """Measured points by the id of their spec."""

    kind = PointResult
