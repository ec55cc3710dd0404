"""Differential privacy of a mechanism: what is bounded, what noise counts, and ε."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

import exhume
from exhume.defenses.clipping import Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.pruning import Pruning
from exhume.errors import InvalidInput
from exhume.observations.gradient import Gradient
from exhume.problem.mechanism import Mechanism
from exhume.problem.privacy import Guarantee, gaussian_multiplier, laplace_multiplier

SHAPES = {"a": (3, 2), "b": (4,)}


def clipped(norm=1.0, names=("a", "b"), unit="client"):
    return Guarantee(SHAPES).clipped(names, norm, unit)


def noise(std, names=("a", "b")):
    return dict.fromkeys(names, std**2)


def guarantee(*defenses):
    task = exhume.Task(nn.Linear(4, 3))
    mechanism = Mechanism(Gradient(), defenses)
    return mechanism.guarantee(mechanism.calibrate(task, None, 0))


# --- the multiplier -------------------------------------------------------------------


def test_multipliers_are_the_worst_direction():
    assert gaussian_multiplier([2.0], [3.0]) == pytest.approx(1.5)
    # Two groups at their limits together: C/σ adds in squares.
    assert gaussian_multiplier([3.0, 4.0], [1.0, 1.0]) == pytest.approx(0.2)
    assert gaussian_multiplier([1.0, 1.0], [1.0, 0.0]) == 0
    assert gaussian_multiplier([], []) == 0
    assert gaussian_multiplier([1.0], [math.inf]) == math.inf
    # The worst direction of an l2 ball in the 1-norm is the diagonal.
    direction = torch.ones(9, dtype=torch.float64) / 3
    expected = 0.5 / float(direction.abs().sum())
    found = laplace_multiplier([1.0], [0.5 * 2**0.5], [9])
    assert found == pytest.approx(expected)
    assert laplace_multiplier([1.0], [0.0], [9]) == 0


def test_no_direction_of_the_clipped_ball_stands_out_more_than_the_multiplier_says():
    generator = torch.Generator().manual_seed(0)
    std = torch.rand(10, generator=generator, dtype=torch.float64) + 0.1
    z = gaussian_multiplier([2.0], [float(std.min())])
    moves = torch.randn(5000, 10, generator=generator, dtype=torch.float64)
    moves = 2 * moves / torch.linalg.vector_norm(moves, dim=1, keepdim=True)
    moves = torch.cat([moves, 2 * torch.eye(10, dtype=torch.float64)])
    seen = torch.linalg.vector_norm(moves / std, dim=1)
    assert float(seen.max()) == pytest.approx(1 / z)


def test_shaped_noise_counts_by_its_smallest_scale():
    shaped = {"a": torch.full((3, 2), 4.0), "b": torch.tensor([4.0, 1.0, 9.0, 4.0])}
    assert clipped(2.0).plus_noise(shaped).multiplier == pytest.approx(0.5)
    laplace = clipped(2.0).plus_noise(shaped, "laplace")
    assert laplace.multiplier == pytest.approx(1 / 2**0.5 / (2 * 10**0.5))


def test_variances_add_until_something_follows_them():
    twice = clipped().plus_noise(noise(3.0)).plus_noise(noise(4.0))
    assert twice.multiplier == pytest.approx(5.0)
    sealed = clipped().plus_noise(noise(3.0)).processed("a sign").plus_noise(noise(4.0))
    assert sealed.multiplier == pytest.approx(3.0)
    assert sealed.reasons == ()
    again = clipped().plus_noise(noise(3.0)).clipped(["a", "b"], 1e-9, "client")
    assert again.plus_noise(noise(4.0)).multiplier == pytest.approx(3.0)


def test_a_coordinate_that_a_public_mask_removed_needs_no_noise():
    bare = {"a": 1.0, "b": torch.tensor([1.0, 0.0, 1.0, 1.0])}
    kept = {"b": torch.tensor([True, False, True, True])}
    assert clipped().plus_noise(bare).multiplier == 0
    assert clipped().masked(kept).plus_noise(bare).multiplier == pytest.approx(1)
    assert clipped().plus_noise(bare).masked(kept).multiplier == pytest.approx(1)
    none = {
        name: torch.zeros(shape, dtype=torch.bool) for name, shape in SHAPES.items()
    }
    assert clipped().masked(none).plus_noise(bare).multiplier == math.inf


def test_clippings_combine():
    apart = clipped(3.0, ["a"]).clipped(["b"], 4.0, "client")
    assert apart.plus_noise(noise(1.0)).multiplier == pytest.approx(1 / 5)
    tighter = clipped(3.0).clipped(["a", "b"], 2.0, "client").plus_noise(noise(1.0))
    looser = clipped(2.0).clipped(["a", "b"], 3.0, "client").plus_noise(noise(1.0))
    assert tighter.multiplier == looser.multiplier == pytest.approx(0.5)
    # The projection onto a ball does not move apart what an example moved little.
    finer = clipped(0.1, unit="example").clipped(["a", "b"], 9.0, "client")
    assert finer.unit == "example"
    assert finer.plus_noise(noise(1.0)).multiplier == pytest.approx(10)


def test_unknown_maps_and_private_scales_break_it():
    unknown = clipped().processed("a map").plus_noise(noise(1.0))
    assert (unknown.multiplier, unknown.reasons) == (0, ("a map",))
    kept = clipped().processed().plus_noise(noise(1.0))
    assert kept.multiplier == pytest.approx(1)
    private = clipped().plus_noise(noise(1.0)).void("the scale is private")
    assert (private.multiplier, private.reasons) == (0, ("the scale is private",))
    mixed = clipped().plus_noise({"a": 1.0}).plus_noise(noise(1.0), "laplace")
    assert mixed.reasons == ("noise of two families is mixed",)
    with pytest.raises(InvalidInput, match="the sensitivity is 0"):
        clipped(0.0)


# --- mechanisms -----------------------------------------------------------------------

CLIP, NOISE = Clipping(max_norm=2.0), GaussianNoise(std=3.0)


@pytest.mark.parametrize(
    "defenses",
    [
        (CLIP, NOISE),
        (CLIP, NOISE, Pruning(ratio=0.5)),
        (CLIP, NOISE, Clipping(max_norm=0.1)),
        (CLIP, Pruning(ratio=0.5), NOISE),
        (CLIP, Pruning(ratio=0.5, kind="random"), NOISE),
        (NOISE, CLIP, NOISE),
    ],
)
def test_clipping_then_noise_protects_a_client(defenses):
    found = guarantee(*defenses)
    assert found.multiplier == pytest.approx(1.5)
    assert (found.unit, found.reasons) == ("client", ())


@pytest.mark.parametrize(
    ("defenses", "reason"),
    [
        ((), "no clipping bounds"),
        ((NOISE,), "no clipping bounds"),
        ((CLIP,), "carry no noise after the clipping: weight, bias"),
        ((NOISE, CLIP), "carry no noise after the clipping: weight, bias"),
        ((CLIP, GaussianNoise(std=0.0)), "carry no noise"),
        (
            (CLIP, GaussianNoise(std=1.0, only=("bias",))),
            "carry no noise after the clipping: weight$",
        ),
        (
            (Clipping(max_norm=1.0, only=("bias",)), NOISE),
            "released without a bounded norm: weight$",
        ),
    ],
)
def test_what_is_not_private_says_why(defenses, reason):
    found = guarantee(*defenses)
    assert found.multiplier == 0
    assert len(found.reasons) == 1
    assert re.search(reason, found.reasons[0])


def test_largest_entries_of_a_sum_are_chosen_by_every_example_together():
    pruning = Pruning(ratio=0.5)
    plan = pruning.calibrate(exhume.Task(nn.Linear(4, 3)), None, 0)
    before = Guarantee(plan.shapes).clipped(plan.covers, 1.0, "example")
    after = pruning.account(before, plan).plus_noise(dict.fromkeys(plan.covers, 1.0))
    assert after.multiplier == 0
    assert "'pruning' acts between clipping and noise" in after.reasons[0]
