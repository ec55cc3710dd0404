"""Conformance of relaxations x = g(z): on every kind of example, in every attack."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from typing import NoReturn

import pytest
import torch

from exhume.attacks.unknowns import fit_relaxation
from exhume.config import build, describe
from exhume.errors import Unsuited
from exhume.keys import generator
from exhume.problem.event import EventSpec
from exhume.problem.relaxation import Relaxation, Units
from exhume.problem.source import RelaxationSource

from .attacks import NAMES, brief, class_of, problem
from .rows import every
from .toys import make_world, reveal, smooth_mlp

every_relaxation = every("relaxation")
every_event = every("event")
#: attacks that search among examples
SEARCHING = [n for n in NAMES if "relaxation" in {f.name for f in fields(class_of(n))}]


def fitted(relaxation: RelaxationSource, event: EventSpec) -> Relaxation:
    """Fit to a problem whose first layer shows a span, or skip what it refuses."""
    made = make_world(
        event, labels=(1, 2, 3), model=smooth_mlp(event), dtype=torch.float64
    )
    units = Units(torch.tensor(0.3).double(), torch.tensor(0.7).double())
    try:
        return fit_relaxation(describe(relaxation), reveal(made), units)
    except Unsuited as error:
        refused(error)


def refused(error: Unsuited) -> NoReturn:
    """Skip the test if the refusal says why."""
    assert len(str(error)) > 30
    pytest.skip(str(error))


@every_relaxation
@every_event
def test_examples_are_decoded_one_by_one_in_their_shape_and_precision(
    relaxation, event
):
    g = fitted(relaxation, event)
    z = g.draw(generator(0), 3)
    assert z.shape == (3, g.size)
    assert z.dtype == torch.float64
    x = g.decode(z)
    assert x.shape == (3, *event.shape)
    assert x.dtype == torch.float64
    assert g.decode(z.float()).dtype == torch.float32
    for i in range(3):
        torch.testing.assert_close(g.decode(z[i : i + 1]), x[i : i + 1])


@every_relaxation
@every_event
def test_an_encoded_example_decodes_to_itself(relaxation, event):
    g = fitted(relaxation, event)
    x = g.decode(0.1 * g.draw(generator(3), 2))
    z = g.encode(x)
    assert z.shape == (2, g.size)
    torch.testing.assert_close(g.decode(z), x, rtol=1e-6, atol=1e-6)


@every_relaxation
@every_event
def test_one_that_reaches_all_examples_says_so_and_does(relaxation, event):
    g = fitted(relaxation, event)
    share = 0.01 + 0.98 * torch.rand(4, *event.shape, generator=generator(1)).double()
    x = share if event.low is None else event.low + (event.peak or 1) * share
    assert torch.allclose(g.decode(g.encode(x)), x, atol=1e-6) == g.onto


@every_relaxation
@every_event
def test_projecting_twice_is_projecting_once_and_draws_are_feasible(relaxation, event):
    g = fitted(relaxation, event)
    far = 10 * torch.randn(4, g.size, generator=generator(2)).double()
    inside = g.project(far)
    assert inside.shape == far.shape
    torch.testing.assert_close(g.project(inside), inside)
    drawn = g.draw(generator(5), 4)
    torch.testing.assert_close(g.project(drawn), drawn)
    assert torch.equal(g.draw(generator(5), 4), drawn)
    assert not torch.equal(g.draw(generator(6), 4), drawn)


@every_relaxation
@every_event
def test_derivatives_are_right_in_both_modes_and_orders(relaxation, event):
    g = fitted(relaxation, event)
    z = g.draw(generator(0), 2).requires_grad_()
    assert torch.autograd.gradcheck(
        g.decode, z, check_forward_ad=True, fast_mode=g.size > 50
    )
    assert torch.autograd.gradgradcheck(g.decode, z, fast_mode=g.size > 50)
    z, along, small = z.detach(), g.draw(generator(1), 2), 1e-6
    slope = torch.func.jvp(g.decode, (z,), (along,))[1]
    ends = [g.decode(z + step * along) for step in (small, -small)]
    torch.testing.assert_close(
        slope, (ends[0] - ends[1]) / (2 * small), rtol=1e-5, atol=1e-8
    )
    cotangent = torch.randn(slope.shape, generator=generator(2)).double()
    (back,) = torch.func.vjp(g.decode, z)[1](cotangent)
    torch.testing.assert_close((slope * cotangent).sum(), (along * back).sum())


@every_relaxation
@every_event
def test_it_pickles(relaxation, event):
    g = fitted(relaxation, event)
    z = g.draw(generator(0), 2)
    assert torch.equal(pickle.loads(pickle.dumps(g)).decode(z), g.decode(z))
    assert pickle.loads(pickle.dumps(relaxation)) == relaxation


@every_relaxation
@pytest.mark.parametrize("name", SEARCHING)
def test_every_attack_that_searches_takes_it(name, relaxation):
    attack = replace(brief(name), relaxation=describe(relaxation))
    p = problem(name, labels=(3, 0))
    try:
        found = attack(p, key=1)
    except Unsuited as error:
        refused(error)
    again = attack(p, key=1)
    assert torch.equal(found.inputs, again.inputs)
    assert found.inputs.shape[1:] == p.spec.shape
    assert bool(torch.isfinite(found.inputs).all())
    assert torch.equal(p.spec.clamp(found.inputs), found.inputs)
    assert found.inputs.dtype == p.task.dtype
    record = describe(attack)
    assert describe(build("attack", record)) == record
