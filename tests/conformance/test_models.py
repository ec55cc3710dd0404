"""Conformance of models: outputs, weights from the key alone, second derivatives."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch

from exhume import EventSpec, Task
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.observation import Candidate
from exhume.problem.source import ModelSource

from .rows import every, examples

#: large enough for any network
IMAGE = EventSpec.image(1, 25, 25)
EVENTS = [IMAGE, EventSpec.image(3, 32, 32), *examples("event")]


def drawn(event, count=2, dtype=torch.float32):
    local = generator(0, "conformance", "models")
    return torch.rand((count, *event.shape), generator=local, dtype=dtype)


def suited(model: ModelSource, *events: EventSpec) -> EventSpec:
    """Return the first kind of example that the network reads."""
    for event in (*events, *EVENTS):
        try:
            model.build(event, 3, key=0)
        except InvalidInput:
            continue
        return event
    pytest.fail("reads no kind of example")


@every("model")
@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("classes", [1, 10])
def test_an_output_per_class_or_a_refusal(model, event, classes):
    try:
        net = model.build(event, classes, key=0)
    except InvalidInput as error:
        refusal = str(error)
    else:
        assert net(drawn(event)).shape == (2, classes)
        return
    assert len(refusal) > 30
    assert suited(model) != event


@every("model")
def test_no_outputs_are_refused(model):
    with pytest.raises(InvalidInput, match="classes = 0"):
        model.build(suited(model), 0, key=0)


@every("model")
def test_weights_are_a_function_of_the_key(model):
    event = suited(model)
    first, again, other = (model.build(event, 3, k).state_dict() for k in (0, 0, 1))
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    weights = [k for k in first if k.endswith("weight") and "bn" not in k]
    changed = [not torch.equal(first[k], other[k]) for k in weights]
    assert sum(changed) >= len(weights) / 2
    assert changed[0]


@every("model")
def test_no_global_state_is_touched(model):
    event = suited(model)
    before, python = torch.get_rng_state(), random.getstate()
    numpy = np.random.get_state()[1].copy()  # noqa: NPY002
    model.build(event, 3, key=0)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy, np.random.get_state()[1])  # noqa: NPY002
    assert python == random.getstate()


@every("model")
def test_a_network_pickles_and_has_no_meta_tensor(model):
    event = suited(model)
    net = model.build(event, 3, key=0)
    copied = pickle.loads(pickle.dumps(net))
    inputs = drawn(event)
    assert torch.equal(net(inputs), copied(inputs))
    for name, value in net.state_dict().items():
        assert value.device.type == "cpu", name
        assert bool(torch.isfinite(value.float()).all()), name


@every("model")
@pytest.mark.parametrize(("mode", "channels"), [("eval", 1), ("train", 3)])
def test_the_gradient_can_be_differentiated(model, mode, channels):
    event = suited(model, EventSpec.image(channels, 10, 11))
    task = Task(model.build(event, 3, key=0).double(), mode=mode)
    inputs = drawn(event, dtype=torch.float64)
    candidate, gradient = Candidate(inputs, torch.tensor([0, 2])), Gradient()
    local = generator(1, "conformance", "models")
    tangent = torch.empty_like(inputs).normal_(generator=local)
    forward = gradient.jvp(task, candidate, tangent)
    cotangent = {
        n: torch.empty_like(t).normal_(generator=local) for n, t in forward.items()
    }
    backward = gradient.vjp(task, candidate, cotangent)
    left = sum(float((forward[n] * cotangent[n]).sum()) for n in forward)
    right = float((backward * tangent).sum())
    assert left == pytest.approx(right, rel=1e-9)
    assert left != 0
