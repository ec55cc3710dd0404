"""Conformance of priors: the density of each on every kind of example that it fits."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from exhume import Batch, EventSpec, Task, registry
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.prior import Density, Prior

from .rows import every, examples


def every_pair(test):
    return every("prior")(every("event")(test))


def correlated(event: EventSpec, count: int, *key, dtype=torch.float64) -> Batch:
    """Draw examples in [0, 1] whose neighbours share most of their value."""
    white = torch.rand(
        (count, event.dimension), generator=generator(0, *key), dtype=torch.float64
    )
    smooth = (white.cumsum(1) / torch.arange(1, event.dimension + 1)).to(dtype)
    targets = torch.zeros(count, dtype=torch.int64)
    return Batch(smooth.reshape(count, *event.shape), targets, event)


def public_of(event: EventSpec) -> Batch:
    """Draw enough public examples for a covariance."""
    return correlated(event, 2 * event.dimension + 16, "public")


def task_for(event: EventSpec, *, norm: bool = True) -> Task:
    """Make a convolutional network with weights and statistics from a key."""
    if event.grid is None:
        layers = [nn.Flatten(), nn.Unflatten(1, (1, event.dimension))]
        layers += [nn.Conv1d(1, 4, 3, padding=1), nn.Tanh()]
        layers += [nn.BatchNorm1d(4)] * norm
    else:
        layers = [nn.Conv2d(event.grid[0], 4, 3, padding=1), nn.Tanh()]
        layers += [nn.BatchNorm2d(4)] * norm
    net = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
    net.eval()(torch.zeros(2, *event.shape))
    source = generator(0, "weights")
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(0.2 + 0.3 * torch.rand(tensor.shape, generator=source))
    return Task(net).to(torch.float64)


def fitted(prior: Prior, event: EventSpec) -> Density:
    """Fit a prior, or skip the test where it says in a sentence that it cannot."""
    try:
        return prior.fit(public_of(event), task_for(event))
    except InvalidInput as error:
        refusal = str(error)
    assert len(refusal) > 30
    pytest.skip(refusal)


@every("prior")
def test_a_prior_fits_some_kind_of_example(prior):
    refused, events = 0, examples("event")
    for event in events:
        try:
            prior.fit(public_of(event), task_for(event))
        except InvalidInput:
            refused += 1
    assert refused < len(events)


@every_pair
def test_energy_is_a_scalar_of_the_inputs_type(prior, event):
    density = fitted(prior, event)
    assert density.name == registry.registered_name(type(prior))
    values = []
    for dtype in (torch.float32, torch.float64):
        energy = density.energy(correlated(event, 2, "x", dtype=dtype).inputs)
        assert energy.shape == ()
        assert energy.dtype == dtype
        values.append(float(energy))
    assert values[0] == pytest.approx(values[1], rel=1e-3)


@every_pair
def test_gradient_agrees_with_finite_differences(prior, event):
    density = fitted(prior, event)
    x = correlated(event, 2, "x").inputs.requires_grad_()
    assert torch.autograd.gradcheck(density.energy, (x,), atol=1e-5, rtol=1e-4)


@every_pair
def test_curvature_is_symmetric_and_positive(prior, event):
    density = fitted(prior, event)
    if "curvature" not in density.supports:
        pytest.skip("has no curvature")
    x, s, t = (correlated(event, 2, word).inputs - 0.5 for word in ("x", "s", "t"))
    forth = (s * density.curvature(x, t)).sum()
    back = (t * density.curvature(x, s)).sum()
    torch.testing.assert_close(forth, back)
    assert float((t * density.curvature(x, t)).sum()) >= 0
    single = density.curvature(x.float(), t.float())
    assert single.dtype == torch.float32
    assert single.shape == x.shape


@every_pair
def test_lacking_capabilities_refuse(prior, event):
    density = fitted(prior, event)
    x = correlated(event, 2, "x").inputs
    calls = {
        "mean": density.mean,
        "sample": lambda: density.sample(2, 0),
        "information": density.information,
        "curvature": lambda: density.curvature(x, x),
    }
    for capability, call in calls.items():
        if capability in density.supports:
            call()
        else:
            with pytest.raises(InvalidInput, match=f"has no {capability}"):
                call()


@every_pair
def test_fits_twice_alike_without_touching_global_randomness(prior, event):
    fitted(prior, event)
    task, public = task_for(event), public_of(event)
    torch_state = torch.random.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    x = correlated(event, 2, "x").inputs
    first, second = (prior.fit(public, task).energy(x) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch_state, torch.random.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


@every_pair
def test_pickles(prior, event):
    density = fitted(prior, event)
    x = correlated(event, 2, "x").inputs
    again = pickle.loads(pickle.dumps(density))
    assert torch.equal(again.energy(x), density.energy(x))
