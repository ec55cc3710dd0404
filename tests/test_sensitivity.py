"""Sensitivities of a release: against dense Jacobians, and with the predicted error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.observation import Candidate
from exhume.problem.sensitivity import (
    directions,
    exact_squared_sensitivities,
    relative_error,
    row_norms_squared,
    squared_sensitivities,
)
from exhume.problem.task import Task
from exhume.problem.tree import flatten

LABELS = torch.tensor([1, 0])


def network(dtype=torch.float64, *, mode="eval"):
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)]
    if mode == "train":
        layers.insert(1, nn.BatchNorm1d(6))
    net = nn.Sequential(*layers)
    source = generator(0, "network")
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=source) / 2)
    return Task(net.to(dtype), mode=mode)  # type: ignore[arg-type]


def points(*key, count=2):
    return torch.randn(count, 5, generator=generator(1, *key), dtype=torch.float64)


def dense(task, x, labels=LABELS):
    """Squared row norms of the Jacobian by central differences."""
    step, total = 1e-6, 0
    for index in range(x.numel()):
        shift = torch.zeros(x.numel(), dtype=x.dtype)
        shift[index] = step
        ends = [
            flatten(task.gradient(x + sign * shift.reshape(x.shape), labels))
            for sign in (1, -1)
        ]
        total = total + ((ends[0] - ends[1]) / (2 * step)).square()
    return total


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_exact_sensitivities_agree_with_finite_differences(mode):
    task, x = network(mode=mode), points()
    found = exact_squared_sensitivities(task, Gradient(), x, LABELS)
    assert {n: t.shape for n, t in found.items()} == {
        n: p.shape for n, p in task.parameters().items()
    }
    torch.testing.assert_close(flatten(found), dense(task, x), rtol=1e-5, atol=1e-9)


def test_examples_that_do_not_interact_add_their_own():
    task, x = network(), points()
    both = flatten(exact_squared_sensitivities(task, Gradient(), x, LABELS))
    own = 0
    for i in range(2):
        alone = x[i : i + 1], LABELS[i : i + 1]
        own = own + flatten(exact_squared_sensitivities(task, Gradient(), *alone))
    torch.testing.assert_close(both, own / 4)


@pytest.mark.parametrize(
    ("probes", "published", "slack"), [(10, 0.151, 0.04), (100, 0.049, 0.012)]
)
def test_median_relative_error_is_the_predicted_one(probes, published, slack):
    # The median of |N(0, s²)| is 0.6745 s.
    assert 0.6745 * relative_error(probes) == pytest.approx(published, rel=0.05)
    errors = relative_errors(probes, keys=4)
    assert float(errors.median()) == pytest.approx(published, abs=slack)


def test_a_thousand_probes_are_within_three_percent():
    errors = relative_errors(1000, keys=1)
    assert float(errors.median()) < 0.03
    assert float(errors.square().mean().sqrt()) == pytest.approx(
        relative_error(1000), rel=0.4
    )


def relative_errors(probes, keys):
    task, x = network(), points()
    exact = flatten(exact_squared_sensitivities(task, Gradient(), x, LABELS)).sqrt()
    found = [
        flatten(
            squared_sensitivities(task, Gradient(), x, LABELS, probes=probes, key=key)
        ).sqrt()
        for key in range(keys)
    ]
    return torch.cat([(a / exact - 1).abs() for a in found])


def test_the_estimate_is_unbiased():
    task, x = network(), points()
    exact = flatten(exact_squared_sensitivities(task, Gradient(), x, LABELS))
    found = squared_sensitivities(task, Gradient(), x, LABELS, probes=4000, key=7)
    # Each square is exact · χ²₁, with variance 2.
    deviation = (flatten(found) / exact - 1) / (2 / 4000) ** 0.5
    assert float(deviation.abs().max()) < 4.5


def test_precision_determinism_and_number_of_probes():
    single = network(torch.float32)
    before = torch.random.get_rng_state()
    one, two = (
        squared_sensitivities(single, Gradient(), points(), LABELS, probes=3, key=5)
        for _ in range(2)
    )
    assert all(t.dtype == torch.float32 for t in one.values())
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert torch.equal(before, torch.random.get_rng_state())
    other = squared_sensitivities(single, Gradient(), points(), LABELS, probes=3, key=6)
    assert not torch.equal(flatten(one), flatten(other))
    with pytest.raises(InvalidInput, match="from 0 probes"):
        directions(points(), 0, 0)


def test_many_directions_are_summed_in_parts(monkeypatch):
    task, x = network(), points()

    def forward(inputs):
        return Gradient().forward_func(task, Candidate(inputs, LABELS))

    drawn = directions(x, 150, 0)
    whole = flatten(row_norms_squared(forward, x, drawn))
    parts = sum(flatten(row_norms_squared(forward, x, u)) for u in drawn.split(30)) / 5
    torch.testing.assert_close(whole, parts)
    monkeypatch.setattr("exhume.problem.sensitivity._CHUNK_BYTES", 1)
    torch.testing.assert_close(flatten(row_norms_squared(forward, x, drawn)), whole)

    def stubborn(inputs):
        # Data-dependent control flow: vmap refuses it.
        return forward(inputs) if inputs.sum().item() < 1e9 else forward(-inputs)

    looped = row_norms_squared(stubborn, x, drawn[:5])
    torch.testing.assert_close(
        flatten(looped), flatten(row_norms_squared(forward, x, drawn[:5]))
    )


def test_a_sketch_can_be_differentiated_under_vmap():
    task, x = network(), points()

    def log_sketch(inputs):
        found = squared_sensitivities(task, Gradient(), inputs, LABELS, probes=4, key=0)
        return flatten(found).log()

    tangents = points("tangents", count=6).reshape(3, 2, 5)
    together = torch.func.vmap(lambda t: torch.func.jvp(log_sketch, (x,), (t,))[1])(
        tangents
    )
    step = 1e-6
    for tangent, found in zip(tangents, together, strict=True):
        difference = log_sketch(x + step * tangent) - log_sketch(x - step * tangent)
        torch.testing.assert_close(found, difference / (2 * step), rtol=1e-5, atol=1e-6)
