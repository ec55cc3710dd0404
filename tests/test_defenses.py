"""Every registered defense keeps its word; rows come from the registry."""

import math
import pickle
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import nn

from exhume import Batch, EventSpec, Mechanism, Task, config, registry
from exhume.defenses.clipping import ClipNorm, Clipping, clip_factor
from exhume.defenses.gaussian_noise import GaussianNoise, add_noise
from exhume.defenses.pruning import KeepLargest, Pruning, magnitude_mask, removed_count
from exhume.errors import Inconsistent, InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.defense import Stage
from exhume.problem.observation import Candidate
from exhume.problem.privacy import Guarantee
from exhume.problem.tree import flatten, norm, scale, size, unflatten
from exhume.report.citations import citations

RELEASES = 10_000
TWO = {"samples": 2, "batch_size": 2}  # as many as BATCH has
FEW = {"probes": 2, **TWO}
DP = {"max_norm": 1.0, "noise_multiplier": 1.0, "batch_size": 2}


@dataclass(frozen=True)
class Row:
    """How to try one defense.

    Attributes:
        acts: options that act on TREE, or on BATCH.
        identity: options that do nothing; None if there are none (signs).
        on_update: ``apply`` changes a finished update; False where the defense acts
            through the model or the forward model alone.
        partial: the option ``only`` exists.
        private: ``apply`` needs what ``personalise`` takes from the client, and is held
            to its word by test_private_defenses.py.
    """

    acts: dict
    identity: dict | None
    on_update: bool = True
    partial: bool = True
    private: bool = False


# A new defense joins the suite by a row here; without one the suite fails.
ROWS: dict[str, list[Row]] = {
    "gaussian-noise": [Row({"std": 0.3}, {"std": 0.0})],
    "clipping": [Row({"max_norm": 0.5}, {"max_norm": 1e6})],
    "pruning": [
        Row({"ratio": 0.4}, {"ratio": 0.0}),
        Row({"ratio": 0.4, "kind": "random"}, {"ratio": 0.0, "kind": "random"}),
        Row({"ratio": 0.4, "per_tensor": True}, {"ratio": 0.0, "per_tensor": True}),
    ],
    "laplace-noise": [Row({"std": 0.3}, {"std": 0.0})],
    "optimal-gradient-noise": [
        Row({"std": 0.3, "metric": m, **FEW}, {"std": 0.0, "metric": m})
        for m in ("u2", "curvature")
    ],
    "optimal-gradient-pruning": [Row({"ratio": 0.4, **FEW}, {"ratio": 0.0})],
    "matrix-optimal-noise": [
        Row({"std": 0.3, "form": f, "rank": 3, **TWO}, {"std": 0.0, "form": f})
        for f in ("low-rank", "kronecker")
    ],
    "coordinate-clipping": [Row({"max_abs": 0.2}, {"max_abs": 1e6})],
    "example-clipping": [Row({"max_norm": 0.1}, {"max_norm": 1e6}, on_update=False)],
    "dp-sgd": [
        Row(
            {"max_norm": 0.1, "noise_multiplier": 6.0, "batch_size": 2},
            {"max_norm": 1e6, "noise_multiplier": 0.0, "batch_size": 2},
        )
    ],
    "dropout": [Row({"ratio": 0.5}, {"ratio": 0.0}, on_update=False, partial=False)],
    "quantisation": [
        Row({"kind": "sign"}, None),
        Row({"kind": "int8"}, None),
        Row({"kind": "stochastic", "bits": 3}, None),
    ],
    "local-aggregation": [
        Row({"steps": 3, "rate": 0.1}, {"steps": 1}, on_update=False, partial=False)
    ],
    "secure-aggregation": [
        Row(
            {"clients": 2, "fraction_bits": 48},
            {"clients": 1, "fraction_bits": 52},
            on_update=False,
            partial=False,
        )
    ],
    "soteria": [Row({"ratio": 0.7}, {"ratio": 0.0}, private=True)],
    "precode": [Row({"latent": 3}, None, on_update=False, private=True)],
    "censor": [Row({"trials": 3}, None, private=True)],
}

