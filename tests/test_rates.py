"""Rates of the theory: exponents, order, and the exact lower bound's own scalings."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import exhume
from exhume import registry
from exhume.bounds.rates import RATES, Quantities, rate
from exhume.bounds.rates.exact import (
    average_floor,
    effective_pruning_ratio,
    floor_at,
    information_at,
    root_mean_square,
    tangent_information,
)
from exhume.bounds.rates.formulas import (
    lower_clipped,
    lower_masked,
    lower_undefended,
    noise_against_reconstruction,
    noise_for_privacy,
    upper_dp_sgd,
    upper_dropout,
    upper_gradient_noise,
    upper_local_aggregation,
    upper_secure_aggregation,
    upper_undefended,
)
from exhume.bounds.rates.quantities import SYMBOLS
from exhume.bounds.rates.table import UNKNOWN, local_exponent
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.bound import Binds, NotApplicable

SIDES = [
    (f"{name} {which}", getattr(row, which))
    for name, row in RATES.items()
    for which in ("upper", "lower")
    if getattr(row, which).known
]
every_side = pytest.mark.parametrize(
    "side", [side for _, side in SIDES], ids=[name for name, _ in SIDES]
)
POSITIVE = st.floats(0.1, 100)
ANY = st.builds(
    Quantities,
    width=st.floats(10, 1e6),
    dimension=st.floats(2, 1e4),
    batch_size=st.floats(1, 64),
    noise=POSITIVE,
    clip=POSITIVE,
    gradient_norm=POSITIVE,
    kept=st.floats(0.01, 1),
    count=st.floats(1, 50),
)
#: where a quantity dominates the others, so that a sum is a power of it
LIMIT = {"B": 1e12, "sigma": 1e12, "|G|": 1e12, "C": 1e-12}


# The table


@every_side
@given(at=ANY)
@settings(max_examples=30, deadline=None)
def test_declared_exponents_are_the_slopes_of_the_formula(side, at):
    for symbol in SYMBOLS:
        limit = at.at(symbol, LIMIT.get(symbol, at.value(symbol)))
        if symbol in ("|G|", "C"):
            limit = limit.at("sigma", max(at.noise, 1.0))
        elif symbol == "sigma":
            limit = limit.at("B", 1.0)
        slope = local_exponent(side, symbol, limit)
        assert slope == pytest.approx(side.exponents.get(symbol, 0.0), abs=1e-6)


@pytest.mark.parametrize("name", RATES)
@given(at=ANY)
@settings(max_examples=30, deadline=None)
def test_lower_rates_are_below_upper_rates(name, at):
    row = rate(name)
    if row.upper.at is None or row.lower.at is None:
        return
    # Where the upper rate has no noise in it, noise of at most a residual is meant.
    if "sigma" not in row.upper.exponents:
        at = at.at("sigma", min(at.noise, 1.0)).at("C", math.inf)
    assert row.lower.at(at) <= row.upper.at(at) * (1 + 1e-12)


def test_the_table_is_that_of_the_theory():
    at = Quantities(
        width=400, dimension=4, batch_size=3, noise=2, clip=5, gradient_norm=15,
        kept=0.25, count=7,
    )  # fmt: skip
    found = {
        (name, which): side.at(at)
        for name, row in RATES.items()
        for which, side in (("upper", row.upper), ("lower", row.lower))
        if side.at is not None
    }
    assert found == {
        key: pytest.approx(value)
        for key, value in {
            ("none", "upper"): 0.3,
            ("none", "lower"): 0.2,
            ("local-aggregation", "upper"): 2.1,
            ("local-aggregation", "lower"): 0.2,
            ("gradient-noise", "upper"): 0.5,
            ("gradient-noise", "lower"): 0.2,
            ("dp-sgd", "upper"): 0.9,
            ("dp-sgd", "lower"): 0.6,
            ("clipping", "upper"): 0.3,
            ("clipping", "lower"): 0.6,
            ("dropout", "upper"): 0.6,
            ("dropout", "lower"): 0.4,
            ("pruning", "lower"): 0.4,
            ("secure-aggregation", "upper"): 0.7,
        }.items()
    }
    named = {side.at for _, side in SIDES}
    assert named == {
        upper_undefended,
        upper_local_aggregation,
        upper_gradient_noise,
        upper_dp_sgd,
        upper_dropout,
        upper_secure_aggregation,
        lower_undefended,
        lower_clipped,
        lower_masked,
    }


def test_what_is_not_known_and_what_was_not_read_is_said():
    assert rate("pruning").upper is UNKNOWN
    assert rate("pruning").upper.text == "unknown"
    assert rate("secure-aggregation").upper.origin == "second-hand"
    assert rate("clipping").lower.origin == "derived"
    with pytest.raises(InvalidInput, match="no exponent"):
        local_exponent(UNKNOWN, "m", Quantities(width=10, dimension=2))
    known = registry.names("defense")
    for name, row in RATES.items():
        assert row.name == name
        assert row.defense is None or row.defense in known
        assert all(s.endswith(".") for s in row.assumptions)
    assert any("Second-hand" in s for s in rate("dropout").assumptions)


def test_privacy_asks_for_more_noise_than_reconstruction():
    # At this noise the lower rate is 1: nothing is reconstructed.
    sigma = noise_against_reconstruction(900, 9)
    assert lower_undefended(Quantities(width=900, dimension=9, noise=sigma)) == 1
    assert noise_for_privacy(900, 1, math.exp(-1)) == pytest.approx(30)
    assert noise_for_privacy(900, 1, 1e-5) > 9**0.5 * sigma


@pytest.mark.parametrize(("name", "value"), [("width", 0), ("kept", 1.5)])
def test_quantities_are_checked(name, value):
    with pytest.raises(InvalidInput, match=name):
        Quantities(**{"width": 10, "dimension": 2, name: value})
    with pytest.raises(InvalidInput, match="no row 'noise'"):
        rate("noise")
    with pytest.raises(InvalidInput, match="no quantity is called 'p'"):
        Quantities(width=10, dimension=2).at("p", 1.0)


# Exact lower bounds


def reference(width, dimension, seed=0, batch=2, defenses=(), noise=1.0):
    """The tanh network of the scalings; only the gradient of its output is released."""
    draw = torch.randn(width, dimension, generator=generator(seed, "hidden"))
    hidden = nn.Linear(dimension, width, bias=False)
    hidden.weight = nn.Parameter(draw, requires_grad=False)
    output = nn.Linear(width, 1, bias=False)
    nn.init.constant_(output.weight, 1 / width)
    model = nn.Sequential(hidden, nn.Tanh(), output)
    x = torch.randn(
        batch, dimension, generator=generator(seed, "x"), dtype=torch.float64
    )
    x = x / x.norm(dim=1, keepdim=True)
    y = torch.randn(batch, 1, generator=generator(seed, "y")).sign()
    stack = (exhume.defense("gaussian-noise", std=noise), *defenses)
    return exhume.World(
        exhume.Task(model, loss="mse"),
        exhume.Batch(x, y, exhume.EventSpec.vector(dimension)),
        exhume.Mechanism(exhume.observations.Gradient(), stack),
    )


def rms(*args, **options) -> float:
    found = floor_at(reference(*args, **options))
    assert not isinstance(found, NotApplicable), found
    return found.rms


def test_the_exact_lower_bound_scales_as_the_table_says():
    widths = [500, 1000, 2000]
    by_width = [
        sum(math.log(rms(m, 20, seed)) for seed in range(3)) / 3 for m in widths
    ]
    # Published reference: .5460, .3761, .2616, slope −0.52.
    assert math.exp(by_width[0]) == pytest.approx(0.546, rel=0.06)
    slope = (by_width[-1] - by_width[0]) / math.log(4)
    assert slope == pytest.approx(-0.52, abs=0.05)
    rise = math.log(rms(4000, 20) / rms(4000, 5)) / math.log(4)
    assert rise == pytest.approx(0.42, abs=0.12)
    assert rms(500, 20, noise=3.0) == pytest.approx(3 * rms(500, 20))


def test_the_effective_ratio_of_random_pruning_is_near_its_own():
    bare = rms(8000, 10)
    mask = exhume.defense("pruning", ratio=0.7, kind="random")
    found = effective_pruning_ratio(bare, rms(8000, 10, defenses=(mask,)))
    assert found == pytest.approx(0.7, abs=0.03)
    assert effective_pruning_ratio(1.0, 2.0) == 0.75
    with pytest.raises(InvalidInput, match="positive"):
        effective_pruning_ratio(0.0, 1.0)


def test_knowing_the_norm_removes_one_direction_per_example():
    world = reference(300, 6)
    information = information_at(world)
    assert isinstance(information, torch.Tensor)
    tangent = tangent_information(information, world.batch.inputs)
    assert tangent.shape == (10, 10)
    # Independent oracle: penalise the norms without limit and invert.
    normals = torch.block_diag(*world.batch.inputs.unsqueeze(0).unbind(1))
    pinned = information + 1e9 * normals.T @ normals
    total = float(torch.linalg.inv(pinned).trace())
    known = floor_at(world, unit_norm=True)
    free = floor_at(world)
    assert not isinstance(known, NotApplicable)
    assert not isinstance(free, NotApplicable)
    assert known.rms == pytest.approx(root_mean_square(total, 2), rel=1e-5)
    assert known.rms < free.rms
    assert len(known.assumptions) == len(free.assumptions) + 1


@pytest.mark.parametrize("batch", [1, 2])
def test_a_number_of_known_size_leaves_nothing_to_bound(batch):
    world = reference(50, 1, batch=batch)
    found = floor_at(world, unit_norm=True)
    assert isinstance(found, NotApplicable)
    assert "take two dimensions or more" in found.reason
    empty = tangent_information(torch.eye(batch).double(), world.batch.inputs)
    assert empty.shape == (0, 0)


def test_without_noise_there_is_no_exact_bound():
    world = reference(50, 3)
    quiet = exhume.Mechanism(exhume.observations.Gradient())
    found = floor_at(dataclasses.replace(world, mechanism=quiet))
    assert isinstance(found, NotApplicable)
    assert "no noise" in found.reason
    few = floor_at(reference(3, 20))
    assert isinstance(few, NotApplicable)
    assert "no unbiased attack" in few.reason


def test_the_bayesian_counterpart_binds_every_attack():
    world = reference(300, 4, batch=1)
    public = exhume.Batch(
        torch.randn(60, 4, generator=generator(0, "public")) / 2,
        torch.ones(60, 1),
        world.batch.spec,
    )
    prior = exhume.prior("gaussian").fit(public, world.task)
    found = average_floor(world, prior, draws=4)
    assert not isinstance(found, NotApplicable)
    assert found.binds is Binds.EVERY_ATTACK
    bound = exhume.bound("bayesian-cramer-rao", draws=4)(world, prior)
    assert found.rms == pytest.approx(bound.total**0.5)
    assert isinstance(average_floor(world), NotApplicable)
