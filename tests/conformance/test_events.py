"""Every kind of example: checks, distance, picture, record and headline."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from exhume import EventSpec
from exhume.config import build
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.registry import names

from .rows import every


def drawn(event, count, key=0):
    local = generator(key, "conformance")
    return event.harden(torch.rand((count, *event.shape), generator=local))


@every("event")
def test_an_event_is_plain_frozen_data(event):
    assert pickle.loads(pickle.dumps(event)) == event
    assert hash(event) == hash(replace(event))
    assert event.kind in names("event")
    with pytest.raises(FrozenInstanceError):
        event.low = 0.5


@every("event")
def test_a_record_is_json_and_gives_the_event_back(event):
    wide = replace(event, low=-1.0, high=3.5)
    for spec in (event, wide, replace(event, low=None, high=None)):
        assert EventSpec.from_record(json.loads(json.dumps(spec.record()))) == spec


@every("event")
def test_examples_pass_and_others_do_not(event):
    x = drawn(event, 3)
    event.check(x)
    for wrong, message in [
        (x.long(), "convert them to float"),
        (x[:0], "B ≥ 1"),
        (x[..., 1:], "inputs have shape"),
        (x / 0, "NaN or infinity"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            event.check(wrong)
    with pytest.raises(InvalidInput, match=r"outside the declared range \[0, 1\]"):
        replace(event, low=0.0, high=1.0).check(2 * x)


@every("event")
def test_what_counts_of_an_example_is_an_example_with_the_same_error(event):
    truth, guess = drawn(event, 2), drawn(event, 2, key=1)
    counts = event.mask(truth)
    if counts is None:
        counts = torch.ones_like(truth, dtype=torch.bool)
    for one, true, counted in zip(guess, truth, counts, strict=True):
        cut, wanted, spec = event.unpadded(one, true, counted)
        assert cut.shape == wanted.shape == spec.shape
        spec.check(wanted[None])
        own = ((one - true)[counted] ** 2).sum()
        torch.testing.assert_close(((cut - wanted) ** 2).sum(), own)


@every("event")
def test_what_an_optimiser_found_becomes_examples(event):
    wild = 3 * torch.randn((4, *event.shape), generator=generator(0))
    hard = event.harden(wild)
    event.check(hard)
    assert torch.equal(event.harden(hard), hard)


@every("event")
def test_the_distance_is_zero_at_the_example_alone(event):
    x = drawn(event, 4)
    cost = event.distance(x[:3], x)
    assert cost.shape == (3, 4)
    assert cost.dtype == torch.float64
    assert cost.diagonal().tolist() == [0.0] * 3
    assert bool((cost + torch.eye(3, 4) > 0).all())


@every("event")
def test_the_headline_is_an_error_that_is_least_at_the_truth(event):
    metric = build("metric", event.error)
    assert not metric.higher_is_better
    x = drawn(event, 4)
    exact, wrong = metric(x, x, event), metric(x.flip(0), x, event)
    assert exact.shape == (4,)
    assert bool((exact < wrong).all())


@every("event")
def test_an_example_is_drawn_with_and_without_an_estimate(event):
    x, guess = drawn(event, 2).numpy()
    own, other = event.draw(x, x), event.draw(guess, x)
    assert own.drawn
    assert other.drawn
    assert own != other == event.draw(guess, x)
    assert event.draw(np.zeros_like(x), np.zeros_like(x)).drawn