REGISTERED = registry.names("defense")


def cases(suits=lambda row: True):
    return pytest.mark.parametrize(
        ("name", "row"),
        [
            pytest.param(name, row, id=f"{name}-{row.acts.get('kind', i)}")
            for name in REGISTERED
            for i, row in enumerate(ROWS.get(name, []))
            if suits(row)
        ],
    )


every_row = cases()
every_defense = cases(lambda row: not row.private)
every_partial_defense = cases(lambda row: row.partial and not row.private)


def small_task(width: int = 3) -> Task:
    net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)).double()
    values = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        parameter.data.normal_(generator=values)
    return Task(net)


TASK = small_task()


def tree_like(task: Task, seed: int = 1, dtype: torch.dtype = torch.float64) -> dict:
    source = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=source, dtype=torch.float64).to(dtype)
        for name, p in task.parameters().items()
    }


TREE = tree_like(TASK)
PUBLIC = Batch(
    torch.randn(40, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64),
    torch.arange(40) % 2,
    EventSpec.vector(4),
)
BATCH = Batch(
    torch.tensor([[1.0, -0.5, 2.0, 0.3], [-1.5, 0.7, 0.1, 1.1]]).double(),
    torch.tensor([0, 1]),
    EventSpec.vector(4),
)


def make(name: str, options: dict):
    return config.build("defense", {"name": name, **options})


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def storage(tree: dict) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tree.values()}


# --- the suite covers the registry ---------------------------------------------------


@pytest.mark.parametrize("name", REGISTERED)
def test_every_registered_defense_has_rows(name):
    assert ROWS.get(name), f"add rows for the defense {name!r} to ROWS"


def test_first_defenses_are_registered():
    assert {"clipping", "gaussian-noise", "pruning"} <= set(REGISTERED)


@every_row
def test_declares_stage_citation_and_options(name, row):
    defense = make(name, row.acts)
    assert isinstance(defense.stage, Stage)
    cited = citations([("defense", config.describe(defense))])
    assert cited.startswith("@")
    assert cited.count("{") == cited.count("}")
    described = config.describe(defense)
    assert config.build("defense", described) == defense
    assert described["name"] == name


# --- the release ---------------------------------------------------------------------


@every_defense
def test_empirical_moments_equal_declared_law(name, row):
    mechanism = Mechanism(Gradient(), [make(name, row.acts)])
    plans = mechanism.calibrate(TASK, PUBLIC, key=3)
    law = mechanism.law(plans)
    count = RELEASES if mechanism.defenses[0].adds_noise else 3
    if law.covariance is not None:  # slower to draw, and fewer do
        count = RELEASES // 5
    samples = torch.stack(
        [flatten(mechanism.release(TREE, plans, key)) for key in range(count)]
    ).numpy()
    check_moments(samples, law, TREE)


@every_row
def test_a_step_of_training_draws_masks_anew_and_nothing_else(name, row):
    defense = make(name, row.acts)
    plan = defense.calibrate(TASK, PUBLIC, key=3)
    moved = defense.redraw(plan, 5)
    if name != "dropout" and row.acts.get("kind") != "random":
        assert moved is plan
        return
    for field in ("defense", "shapes", "covers", "numbers"):
        assert getattr(moved, field) == getattr(plan, field)
    assert not same(moved.arrays, plan.arrays)
    assert same(defense.redraw(plan, 5).arrays, moved.arrays)
    fresh = defense.calibrate(TASK, PUBLIC, key=5)
    assert same(fresh.arrays, moved.arrays)
    idle = make(name, row.identity)
    assert not idle.redraw(idle.calibrate(TASK, None, 3), 5).arrays


