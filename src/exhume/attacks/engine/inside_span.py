"""A problem seen from inside of a span: its examples are coefficients of a basis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from exhume.attacks.engine.dense_layers import Entry
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Problem
from exhume.problem.task import Task

__all__ = ["Inside", "Region", "region"]


@dataclass(frozen=True, eq=False)
class Region:
    """Where the inputs of a problem must stay: a box, perhaps behind a linear map.

    Attributes:
        low: least value, broadcastable to the images.
        high: largest value, likewise.
        image: inputs → what the box is about; None for the inputs themselves.
    """

    low: Tensor
    high: Tensor
    image: Callable[[Tensor], Tensor] | None = None

    def seen(self, inputs: Tensor) -> Tensor:
        """Return what has to stay in the box."""
        return inputs if self.image is None else self.image(inputs)


@dataclass(frozen=True, eq=False)
class Inside:
    """A problem whose examples are coefficients of a basis.

    Attributes:
        basis: orthonormal rows of what the entry layer receives, shape [k, d].
        entry: the layer, and what it receives of an input.
    """

    basis: Tensor
    entry: Entry

    @property
    def unit(self) -> float:
        """Size of the gain, so that coefficients have the units of the inputs."""
        return float(self.entry.gain.abs().median())

    def problem(self, problem: Problem, task: Task) -> Problem:
        """Return the problem as the inner attack sees it."""
        public = problem.public
        return replace(
            problem,
            spec=EventSpec.vector(len(self.basis)),
            task=self._task(task, problem.spec),
            prior=UNKNOWN,
            public=public if public is UNKNOWN else self._public(public, task),
            batch_statistics=UNKNOWN,
        )

    def inputs(self, coefficients: Tensor, task: Task, spec: EventSpec) -> Tensor:
        """Return x = Σ_k z_k q_k in the units of the data, shape [M, *event]."""
        seen = self._lift(spec.shape)(coefficients)
        return seen if task.normalise is None else task.normalise.undo(seen)

    def _lift(self, shape: tuple[int, ...]) -> _Lift:
        return _Lift(self.basis, self.unit, self.entry, shape)

    def _task(self, task: Task, spec: EventSpec) -> Task:
        inner = Task(task.model, task.loss, task.mode)
        lift = self._lift(spec.shape)
        before = _Before(lift, _box(task, spec, self.basis, lift))
        inner.model.register_forward_pre_hook(before)
        return inner

    def _public(self, public: Batch, task: Task) -> Batch:
        inputs = public.inputs.to(self.basis)
        seen = inputs if task.normalise is None else task.normalise(inputs)
        rows = self.entry.received(seen) @ self.basis.T / self.unit
        return Batch(rows, public.targets, EventSpec.vector(len(self.basis)))


@dataclass(frozen=True, eq=False)
class _Lift:
    """Coefficients → what the model reads; picklable, in the precision that comes."""

    basis: Tensor
    unit: float
    entry: Entry
    shape: tuple[int, ...]

    def __call__(self, coefficients: Tensor) -> Tensor:
        received = self.unit * coefficients @ self.basis.to(coefficients)
        gain, shift = (t.to(coefficients) for t in (self.entry.gain, self.entry.shift))
        return ((received - shift) / gain).reshape(-1, *self.shape)


@dataclass(frozen=True, eq=False)
class _Before:
    """A forward pre-hook: it leaves the names of the parameters as they are."""

    lift: _Lift
    region: Region | None

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.lift(args[0]), *args[1:])


def _box(task: Task, spec: EventSpec, like: Tensor, lift: _Lift) -> Region | None:
    """Return the range of the examples in the units of what the model reads."""
    if spec.low is None or spec.high is None:
        return None
    ends = [like.new_full((1, *spec.shape), v) for v in (spec.low, spec.high)]
    if task.normalise is not None:
        ends = [task.normalise(end) for end in ends]
    return Region(ends[0], ends[1], lift)


def region(task: Task, spec: EventSpec) -> Region | None:
    """Return where inputs must stay: what a span says, else the range of the spec.

    Args:
        task: perhaps that of :meth:`Inside.problem`.
        spec: of one example.
    """
    for hook in task.model._forward_pre_hooks.values():
        if isinstance(hook, _Before):
            return hook.region
    if spec.low is None or spec.high is None:
        return None
    some = next(task.model.parameters())
    return Region(some.new_tensor(spec.low), some.new_tensor(spec.high))
