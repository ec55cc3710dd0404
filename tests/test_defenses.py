"""Single defenses: options, formulas, and errors that other tools make silently."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conformance.closeness import assert_close_to_scale
from conformance.tiny import PUBLIC, TASK, TREE, same
from exhume import Mechanism, Task, config, registry
from exhume.defenses.clipping import ClipNorm, Clipping, clip_factor
from exhume.defenses.dropout import Dropout
from exhume.defenses.gaussian_noise import GaussianNoise, add_noise
from exhume.defenses.pruning import KeepLargest, Pruning, magnitude_mask, removed_count
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.tree import flatten, norm, scale, size
from exhume.registry import find
from exhume.report.page import citations

DP = {"max_norm": 1.0, "noise_multiplier": 1.0, "batch_size": 2}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaussian-noise", {"std": -0.1}, "at least 0"),
        ("gaussian-noise", {"std": float("nan")}, "finite"),
        ("gaussian-noise", {"std": float("inf")}, "finite"),
        ("clipping", {"max_norm": 0.0}, "above 0"),
        ("clipping", {"max_norm": -1.0}, "above 0"),
        ("clipping", {"max_norm": float("nan")}, "finite"),
        ("pruning", {"ratio": 1.0}, r"\[0, 1\)"),
        ("pruning", {"ratio": -0.1}, r"\[0, 1\)"),
        ("pruning", {"ratio": float("nan")}, r"\[0, 1\)"),
        ("pruning", {"ratio": 0.5, "kind": "largest"}, "magnitude"),
        ("laplace-noise", {"std": -0.1}, "at least 0"),
        ("laplace-noise", {"std": float("inf")}, "finite"),
        ("coordinate-clipping", {"max_abs": 0.0}, "above 0"),
        ("example-clipping", {"max_norm": float("inf")}, "finite"),
        ("example-clipping", {"max_norm": 1.0, "batch_size": 0}, "at least 1"),
        ("dp-sgd", DP | {"max_norm": 0.0}, "above 0"),
        ("dp-sgd", DP | {"noise_multiplier": -1.0}, "at least 0"),
        ("dp-sgd", DP | {"batch_size": 0}, "at least 1"),
        ("dropout", {"ratio": 1.0}, r"\[0, 1\)"),
        ("quantisation", {"kind": "stochastic", "bits": 1}, "2 to 16"),
        ("quantisation", {"kind": "int8", "bits": 4}, "only the kind 'stochastic'"),
        ("quantisation", {"kind": "int8", "scale": "one"}, "only the kind 'sign'"),
        ("local-aggregation", {"steps": 0}, "at least 1"),
        ("local-aggregation", {"rate": 0.0}, "above 0"),
        ("secure-aggregation", {"clients": 0}, "at least 1"),
        ("secure-aggregation", {"clients": 2, "dropped": 1}, "needs 2 survivors"),
        ("secure-aggregation", {"clients": 2, "fraction_bits": 60}, "1 to 52"),
        ("soteria", {"ratio": 1.0}, r"\[0, 1\)"),
        ("optimal-gradient-noise", {"std": -1.0}, "at least 0"),
        ("optimal-gradient-noise", {"std": 1.0, "cap": 0.5}, "above 1"),
        ("optimal-gradient-noise", {"std": 1.0, "ridge": 0.0}, "above 0"),
        ("optimal-gradient-noise", {"std": 1.0, "scale_source": "mine"}, "private"),
        (
            "optimal-gradient-noise",
            {"std": 1.0, "scale_source": "private", "metric": "power"},
            "the metric 'u2'",
        ),
        ("optimal-gradient-pruning", {"ratio": 1.0}, r"\[0, 1\)"),
        ("optimal-gradient-pruning", {"ratio": 0.5, "probes": 0}, "at least 1"),
        ("matrix-optimal-noise", {"std": -1.0}, "at least 0"),
        ("matrix-optimal-noise", {"std": 1.0, "rank": -1}, "at least 0"),
        ("matrix-optimal-noise", {"std": 1.0, "iterations": 0}, "at least 1"),
        ("matrix-optimal-noise", {"std": 1.0, "objective": "best"}, "bayesian"),
        ("matrix-optimal-noise", {"std": 1.0, "form": "dense"}, "kronecker"),
        ("precode", {"latent": 0}, "at least 1"),
        ("censor", {"trials": 0}, "at least 1"),
        ("censor", {"rate": float("nan")}, "finite"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(InvalidInput, match=message):
        config.build("defense", {"name": name, **options})


def test_own_checks_hold_without_the_configuration():
    with pytest.raises(InvalidInput, match="kind is 'largest'"):
        Pruning(ratio=0.5, kind="largest")  # type: ignore[arg-type]


def test_every_defense_of_ours_is_cited():
    for name in registry.names("defense"):
        for one in find("defense", name).examples():
            assert citations([("defense", config.describe(one))]).startswith("@"), name


@pytest.mark.parametrize(
    "defense", [Dropout(ratio=0.5), Pruning(ratio=0.4, kind="random")]
)
def test_masks_drawn_at_random_are_drawn_anew_in_every_step(defense):
    plan = defense.calibrate(TASK, PUBLIC, key=3)
    assert not same(defense.redraw(plan, 5).arrays, plan.arrays)


# --- silent errors of other tools -----------------------------------------------------


def test_s11_clipping_takes_one_norm_over_the_whole_update():
    limit = 0.5
    defense = Clipping(max_norm=limit)
    released = defense.apply(TREE, defense.calibrate(TASK, PUBLIC, 0), 1)
    expected = scale(limit / norm(TREE), TREE)
    for n in TREE:
        assert_close_to_scale(released[n], expected[n], 1e-13)
    per_tensor = {n: t * min(1.0, limit / float(t.norm())) for n, t in TREE.items()}
    per_coordinate = {n: t.clamp(-limit, limit) for n, t in TREE.items()}
    for wrong in (per_tensor, per_coordinate):
        distance = (flatten(released) - flatten(wrong)).norm()
        assert float(distance) > 0.1 * limit


def test_s11_clipping_the_batch_is_not_clipping_each_example():
    inputs = torch.tensor([[0.1, 0.2, 0.0, 0.1], [90.0, -70.0, 50.0, 80.0]]).double()
    labels = torch.tensor([0, 1])
    defense = Clipping(max_norm=1.0)
    linear = nn.Linear(4, 2).double()
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    net = Task(linear)
    plan = defense.calibrate(net, None, 0)
    clipped = [
        defense.apply(net.gradient(inputs[i : i + 1], labels[i : i + 1]), plan, 0)
        for i in range(2)
    ]
    assert all(float(norm(c)) <= 1 + 1e-12 for c in clipped)
    whole = defense.apply(net.gradient(inputs, labels), plan, 0)
    micro = (flatten(clipped[0]) + flatten(clipped[1])) / 2
    assert float((flatten(whole) - micro).norm()) > 0.1


def test_ogn_official_pruning_at_ratio_0_is_the_identity():
    for kind in ("magnitude", "random"):
        defense = Pruning(ratio=0.0, kind=kind)
        plan = defense.calibrate(TASK, PUBLIC, 0)
        assert same(defense.apply(TREE, plan, 1), TREE)
        law = Mechanism(Gradient(), [defense]).law((plan,), TREE)
        assert (law.maps, dict(law.mask), law.irregular) == ((), {}, None)


def test_ogn_official_ties_do_not_remove_more_than_asked():
    tied = {n: torch.ones_like(t) for n, t in TREE.items()}
    for kind in ("magnitude", "random"):
        defense = Pruning(ratio=0.5, kind=kind)
        released = defense.apply(tied, defense.calibrate(TASK, PUBLIC, 0), 1)
        zeros = int((flatten(released) == 0).sum())
        assert zeros == int(0.5 * size(tied))


# --- Gaussian noise ------------------------------------------------------------------


def test_noise_depends_on_key_and_name_alone():
    everywhere, somewhere = (
        GaussianNoise(std=0.2),
        GaussianNoise(std=0.2, only=("2.*",)),
    )
    zeros = {n: torch.zeros_like(t) for n, t in TREE.items()}
    a = everywhere.apply(zeros, everywhere.calibrate(TASK, PUBLIC, 0), 7)
    b = somewhere.apply(zeros, somewhere.calibrate(TASK, PUBLIC, 9), 7)
    assert torch.equal(a["2.weight"], b["2.weight"])
    by_hand = add_noise(zeros["0.bias"], 0.2, generator(7, "0.bias"))
    assert torch.equal(a["0.bias"], by_hand)
    assert not torch.equal(a["0.bias"], add_noise(by_hand * 0, 0.2, generator(7, "x")))


def test_noise_is_drawn_in_the_type_of_the_tensor():
    values = torch.zeros(8, dtype=torch.float32)
    noisy = add_noise(values, 2.0, generator(0, "w"))
    expected = 2.0 * torch.randn(8, generator=generator(0, "w"))
    assert torch.equal(noisy, expected)


# --- clipping ------------------------------------------------------------------------

floats = st.floats(-(2.0**50), 2.0**50, width=32)


@given(st.lists(floats, min_size=2, max_size=12), st.floats(1e-6, 1e6))
@settings(max_examples=150, deadline=None)
def test_clipped_norm_is_at_most_the_limit(values, limit):
    cut = len(values) // 2
    tree = {"a": torch.tensor(values[:cut]), "b": torch.tensor(values[cut:])}
    clipped = ClipNorm(limit, ("a", "b"))(tree)
    before = float(flatten(tree).double().norm())
    after = float(flatten(clipped).double().norm())
    assert after <= limit * (1 + 1e-6)
    if before <= limit:
        assert same(clipped, tree)
    else:
        assert after >= limit * (1 - 1e-6)
        assert float(flatten(tree).double() @ flatten(clipped).double()) >= 0


def test_clip_factor_at_and_around_the_limit():
    norms = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    assert clip_factor(norms, 2.0).tolist() == [1.0, 1.0, 1.0, 0.5]


def test_norms_beyond_single_precision_are_clipped():
    tree = {"a": torch.full((4,), 1e30), "b": torch.zeros(2)}
    clipped = ClipNorm(1.0, ("a", "b"))(tree)
    torch.testing.assert_close(clipped["a"], torch.full((4,), 0.5))
    assert same(ClipNorm(1.0, ("b",))(tree), tree)


# --- pruning -------------------------------------------------------------------------


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    st.floats(0, 0.999),
    st.integers(0, 40),
)
@settings(max_examples=200, deadline=None)
def test_pruning_removes_exactly_the_smallest_entries(values, ratio, cut):
    vector = torch.tensor(values, dtype=torch.float64)
    removed = removed_count(ratio, len(values))
    assert removed == int(ratio * len(values))
    oracle = torch.ones(len(values), dtype=torch.bool)
    oracle[vector.abs().argsort(stable=True)[:removed]] = False
    mask = magnitude_mask(vector, removed)
    assert torch.equal(mask, oracle)
    tree = {"a": vector[:cut], "b": vector[cut:]}
    pruned = flatten(KeepLargest(removed, ("a", "b"))(tree))
    assert torch.equal(pruned, vector * oracle)


def test_pruning_ranks_all_tensors_together():
    tree = {n: torch.full_like(t, i + 1) for i, (n, t) in enumerate(TREE.items())}
    first = next(iter(tree))
    ratio = (TREE[first].numel() + 0.5) / size(TREE)
    defense = Pruning(ratio=ratio)
    released = defense.apply(tree, defense.calibrate(TASK, PUBLIC, 0), 1)
    assert not bool(released[first].any())
    assert all(torch.equal(released[n], tree[n]) for n in tree if n != first)


def test_random_mask_is_public_fresh_for_each_key_and_uniform():
    defense = Pruning(ratio=0.25, kind="random")
    removed = int(0.25 * size(TREE))
    masks = torch.stack(
        [
            flatten(dict(defense.calibrate(TASK, PUBLIC, key).arrays)).double()
            for key in range(2000)
        ]
    )
    assert bool(((masks == 0).sum(dim=1) == removed).all())
    kept = 1 - removed / size(TREE)
    limit = 5 * (kept * (1 - kept) / len(masks)) ** 0.5
    assert float((masks.mean(dim=0) - kept).abs().max()) < limit