@every_defense
def test_accounting_is_told_no_more_than_is_true(name, row):
    defense = make(name, row.acts)
    plan = defense.calibrate(TASK, PUBLIC, key=3)
    clipping = ClipNorm(1.0, tuple(plan.shapes))
    before = Guarantee(plan.shapes).clipped(plan.shapes, 1.0, "client")
    after = defense.account(before, plan)
    variance = Mechanism(Gradient(), [defense]).law((plan,)).variance
    for tensor, declared in after.variance.items():
        assert float(declared.min()) <= float(variance[tensor].min()) * (1 + 1e-9)
    if not row.on_update or defense.adds_noise or not after.bounded or after.broken:
        return
    most = math.hypot(*(one.norm for one in after.bounded))
    for key in range(30):
        update = clipping(scale(10.0 ** (key % 3), tree_like(TASK, key)))
        assert float(norm(defense.apply(update, plan, key))) <= most * (1 + 1e-9)


def check_moments(samples: np.ndarray, law, tree: dict) -> None:
    """Compare releases, shape [n, P], with a law on its kept coordinates.

    Only the mean of a law that is not Gaussian is meant.
    """
    count = len(samples)
    ones = {n: torch.ones_like(t) for n, t in tree.items()}
    kept = flatten(law.keep(ones)).numpy() > 0
    zero = torch.zeros((), dtype=torch.float64)
    variance = flatten(
        {n: law.variance.get(n, zero).expand(t.shape) for n, t in tree.items()}
    ).numpy()[kept]
    mean = flatten(law.mean(tree)).numpy()[kept]
    empirical = samples[:, kept]
    error = np.abs(empirical.mean(0) - mean)
    if law.not_gaussian is not None:
        assert (error <= 5 * np.sqrt(empirical.var(0) / count) + 1e-12).all()
        return
    assert (error <= 5 * np.sqrt(variance / count) + 1e-12).all()
    covariance = np.cov(empirical.T)
    assert (np.diag(covariance)[variance == 0] <= 1e-24).all()
    noisy = variance > 0
    if not noisy.any():
        return
    ratio = np.diag(covariance)[noisy] / variance[noisy] * (count - 1)
    # The variance of a sample variance is (kurtosis − 1) / n: 5/n for Laplace noise.
    share = {"gaussian": 1, "laplace": 2 / 5}[law.family]
    low, high = chi2.ppf([1e-7, 1 - 1e-7], share * (count - 1)) / share
    assert ((low <= ratio) & (ratio <= high)).all()
    if law.covariance is not None:
        white = [
            flatten(law.whitener(tree)(unflatten(torch.from_numpy(row), tree)))
            for row in samples - flatten(law.mean(tree)).numpy()
        ]
        covariance, variance = np.cov(torch.stack(white).T), np.ones(len(white[0]))
    sigma = np.sqrt(variance[noisy])
    correlation = covariance[np.ix_(noisy, noisy)] / np.outer(sigma, sigma)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() <= 5.5 / np.sqrt(count)


@every_defense
def test_acts_at_its_strength_and_is_identity_without(name, row):
    acting = make(name, row.acts)
    moved = acting.apply(TREE, acting.calibrate(TASK, PUBLIC, 0), 1)
    assert same(moved, TREE) is not row.on_update
    before, after = (
        Mechanism(Gradient(), stack).sample(TASK, BATCH, 1, PUBLIC).values
        for stack in ([], [acting])
    )
    assert not same(before, after)
    if row.identity is None:
        return
    idle = make(name, row.identity)
    plan = idle.calibrate(TASK, PUBLIC, 0)
    assert same(idle.apply(TREE, plan, 1), TREE)
    idled = Mechanism(Gradient(), [idle]).sample(TASK, BATCH, 1, PUBLIC).values
    for n in before:
        torch.testing.assert_close(idled[n], before[n], rtol=1e-12, atol=1e-14)
    assert not idle.adds_noise
    assert idle.preserves_zeros
    law = Mechanism(Gradient(), [idle]).law((plan,))
    assert same(law.mean(TREE), TREE)
    assert not law.noisy
    assert law.irregular is None


