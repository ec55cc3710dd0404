"""The utility of one defense at one strength: a pure function of plain data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from exhume.errors import InvalidInput
from exhume.runs.executor import Job, measured
from exhume.runs.records import Options, content_hash
from exhume.runs.store import ResultFile

__all__ = ["MEASURE", "UtilityResult", "UtilitySpec", "UtilityStore", "measure"]

#: client batches that U1 and U2 are averaged over
_ONE_STEP_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class UtilitySpec:
    """One measurement of utility, as plain data; everything random is folded from seed.

    The weights at the start are those that a trial of the same seed attacks. Split,
    weights, order of batches and the numbers behind the noise do not depend on the
    defense: two defenses differ by what they do, not by luck.

    Attributes:
        data: data source.
        model: model source.
        loss: name of the training loss.
        mode: ``eval`` or ``train``.
        dtype: ``float32`` or ``float64``.
        classes: number K of outputs; 0 takes it from the labels.
        observation: what a client computes.
        batch_size: B of every client.
        defenses: stack of defenses, in order; empty for none.
        seed: of everything random.
        kind: ``training``, or ``one-step`` for U1 and U2 at the initial weights.
        steps: of training.
        optimiser: of the server.
        learning_rate: at the first step.
        schedule: of the rate, ``falling`` to 0 or ``constant``.
        held_out: examples that accuracy is measured on.
        public_examples: for calibration.
        recalibrate: steps between two calibrations; 0 for one.
        examples: to train on; 0 takes all that are neither held out nor public.
        order: of the examples, ``shuffled`` in every epoch or ``fixed``.
        loss_batch: examples whose training loss is evaluated together, which matters to
            BatchNorm in train mode; 0 for as many as fit.
    """

    data: Options
    model: Options
    loss: str
    mode: Literal["eval", "train"]
    dtype: Literal["float32", "float64"]
    classes: int
    observation: Options
    batch_size: int
    defenses: tuple[Options, ...]
    seed: int
    kind: Literal["training", "one-step"]
    steps: int
    optimiser: Literal["adam", "sgd", "nesterov"]
    learning_rate: float
    held_out: int
    public_examples: int
    recalibrate: int
    schedule: Literal["falling", "constant"] = "falling"
    examples: int = 0
    order: Literal["shuffled", "fixed"] = "shuffled"
    loss_batch: int = 0

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON: equal specs have equal ids everywhere."""
        return content_hash(asdict(self))


@dataclass(frozen=True, eq=False, kw_only=True)
class UtilityResult:
    """What one measurement gave.

    Attributes:
        spec: what was asked.
        status: ``done`` or ``failed``.
        reason: one sentence if failed, else "".
        values: ``loss`` (on the training data) of a training, and ``accuracy`` (held
            out) where its targets are classes; ``u1`` and ``u2`` of one step, see
            :func:`u1_u2`.
        seconds: wall time.
        versions: of exhume, torch, numpy and Python.
        arrays: none; the store asks for them.
    """

    spec: UtilitySpec
    status: Literal["done", "failed"]
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class UtilityStore(ResultFile[UtilityResult]):
    """Measured utilities by the id of their spec."""

    kind = UtilityResult


@measured(UtilityResult)
def measure(spec: UtilitySpec) -> UtilityResult:
    """Train, or take one step; never raises, whatever goes wrong inside."""
    return UtilityResult(spec=spec, status="done", values=_values(spec))


#: how executors measure utilities
MEASURE = Job(measure, UtilityResult)


def _values(spec: UtilitySpec) -> dict[str, float]:
    import torch

    from exhume.config import build
    from exhume.keys import fold
    from exhume.problem.mechanism import Mechanism
    from exhume.problem.task import Task
    from exhume.trials.one_step import u1_u2
    from exhume.trials.training import accuracy, mean_loss, train
    from exhume.trials.world import class_count

    dtype = getattr(torch, spec.dtype)
    whole = _loaded(json.dumps(spec.data, sort_keys=True))
    classes = class_count(spec.classes, whole.targets, spec.loss)
    model = build("model", spec.model).build(
        whole.spec, classes, fold(spec.seed, "weights")
    )
    task = Task(model.to(dtype), spec.loss, spec.mode)
    defenses = tuple(build("defense", options) for options in spec.defenses)
    mechanism = Mechanism(build("observation", spec.observation), defenses)
    held_out, public, private = _parts(spec, whole.to(dtype))
    if spec.kind == "one-step":
        count = min(_ONE_STEP_BATCHES, len(private) // spec.batch_size)
        rows = torch.arange(len(private)).split(spec.batch_size)[:count]
        batches = [private.select(row) for row in rows]
        u1, u2 = u1_u2(task, mechanism, batches, public, fold(spec.seed, "one-step"))
        return {"u1": u1, "u2": u2}
    trained = train(
        task,
        mechanism,
        private,
        public,
        steps=spec.steps,
        batch_size=spec.batch_size,
        optimiser=spec.optimiser,
        learning_rate=spec.learning_rate,
        recalibrate=spec.recalibrate,
        schedule=spec.schedule,
        order=spec.order,
        key=fold(spec.seed, "train"),
    )
    together = {"at_once": spec.loss_batch} if spec.loss_batch else {}
    with torch.no_grad():
        values = {"loss": mean_loss(trained, private, **together)}
        if not task.criterion.real:
            values["accuracy"] = accuracy(trained, held_out)
    return values


def _parts(spec: UtilitySpec, whole: Any) -> tuple[Any, Any, Any]:
    """Split the data into held-out, public and training examples, in random order."""
    import torch

    from exhume.keys import generator

    sizes = [spec.held_out, spec.public_examples]
    left = len(whole) - sum(sizes)
    rest = min(left, spec.examples or left)
    if left < max(spec.batch_size, spec.examples):
        msg = (
            f"the data has {len(whole)} examples: {spec.held_out} held out and "
            f"{spec.public_examples} public ones leave {max(left, 0)} to train on, "
            f"fewer than the {max(spec.batch_size, spec.examples)} that are asked for; "
            f"lower held_out or public_examples"
        )
        raise InvalidInput(msg)
    order = torch.randperm(len(whole), generator=generator(spec.seed, "parts"))
    held_out, public, private = (
        whole.select(rows) for rows in order[: sum(sizes) + rest].split([*sizes, rest])
    )
    return held_out, public, private


@lru_cache(maxsize=2)
def _loaded(options: str) -> Any:
    from exhume.config import build

    return build("data", json.loads(options)).load()
