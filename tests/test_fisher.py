"""Fisher information: against dense Jacobians, Monte Carlo and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conformance.closeness import assert_close_to_scale
from exhume.bounds.fisher import (
    fisher_information,
    fisher_trace,
    gaussian_fisher_information,
    jacobian,
    mean_map,
)
from exhume.bounds.inequalities import bayesian_cramer_rao_bound
from exhume.defenses.clipping import Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.pruning import Pruning
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.law import Law
from exhume.problem.mechanism import Mechanism
from exhume.problem.task import Task
from exhume.problem.tree import flatten

LABELS = torch.tensor([1, 0])


def network(activation=None, *, inputs=5, width=6):
    net = nn.Sequential(
        nn.Linear(inputs, width), activation or nn.Tanh(), nn.Linear(width, 3)
    )
    source = generator(0, "network")
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=source) / 2)
    return Task(net)


def points(count=2, inputs=5, *key):
    return torch.randn(count, inputs, generator=generator(1, *key), dtype=torch.float64)


def setting(*defenses, task=None):
    """Return the mean of the release, its precision, and the law."""
    task = task or network()
    mechanism = Mechanism(Gradient(), (*defenses, GaussianNoise(std=0.1)))
    law = mechanism.law(mechanism.calibrate(task, None, 0))
    mean = mean_map(task, Gradient(), law, LABELS)
    return mean, law.precision({n: t.detach() for n, t in mean(points()).items()}), law


def dense_jacobian(mean, inputs, step=1e-6):
    """Central differences, coordinate by coordinate."""
    columns = []
    for index in range(inputs.numel()):
        shift = torch.zeros(inputs.numel(), dtype=torch.float64)
        shift[index] = step
        shift = shift.reshape(inputs.shape)
        difference = flatten(mean(inputs + shift)) - flatten(mean(inputs - shift))
        columns.append(difference / (2 * step))
    return torch.stack(columns, dim=1)


def test_jacobian_agrees_with_finite_differences():
    mean, _, _ = setting()
    x = points()
    found = jacobian(mean, x)
    torch.testing.assert_close(found, dense_jacobian(mean, x), rtol=1e-6, atol=1e-7)
    # The last bits depend on how many columns a matrix product takes together.
    assert_close_to_scale(found, jacobian(mean, x, chunk=3), 1e-12)


@pytest.mark.parametrize(
    "defenses",
    [
        (),
        (Clipping(max_norm=0.05),),
        (Pruning(ratio=0.5, kind="random"),),
    ],
    ids=["noise", "clipped", "pruned"],
)
def test_information_equals_the_dense_formula(defenses):
    mean, precision, _ = setting(*defenses)
    x = points()
    found = fisher_information(mean, precision, x)
    weights = flatten(precision)
    kept = weights > 0
    rows = jacobian(mean, x)[kept]
    expected = gaussian_fisher_information(rows, 1 / weights[kept])
    torch.testing.assert_close(found, expected)
    assert torch.equal(found, found.T)
    assert found.dtype == torch.float64
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-9 * float(found.trace())


@pytest.mark.parametrize("chunk", [1, 3, 10, 100])
def test_chunks_do_not_matter(chunk):
    mean, precision, _ = setting()
    whole = fisher_information(mean, precision, points())
    found = fisher_information(mean, precision, points(), chunk=chunk)
    assert_close_to_scale(found, whole, 1e-12)


def test_what_does_not_vectorise_is_looped():
    mean, precision, _ = setting()

    def stubborn(inputs):
        # Data-dependent control flow: vmap refuses it.
        return mean(inputs) if inputs.sum().item() < 1e9 else mean(-inputs)

    found = fisher_information(stubborn, precision, points())
    torch.testing.assert_close(found, fisher_information(mean, precision, points()))


def test_errors_of_the_model_are_not_swallowed():
    def broken(_):
        msg = "out of order"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="out of order"):
        jacobian(broken, points())


def test_examples_are_coupled_by_the_mean_over_the_batch():
    mean, precision, _ = setting()
    information = fisher_information(mean, precision, points())
    assert float(information[:5, 5:].abs().max()) > 1e-3
    assert information.shape == (10, 10)


def test_information_is_the_covariance_of_the_score():
    mean, precision, law = setting()
    x = points()
    std = flatten(law.precision(precision)).rsqrt()
    noise = torch.randn(20_000, len(std), generator=generator(2), dtype=torch.float64)
    # ∇ log p(O | x) = Jᵀ Σ⁻¹ (O − g(x)) = Jᵀ (noise / std)
    scores = noise / std @ dense_jacobian(mean, x)
    information = fisher_information(mean, precision, x)
    diagonal = information.diagonal()
    spread = ((diagonal.outer(diagonal) + information**2) / 20_000).sqrt()
    empirical = scores.T @ scores / 20_000
    assert float(((empirical - information).abs() / spread).max()) < 4.5


def test_clipping_changes_the_information_and_pruning_reduces_it():
    x = points()
    plain = fisher_information(*setting()[:2], x)
    same = fisher_information(*setting(Clipping(max_norm=1e3))[:2], x)
    torch.testing.assert_close(plain, same)
    clipped = fisher_information(*setting(Clipping(max_norm=0.05))[:2], x)
    assert float(clipped.trace()) < 0.5 * float(plain.trace())
    previous = plain
    for ratio in (0.2, 0.5, 0.9):
        # The masks of one key are nested, so the information falls in every direction.
        pruned = fisher_information(
            *setting(Pruning(ratio=ratio, kind="random"))[:2], x
        )
        lost = torch.linalg.eigvalsh(previous - pruned)
        assert float(lost.min()) > -1e-8 * float(plain.trace())
        assert float(lost.max()) > 0
        previous = pruned


def test_trace_is_unbiased_and_predicts_its_error():
    mean, precision, _ = setting()
    x = points()
    exact = float(fisher_information(mean, precision, x).trace())
    found = fisher_trace(mean, precision, x, probes=200, key=1)
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.standard_error < 0.1 * exact
    errors = [
        (fisher_trace(mean, precision, x, probes=10, key=k).value - exact)
        for k in range(20)
    ]
    predicted = found.standard_error * 20**0.5
    actual = float(torch.tensor(errors).square().mean().sqrt())
    assert actual == pytest.approx(predicted, rel=4.5 / 40**0.5)
    assert found == fisher_trace(mean, precision, x, probes=200, key=1)
    with pytest.raises(InvalidInput, match="1 probe"):
        fisher_trace(mean, precision, x, probes=1)


def test_a_dominant_direction_is_taken_out_of_the_sketch():
    # A release of almost one direction: its size changes along it, and it has all but
    # a thousandth of the trace. Plain probes would err by √(2/4) = 70 %.
    strong = torch.randn(400, 1, generator=generator(0), dtype=torch.float64)
    along = torch.randn(1, 30, generator=generator(1), dtype=torch.float64)
    weak = torch.randn(400, 30, generator=generator(2), dtype=torch.float64)
    matrix = strong @ along + 0.03 * weak

    def mean(inputs):
        return {"release": matrix @ (inputs.flatten() + 1)}

    x = points(1, 30)
    exact = float(matrix.square().sum())
    for key in range(5):
        found = fisher_trace(mean, None, x, probes=4, key=key)
        assert found.value == pytest.approx(exact, rel=1e-3)
        assert found.standard_error < 1e-3 * exact


def test_every_side_of_the_jacobian_gives_the_same_information(monkeypatch):
    mean, precision, _ = setting()

    def few(inputs):
        # Seven coordinates for ten unknowns.
        return {"release": flatten(mean(inputs))[:7]}

    x = points()
    short = {"release": flatten(precision)[:7]}
    rows = jacobian(few, x)
    torch.testing.assert_close(rows, jacobian(mean, x)[:7])
    expected = rows.T @ (short["release"].unsqueeze(1) * rows)
    torch.testing.assert_close(fisher_information(few, short, x), expected)
    whole = fisher_information(mean, precision, x)
    monkeypatch.setattr("exhume.bounds.fisher._BLOCK", 3)
    torch.testing.assert_close(fisher_information(mean, precision, x), whole)
    monkeypatch.setattr("exhume.bounds.fisher._DENSE_BYTES", 0)
    torch.testing.assert_close(fisher_information(mean, precision, x), whole)
    torch.testing.assert_close(fisher_information(few, short, x), expected)


def test_single_precision_tasks_are_computed_in_double():
    single, precision, _ = setting()
    double, _, _ = setting(task=network().to(torch.float64))
    x = points()
    assert_close_to_scale(
        fisher_information(single, precision, x.float()),
        fisher_information(double, precision, x.float().double()),
        1e-12,
    )


# --- noise that depends on the data --------------------------------------------------


def test_covariance_term_agrees_with_the_covariance_of_the_score():
    x = torch.tensor([0.3, -0.5], dtype=torch.float64)

    def channel(inputs):
        mean = torch.stack([inputs[0] ** 2, inputs.sum(), inputs[1].sin()])
        variance = torch.stack([inputs[0].exp(), 1 + inputs[1] ** 2, 0.5 + inputs[0]])
        return mean, variance

    mean, variance = channel(x)
    slope, bend = torch.func.jacrev(channel)(x)
    information = gaussian_fisher_information(slope, variance, bend)
    count = 40_000
    noise = torch.randn(count, 3, generator=generator(0), dtype=torch.float64)
    released = mean + noise * variance.sqrt()

    def log_likelihood(inputs, value):
        centre, spread = channel(inputs)
        return -0.5 * ((value - centre) ** 2 / spread + spread.log()).sum()

    scores = torch.func.vmap(torch.func.grad(log_likelihood), (None, 0))(x, released)
    products = scores.unsqueeze(1) * scores.unsqueeze(2)
    error = products.std(dim=0) / count**0.5
    assert float(((products.mean(0) - information).abs() / error).max()) < 4.5
    mean_only = gaussian_fisher_information(slope, variance)
    assert float(((products.mean(0) - mean_only).abs() / error).max()) > 20


def test_a_channel_that_speaks_through_its_noise():
    # o_j = exp(x/2) ξ_j with j = 1..200 and x ~ N(0, 1): the mean says nothing.
    count = 200
    x = torch.zeros((), dtype=torch.float64)
    variance = x.exp().expand(count)
    silent = torch.zeros(count, 1, dtype=torch.float64)
    prior = torch.eye(1, dtype=torch.float64)
    mean_only = gaussian_fisher_information(silent, variance)
    assert bayesian_cramer_rao_bound(mean_only, prior) == 1.0
    full = gaussian_fisher_information(silent, variance, variance.unsqueeze(1))
    floor = bayesian_cramer_rao_bound(full, prior)
    assert floor == pytest.approx(1 / 101)
    # A simple estimator beats the mean-only number a hundred times over, not the other.
    draws = 20_000
    source = generator(0, "channel")
    truth = torch.randn(draws, 1, generator=source, dtype=torch.float64)
    noise = torch.randn(draws, count, generator=source, dtype=torch.float64)
    released = (truth / 2).exp() * noise
    half = torch.tensor(count / 2, dtype=torch.float64)
    bias = torch.special.digamma(half) - half.log()
    unbiased = released.square().mean(1, keepdim=True).log() - bias
    errors = (unbiased * 100 / 101 - truth).square()
    assert float(errors.mean()) < 0.011
    assert float(errors.mean()) > floor - 4.5 * float(errors.std()) / draws**0.5


def test_no_noise_has_no_information():
    with pytest.raises(InvalidInput, match="variance is not positive"):
        gaussian_fisher_information(torch.eye(2), torch.tensor([1.0, 0.0]))


def test_void_coordinates_say_nothing():
    task = network()
    names = list(task.parameters())
    law = Law(
        variance={n: torch.tensor(0.01) for n in names},
        mask={n: torch.zeros(p.shape).bool() for n, p in task.parameters().items()},
    )
    mean = mean_map(task, Gradient(), law, LABELS)
    like = {n: t.detach() for n, t in mean(points()).items()}
    information = fisher_information(mean, law.precision(like), points())
    assert float(information.abs().max()) == 0.0