@every_defense
def test_a_release_of_private_data_follows_the_induced_task_model_and_law(name, row):
    mechanism = Mechanism(Gradient(), [make(name, row.acts)])
    plans = mechanism.calibrate(TASK, PUBLIC, key=3)
    induced = mechanism.induced(TASK, plans)
    assert list(induced.task.parameters()) == list(TASK.parameters())
    candidate = Candidate(BATCH.inputs, BATCH.targets)
    expected = induced.law.mean(induced.model.forward(induced.task, candidate))
    count = 150 if mechanism.defenses[0].adds_noise else 1
    draws = torch.stack(
        [
            flatten(mechanism.sample(TASK, BATCH, key, plans=plans).values)
            for key in range(count)
        ]
    )
    error = (draws.mean(0) - flatten(dict(expected))).abs()
    spread = draws.std(0) if count > 1 else torch.zeros_like(error)
    assert bool((error <= 5 * spread / count**0.5 + 1e-12).all())


@every_defense
def test_both_routes_of_the_induced_model_agree_and_differentiate(name, row):
    mechanism = Mechanism(Gradient(), [make(name, row.acts)])
    induced = mechanism.induced(TASK, mechanism.calibrate(TASK, PUBLIC, key=3))
    task, model = induced.task, induced.model
    inputs = BATCH.inputs.clone().requires_grad_()
    one = Candidate(inputs, BATCH.targets)
    by_autograd = flatten(model.forward(task, one))

    def by_func(x):
        return flatten(model.forward_func(task, Candidate(x, BATCH.targets)))

    torch.testing.assert_close(by_autograd, by_func(BATCH.inputs))
    weights = torch.linspace(-1, 1, len(by_autograd)).double()
    (back,) = torch.autograd.grad(by_autograd @ weights, inputs, create_graph=True)
    jacobian = torch.func.vmap(
        lambda t: torch.func.jvp(by_func, (BATCH.inputs,), (t,))[1]
    )(torch.eye(8).double().reshape(8, 2, 4))
    torch.testing.assert_close(back.reshape(-1), jacobian @ weights)
    assert bool(torch.autograd.grad(back.square().sum(), inputs)[0].isfinite().all())


@every_defense
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_keeps_dtype_shape_names_and_input(name, row, dtype):
    defense = make(name, row.acts)
    tree = tree_like(TASK, dtype=dtype)
    before = {n: t.clone() for n, t in tree.items()}
    released = defense.apply(tree, defense.calibrate(TASK, PUBLIC, 0), 1)
    assert same(tree, before)
    assert list(released) == list(tree)
    assert all(released[n].dtype == dtype for n in tree)
    assert all(released[n].shape == tree[n].shape for n in tree)
    assert not storage(released) & storage(tree)


@every_partial_defense
def test_leaves_uncovered_tensors_alone(name, row):
    defense = make(name, {**row.acts, "only": ["2.*"]})
    plan = defense.calibrate(TASK, PUBLIC, 0)
    released = defense.apply(TREE, plan, 1)
    assert plan.covers == ("2.weight", "2.bias")
    assert plan.in_clear == ("0.weight", "0.bias")
    assert all(torch.equal(released[n], TREE[n]) for n in plan.in_clear)
    assert not storage(released) & storage(TREE)
    law = Mechanism(Gradient(), [defense]).law((plan,))
    assert not law.noisy_on(plan.in_clear)
    assert all(torch.equal(law.mean(TREE)[n], TREE[n]) for n in plan.in_clear)
    changed = any(not torch.equal(released[n], TREE[n]) for n in plan.covers)
    assert changed is row.on_update
    shown = Mechanism(Gradient(), [defense]).sample(TASK, BATCH, 1, plans=(plan,))
    exact = TASK.gradient(BATCH.inputs, BATCH.targets)
    for n in plan.in_clear:
        torch.testing.assert_close(shown.values[n], exact[n])
    assert any(not torch.allclose(shown.values[n], exact[n]) for n in plan.covers)


