"""Networks of linear layers: all of them, and the one that the input enters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.linear_layer import LinearLayer, linear_calls, probes
from exhume.problem.event import EventSpec
from exhume.problem.task import Task

__all__ = ["Entry", "dense_layers", "entry"]


def dense_layers(task: Task, spec: EventSpec) -> tuple[LinearLayer, ...] | None:
    """Find all linear layers, if nothing else is trained and each is called once.

    Returns:
        the layers in the order of their calls, or None if the model has other trainable
        tensors, or calls a layer on more than one row per example.
    """
    calls, outputs = linear_calls(task, probes(task, spec))
    named = {n for c in calls for n in (c.layer.weight, c.layer.bias) if n is not None}
    rows = all(c.received.dim() == 2 and len(c.received) == 2 for c in calls)
    whole = named == set(task.parameters()) and outputs.dim() == 2
    return tuple(c.layer for c in calls) if whole and rows else None


@dataclass(frozen=True, eq=False)
class Entry:
    """The linear layer that reads the flattened input, up to a fixed affine map.

    Attributes:
        layer: its names.
        gain: g, with which each entry of the (normalised) input is multiplied, [d].
        shift: s, added to it, shape [d].
    """

    layer: LinearLayer
    gain: Tensor
    shift: Tensor

    def received(self, seen: Tensor) -> Tensor:
        """Return g ⊙ z + s, what the layer receives of (normalised) inputs.

        Args:
            seen: z, shape [M, *event].
        """
        return self.gain * seen.flatten(1) + self.shift

    def seen(self, received: Tensor) -> Tensor:
        """Undo :meth:`received`; shape [M, d]."""
        return (received - self.shift) / self.gain


def entry(task: Task, spec: EventSpec) -> Entry | None:
    """Find the trainable linear layer that reads the whole input entry by entry.

    The test is on values: what it receives is an affine function of each entry of the
    input, such as a normalisation or a scaling inside of the model.

    Returns:
        the layer, or None if there is none, or a fixed layer or a convolution comes
        first.
    """
    some = probes(task, spec)
    middle = some.mean(dim=0, keepdim=True).expand_as(some[:1])
    points = torch.cat([some, middle, some[:1].roll(1, dims=-1)])
    seen = points if task.normalise is None else task.normalise(points)
    rows = seen.flatten(1)
    for call in linear_calls(task, points)[0]:
        received = call.received
        if received.shape != rows.shape:
            continue
        run = rows[1] - rows[0]
        safe = torch.where(run.abs() > 0, run, 1)
        gain = (received[1] - received[0]) / safe
        # The middle entry of an odd ramp is equal in both probes.
        gain = torch.where(run.abs() > 0, gain, gain.median())
        shift = received[0] - gain * rows[0]
        fits = torch.allclose(gain * rows + shift, received, rtol=1e-4, atol=1e-5)
        if fits and bool((gain != 0).all()):
            return Entry(call.layer, gain, shift)
    return None
