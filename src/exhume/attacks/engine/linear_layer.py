"""Locate linear layers by what they compute, never by their position in a list.

One of them, the last two, all of a network, and the one that the input enters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from exhume.problem.event import EventSpec
from exhume.problem.law import Law
from exhume.problem.task import Task
from exhume.problem.tree import Tree, scale

__all__ = [
    "Entry",
    "LastTwo",
    "LinearCall",
    "LinearLayer",
    "dense_layers",
    "entry",
    "entry_weights",
    "features",
    "input_layer",
    "last_two_layers",
    "linear_calls",
    "output_layer",
    "probes",
    "scale_is_unknown",
]


@dataclass(frozen=True)
class LinearLayer:
    """A trainable ``nn.Linear``: its name in the model and those of its tensors."""

    module: str
    weight: str
    bias: str | None


@dataclass(frozen=True, eq=False)
class LastTwo:
    """The last two linear layers, and what passed them for some inputs.

    Attributes:
        hidden: the one before the last.
        output: the last one, whose outputs are the model's.
        received: what the hidden layer received, shape [N, d].
        before: what it returned, shape [N, m].
        after: what the output layer received, shape [N, m].
    """

    hidden: LinearLayer
    output: LinearLayer
    received: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True, eq=False)
class LinearCall:
    """One call of a linear layer: what it received and what it returned."""

    layer: LinearLayer
    received: Tensor
    returned: Tensor


def input_layer(task: Task, spec: EventSpec) -> LinearLayer | None:
    """Find the biased linear layer that reads the whole (normalised) input directly.

    The test is on values: what the layer receives equals the flattened input. It need
    not be the first layer, and what comes after it does not matter.

    Returns:
        the layer, or None if there is none.
    """
    inputs = probes(task, spec)
    seen = inputs if task.normalise is None else task.normalise(inputs)
    calls, _ = linear_calls(task, inputs)
    for call in calls:
        received = call.received
        if (
            call.layer.bias is not None
            and received.dim() == 2
            and received.shape[1] == spec.dimension
            and torch.equal(received, seen.flatten(1))
        ):
            return call.layer
    return None


def output_layer(task: Task, spec: EventSpec) -> LinearLayer | None:
    """Find the linear layer whose outputs are the model's outputs.

    For cross-entropy outputs count as equal if their softmax is, so a log-softmax at
    the end of the model is no obstacle.

    Returns:
        the layer, or None if the outputs come from something else.
    """
    calls, outputs = linear_calls(task, probes(task, spec))
    for call in reversed(calls):
        if call.returned.shape == outputs.shape and _same(task, call.returned, outputs):
            return call.layer
    return None


def last_two_layers(task: Task, inputs: Tensor) -> LastTwo | None:
    """Find the output layer, and the linear layer that was called before it.

    Args:
        task: the model.
        inputs: examples to run it on, shape [N, *event].

    Returns:
        both, or None if the model does not end so.
    """
    calls, outputs = linear_calls(task, inputs, frozen=True)
    if len(calls) < 2 or calls[-1].returned.shape != outputs.shape:
        return None
    first, last = calls[-2:]
    flat = first.received.dim() == 2 and last.received.dim() == 2
    if not flat or not _same(task, last.returned, outputs):
        return None
    return LastTwo(
        first.layer, last.layer, first.received, first.returned, last.received
    )


def features(
    task: Task, layer: LinearLayer, inputs: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return what a layer receives, [N, …], and the model's outputs [N, K].

    Args:
        task: the model.
        layer: one that :func:`output_layer` found.
        inputs: x, shape [N, *event].
        chunk: examples per forward pass; in train mode they share BatchNorm statistics.
    """
    received, outputs = [], []
    for part in inputs.split(chunk):
        calls, output = linear_calls(task, part)
        received += [c.received for c in calls if c.layer == layer]
        outputs.append(output)
    return torch.cat(received), torch.cat(outputs)


def entry_weights(law: Law | None, values: Tree) -> Tree:
    """Weigh the entries of some tensors: 0 where void, inverse variance up to a factor.

    The factor is common to the given tensors, so that they can be weighed against each
    other. Without a law (or without noise) every kept entry weighs 1.
    """
    weights = {name: torch.ones_like(t) for name, t in values.items()}
    if law is None:
        return weights
    variance = {
        name: law.variance.get(name, t.new_zeros(())).to(t).expand_as(t)
        for name, t in values.items()
    }
    largest = max(float(v.max()) for v in variance.values())
    if largest > 0:
        # An exact entry beside noisy ones gets a large weight, not an infinite one.
        least = max(min(float(v.min()) for v in variance.values()), 1e-6 * largest)
        weights = {name: least / v.clamp_min(least) for name, v in variance.items()}
    return law.keep(weights)


def scale_is_unknown(law: Law | None, observed: Tree) -> bool:
    """Say whether a map of the law may have scaled the gradient (clipping, say).

    Where a slightly larger release would have passed unchanged, nothing was scaled.
    """
    if law is None or not law.maps:
        return False
    larger = scale(1 + 1e-3, observed)
    passed = law.mean(larger)
    return any(
        not torch.allclose(passed[n], t, rtol=1e-5, atol=0.0)
        for n, t in law.keep(larger).items()
    )


def linear_calls(
    task: Task, inputs: Tensor, *, frozen: bool = False
) -> tuple[list[LinearCall], Tensor]:
    """Run the model and record its linear layers in order of execution.

    Args:
        task: the model.
        inputs: examples, shape [N, *event].
        frozen: record layers that are not trained as well.
    """
    trainable = task.parameters()
    recorded = dict(task.model.named_parameters()) if frozen else trainable
    name_of = {id(p): n for n, p in recorded.items()}
    calls: list[LinearCall] = []
    handles: list[RemovableHandle] = []
    for name, module in task.model.named_modules():
        if not isinstance(module, nn.Linear) or id(module.weight) not in name_of:
            continue
        bias = None if module.bias is None else name_of.get(id(module.bias))
        layer = LinearLayer(name, name_of[id(module.weight)], bias)
        handles.append(module.register_forward_hook(_recorder(layer, calls)))
    try:
        with torch.no_grad():
            outputs = task.predict(inputs, trainable)
    finally:
        for handle in handles:
            handle.remove()
    # The gradient of a weight that is used twice is a sum over its uses.
    names = [call.layer.weight for call in calls]
    return [c for c in calls if names.count(c.layer.weight) == 1], outputs


def _recorder(
    layer: LinearLayer, calls: list[LinearCall]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(LinearCall(layer, args[0], output))

    return hook


def probes(task: Task, spec: EventSpec) -> Tensor:
    """Return two different examples without a repeated value, for comparisons."""
    ramp = torch.linspace(0, 1, spec.dimension, dtype=task.dtype, device=task.device)
    if spec.low is not None and spec.peak is not None:
        ramp = spec.low + spec.peak * ramp
    return torch.stack([ramp, ramp.flip(0)]).reshape(2, *spec.shape)


def _same(task: Task, returned: Tensor, outputs: Tensor) -> bool:
    if task.criterion.softmax:
        returned, outputs = returned.softmax(-1), outputs.softmax(-1)
    return torch.allclose(returned, outputs, atol=1e-6)


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