@every_partial_defense
def test_covered_tensors_do_not_feel_the_others(name, row):
    defense = make(name, {**row.acts, "only": ["2.*"]})
    plan = defense.calibrate(TASK, PUBLIC, 0)
    other = {n: t * 7 if n in plan.in_clear else t for n, t in TREE.items()}
    a, b = defense.apply(TREE, plan, 1), defense.apply(other, plan, 1)
    assert all(torch.equal(a[n], b[n]) for n in plan.covers)


@every_defense
def test_equal_keys_give_equal_bits(name, row):
    defense = make(name, row.acts)
    plan = defense.calibrate(TASK, PUBLIC, 0)
    again = defense.calibrate(TASK, PUBLIC, 0)
    assert same(dict(plan.arrays), dict(again.arrays))
    first = defense.apply(TREE, plan, 1)
    assert same(first, defense.apply(TREE, again, 1))
    assert same(first, defense.apply(TREE, plan, 2)) is not defense.adds_noise
    mechanism = Mechanism(Gradient(), [defense])
    a, b = (mechanism.sample(TASK, BATCH, 4, PUBLIC).values for _ in range(2))
    assert same(a, b)


@every_defense
def test_order_of_tensors_does_not_matter(name, row):
    defense = make(name, row.acts)
    plan = defense.calibrate(TASK, PUBLIC, 0)
    backwards = dict(reversed(TREE.items()))
    a, b = defense.apply(TREE, plan, 1), defense.apply(backwards, plan, 1)
    assert all(torch.equal(a[n], b[n]) for n in TREE)


@every_defense
def test_s18_global_randomness_is_untouched(name, row):
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    defense = make(name, row.acts)
    plan = defense.calibrate(TASK, PUBLIC, 0)
    defense.apply(TREE, plan, 1)
    Mechanism(Gradient(), [defense]).law((plan,)).mean(TREE)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1][1])  # noqa: NPY002
    assert random.getstate() == states[2]


@every_defense
def test_pickles_with_plan_and_law(name, row):
    defense = make(name, row.acts)
    plan = defense.calibrate(TASK, PUBLIC, 0)
    law = Mechanism(Gradient(), [defense]).law((plan,))
    copies = pickle.loads(pickle.dumps((defense, plan, law)))
    assert copies[0] == defense
    assert same(copies[0].apply(TREE, copies[1], 1), defense.apply(TREE, plan, 1))
    assert same(copies[2].mean(TREE), law.mean(TREE))


@every_defense
def test_plan_for_another_update_is_refused(name, row):
    defense = make(name, row.acts)
    plan = defense.calibrate(small_task(width=5), PUBLIC, 0)
    with pytest.raises(Inconsistent, match=r"0\.weight.*\[3, 4\].*\[5, 4\]"):
        defense.apply(TREE, plan, 1)
    plan = defense.calibrate(TASK, PUBLIC, 0)
    for wrong, message in (
        ({n: t for n, t in TREE.items() if n != "0.bias"}, "'0.bias' is missing"),
        ({**TREE, "head": torch.zeros(2)}, "'head'"),
        ({}, "missing"),
        ({**TREE, "0.bias": torch.ones(3, dtype=torch.int64)}, "integer.*0.bias"),
    ):
        with pytest.raises(Inconsistent, match=message):
            defense.apply(wrong, plan, 1)
    with pytest.raises(Inconsistent, match="made by 'something-else'"):
        defense.apply(TREE, replace(plan, defense="something-else"), 1)


