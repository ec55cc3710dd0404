"""Conformance of metrics: one finite value per example, or a reason for none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exhume import EventSpec, NotApplicable
from exhume.keys import generator
from exhume.problem.metric import Metric

from .closeness import assert_close_to_scale
from .rows import every, examples

COUNT = 4
every_event = pytest.mark.parametrize(
    "event",
    [*examples("event"), EventSpec.image(3, 16, 16), EventSpec.image(1, 25, 25)],
    ids=str,
)


def pair(
    metric: Metric, event: EventSpec, dtype=torch.float32
) -> tuple[Tensor, Tensor]:
    """Return a guess and the truth, of what the metric compares."""
    if metric.compares == "targets":
        classes = torch.arange(COUNT)
        return classes.flip(0), classes
    local = generator(0, "conformance", "metrics")
    truth = torch.rand((COUNT, *event.shape), generator=local, dtype=dtype)
    noise = torch.empty_like(truth).normal_(0, 0.1, generator=local)
    return (truth + noise).clamp(0, 1), truth


@every("metric")
@every_event
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_example_is_scored_or_there_is_a_reason(metric, event, dtype):
    guess, truth = pair(metric, event, dtype)
    found = metric(guess, truth, event)
    if isinstance(found, NotApplicable):
        assert len(found.reason) > 10
        return
    assert found.shape == (COUNT,)
    assert bool(torch.isfinite(found).all())
    for i in range(COUNT):
        alone = metric(guess[i : i + 1], truth[i : i + 1], event)
        scale = float(found.abs().max())
        assert_close_to_scale(alone[0], found[i], 1e-12, scale=scale)


@every("metric")
@every_event
def test_an_exact_guess_is_the_best_one(metric, event):
    guess, truth = pair(metric, event)
    exact, worse = metric(truth, truth, event), metric(guess, truth, event)
    if isinstance(exact, NotApplicable):
        return
    assert bool(torch.isfinite(exact).all())
    sign = 1 if metric.higher_is_better else -1
    assert bool((sign * exact > sign * worse).all())


@every("metric")
def test_some_kind_of_example_has_a_value(metric):
    found = [metric(*pair(metric, event), event) for event in examples("event")]
    assert any(isinstance(one, Tensor) for one in found)


@every("metric")
@every_event
def test_scoring_changes_nothing(metric, event):
    guess, truth = pair(metric, event)
    before, state = (guess.clone(), truth.clone()), torch.get_rng_state()
    metric(guess, truth, event)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(guess, before[0])
    assert torch.equal(truth, before[1])
