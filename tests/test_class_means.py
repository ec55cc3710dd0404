"""A Gaussian prior with means of classes, its tests, and what bounds make of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

import exhume
from conformance.worlds import network_world
from exhume.bounds.gaussian_setting import assumptions
from exhume.bounds.reconstruction_robustness import chance_of_public_guess
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.keys import generator
from exhume.priors.class_means import (
    ClassMeans,
    class_means_p_value,
    distances_p_value,
)
from exhume.priors.gaussian import Gaussian
from exhume.problem.batch import Batch
from exhume.problem.bound import BoundValue
from exhume.problem.event import EventSpec

SPEC = EventSpec.vector(6)


def clusters(count, key, tail=False, apart=3.0):
    """Examples of four classes, normal within each or with heavy tails."""
    source = generator(key, "clusters")
    targets = torch.arange(count) % 4
    centres = torch.randn(4, 6, generator=generator(0, "centres"), dtype=torch.float64)
    noise = torch.randn(count, 6, generator=source, dtype=torch.float64)
    if tail:
        chi = torch.randn(count, 3, generator=source, dtype=torch.float64)
        noise = noise / chi.square().mean(dim=1, keepdim=True).sqrt()
    return Batch(apart * centres[targets] + noise, targets, SPEC)


def fitted(batch, **options):
    return Gaussian(ridge=0.0, covariance="empirical", **options).fit(batch, None)


def test_given_labels_examples_vary_within_their_class():
    public = clusters(4000, key=0)
    density = fitted(public)
    targets = torch.tensor([2, 0, 2])
    given = density.given(targets)
    drawn = given.sample(3 * 4000, key=1).reshape(4000, 3, 6)
    centres = torch.stack([public.inputs[public.targets == k].mean(0) for k in targets])
    assert float((drawn.mean(0) - centres).abs().max()) < 4.5 / 4000**0.5 * 1.2
    information = torch.linalg.inv(torch.cov(drawn[:, 1].T))
    assert float((information - given.information()).abs().max()) < 0.2
    # All classes together vary more.
    assert float(density.information().trace()) < 0.7 * float(information.trace())
    assert density.given(torch.tensor([9])) is None
    assert density.given(torch.ones(1, 3)) is None
    energy = given.energy(given.means)
    assert float(energy) == 0


def test_too_few_examples_of_a_class_have_no_means():
    assert fitted(clusters(16, key=0)).classes is None
    regression = replace(clusters(400, key=0), targets=torch.rand(400))
    assert fitted(regression).classes is None
    assert len(ClassMeans.of(clusters(40, key=0)).labels) == 4


def test_p_values_of_normal_data_are_uniform_and_of_heavy_tails_small():
    found = torch.tensor([fitted(clusters(600, key=k)).p_values for k in range(60)])
    for values in found.T:
        assert kstest(values.numpy(), "uniform").pvalue > 1e-3
    heavy = [fitted(clusters(600, key=k, tail=True)).p_values[0] for k in range(10)]
    assert max(heavy) < 1e-3


def test_distances_and_means_are_tested_against_their_distributions():
    source = np.random.default_rng(0)
    distances, means = [], []
    for _ in range(200):
        rows = source.standard_normal((50, 4))
        inverse = np.linalg.inv(np.cov(rows.T))
        centre = rows.mean(axis=0)
        new = source.standard_normal((40, 4)) - centre
        squares = torch.from_numpy(np.einsum("ij,jk,ik->i", new, inverse, new))
        counts = torch.full((40,), 50)
        distances.append(distances_p_value(squares[:1], counts[:1], 4, 49))
        gap = new.mean(axis=0)
        square = torch.tensor([gap @ inverse @ gap])
        means.append(
            class_means_p_value(square, torch.tensor([40]), torch.tensor([50]), 4, 49)
        )
    assert kstest(distances, "uniform").pvalue > 1e-3
    assert kstest(means, "uniform").pvalue > 1e-4
    # A class whose mean has moved is noticed.
    moved = class_means_p_value(
        torch.tensor([9.0]), torch.tensor([40]), torch.tensor([50]), 4, 49
    )
    assert moved < 1e-9
    # With fewer examples than dimensions, χ² is all there is.
    assert distances_p_value(torch.tensor([400.0] * 9), torch.ones(9), 4, 3) < 1e-6


@pytest.mark.parametrize("tail", [False, True])
def test_bounds_are_of_the_class_and_say_what_the_data_follow(tail):
    world = network_world(GaussianNoise(std=300.0))
    public = clusters(4000, key=3, tail=tail)
    # Draws far out saturate the network at most inputs, which is refused.
    density = fitted(replace(public, inputs=0.2 * public.inputs))
    found = exhume.bound("bayesian-cramer-rao")(world, density)
    assert isinstance(found, BoundValue), found
    # With so much noise the bound is nearly the variance within a class.
    within = float(torch.linalg.inv(density.within.information()).trace())
    assert found.total == pytest.approx(within, rel=0.05)
    assert found.details["prior_has_class_means"] == 1
    first = found.assumptions[0]
    assert "means of their classes" in first
    if tail:
        assert first.startswith("It holds for data that follow the fitted Gaussian")
        assert "held-out public examples do not" in first
    else:
        assert "do not contradict" in first
    unknown = replace(density, classes=None)
    without = exhume.bound("bayesian-cramer-rao")(world, unknown)
    assert "one mean for all classes" in without.assumptions[0]
    assert without.total > 1.5 * found.total
    # Where a label has no class, the Gaussian of all classes is used, untested.
    untested = assumptions(density, 1)[0]
    assert "one mean for all classes" in untested
    assert "held-out" not in untested


def test_the_chance_of_a_public_guess_counts_close_examples_of_a_class():
    inputs = torch.tensor([[0.0], [0.1], [0.2], [5.0], [1.0], [1.1], [9.0], [20.0]])
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    public = Batch(inputs, targets, EventSpec.vector(1))
    # 0.1 is close to two of the three others; of the other class one pair is.
    assert chance_of_public_guess(public, 0.011) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert chance_of_public_guess(public, 1e-9) == 0
    assert chance_of_public_guess(public, 1e9) == 1


def test_robustness_includes_labels_and_public_data_in_the_chance():
    clipped = [exhume.defense("clipping", max_norm=1.0), GaussianNoise(std=1.0)]
    world = network_world(*clipped)
    public = clusters(400, key=0)
    density = fitted(public)
    bound = exhume.bound("reconstruction-robustness", radius=0.2)
    with_labels = bound(world, density)
    without = bound(world, replace(density, classes=None))
    assert with_labels.details["chance"] > 5 * without.details["chance"]
    assert with_labels.value > without.value
    copies = Batch(
        public.inputs[:1].expand(50, 6), torch.zeros(50, dtype=torch.int64), SPEC
    )
    known = bound(replace(world, public=copies), density)
    assert known.details["chance"] == 1
    assert known.value == 1
    for found in (with_labels, exhume.bound("reconstruction-robustness")(world)):
        assert found.binds.name == "KNOWN_CHANCE"
        assert any("may succeed more often" in s for s in found.assumptions)
    assert math.isfinite(with_labels.details["log10_chance"])