@every_partial_defense
def test_pattern_without_tensor_is_refused(name, row):
    with pytest.raises(InvalidInput, match=r"'head\.\*' matches no tensor"):
        make(name, {**row.acts, "only": ["head.*"]}).calibrate(TASK, PUBLIC, 0)
    with pytest.raises(InvalidInput, match="nothing is defended"):
        make(name, {**row.acts, "only": []}).calibrate(TASK, PUBLIC, 0)


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
        make(name, options)


def test_own_checks_hold_without_the_configuration():
    with pytest.raises(InvalidInput, match="kind is 'largest'"):
        Pruning(ratio=0.5, kind="largest")  # type: ignore[arg-type]


# --- silent errors of other tools ----------------------------------------------------


@every_defense
def test_s25_odd_symmetry_in_law(name, row):
    defense = make(name, row.acts)
    plan = defense.calibrate(TASK, PUBLIC, 0)
    law = Mechanism(Gradient(), [defense]).law((plan,))
    negative = scale(-1, TREE)
    for n, mean in law.mean(TREE).items():
        torch.testing.assert_close(law.mean(negative)[n], -mean, rtol=0, atol=0)
    if not defense.adds_noise:
        plus, minus = (defense.apply(t, plan, 1) for t in (TREE, negative))
        assert all(torch.equal(plus[n], -minus[n]) for n in TREE)


@every_defense
@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_s24_law_holds_at_every_scale(name, row, factor):
    defense = make(name, row.acts)
    plan = defense.calibrate(TASK, PUBLIC, 0)
    law = Mechanism(Gradient(), [defense]).law((plan,))
    tree = scale(factor / norm(TREE), TREE)
    released, mean = defense.apply(tree, plan, 1), law.mean(tree)
    if not defense.adds_noise:
        assert same(released, mean)
        return
    if law.not_gaussian is not None:
        return
    z = (flatten(released) - flatten(mean)) * flatten(law.precision(tree)).sqrt()
    assert float(z.abs().max()) < 5


@every_defense
def test_s21_declared_noise_is_added_on_every_covered_coordinate(name, row):
    defense = make(name, row.acts)
    plan = defense.calibrate(TASK, PUBLIC, 0)
    law = Mechanism(Gradient(), [defense]).law((plan,))
    if law.not_gaussian is not None:
        return
    assert law.noise_covers(plan.covers) == defense.adds_noise
    first, second = (defense.apply(TREE, plan, key) for key in (1, 2))
    for n in plan.covers:
        moved = first[n] != second[n]
        assert bool(moved.all() if defense.adds_noise else not moved.any())


@every_defense
def test_s22_buffers_and_counters_pass_in_clear(name, row):
    net = nn.Sequential(
        nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)
    ).double()
    task = Task(net)
    buffers = dict(net.named_buffers())
    defense = make(name, row.acts)
    plan = defense.calibrate(task, PUBLIC, 0).beside(buffers)
    update = {**tree_like(task), **buffers}
    released = defense.apply(update, plan, 1)
    assert plan.in_clear == tuple(buffers)
    assert "1.num_batches_tracked" in plan.in_clear
    assert all(torch.equal(released[n], buffers[n]) for n in buffers)
    assert released["1.num_batches_tracked"].dtype == torch.int64
    assert float(released["1.running_var"].min()) > 0
    untouched = all(torch.equal(released[n], update[n]) for n in plan.covers)
    assert untouched is not row.on_update
    with pytest.raises(Inconsistent, match=r"running_var"):
        defense.apply(update, defense.calibrate(task, PUBLIC, 0), 1)
    with pytest.raises(Inconsistent, match="already"):
        plan.beside(buffers)


def test_s11_clipping_takes_one_norm_over_the_whole_update():
    limit = 0.5
    defense = Clipping(max_norm=limit)
    released = defense.apply(TREE, defense.calibrate(TASK, PUBLIC, 0), 1)
    expected = scale(limit / norm(TREE), TREE)
    for n in TREE:
        torch.testing.assert_close(released[n], expected[n], rtol=1e-14, atol=0)
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
