"""Optimal noise and pruning: closed forms, optimality, utility, the leak of scales."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import exhume
from conformance.closeness import assert_close_to_scale
from exhume import Batch, EventSpec, Mechanism, Task, World
from exhume.defenses import (
    _blocks,
    _matrix_columns,
    _principal_directions,
    _public_scales,
)
from exhume.defenses._kronecker_optimum import kronecker_design
from exhume.defenses._low_rank_optimum import low_rank_optimum
from exhume.defenses._matrix_columns import read_as_matrices
from exhume.defenses._matrix_design import (
    average_information,
    diagonal_optimum,
    geometric_mean,
    posterior_covariance,
    power,
)
from exhume.defenses._principal_directions import (
    Tangents,
    principal_directions,
    tangents,
)
from exhume.defenses._public_scales import metric_columns, sampled_label_gradient
from exhume.defenses._utility_cost import Metric, matched, utility_cost
from exhume.defenses.dp_sgd import DpSgd
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.local_aggregation import LocalAggregation
from exhume.defenses.matrix_optimal_noise import MatrixOptimalNoise
from exhume.defenses.optimal_gradient_noise import (
    OptimalGradientNoise,
    PrivateVariance,
    optimal_variance,
)
from exhume.defenses.optimal_gradient_pruning import (
    OptimalGradientPruning,
    optimal_mask,
    utility_per_information,
)
from exhume.defenses.pruning import Pruning
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.covariance import KroneckerFactors, LowRank, eigenvalues_exceed
from exhume.problem.law import Law
from exhume.problem.observation import Candidate
from exhume.problem.privacy import Guarantee
from exhume.problem.sensitivity import exact_squared_sensitivities
from exhume.problem.tree import dot, flatten, size, unflatten
from exhume.trials.one_step import u1_u2
from exhume.trials.setting import collect_facts


def normal(*shape, key=0):
    return torch.randn(shape, generator=generator(key), dtype=torch.float64)


def spd(size, key, floor=0.1):
    root = normal(size, size, key=key)
    return root @ root.T / size + floor * torch.eye(size).double()


def dense(covariance, shapes):
    """Return Σ column by column from its own root, an independent way."""
    size = sum(t.numel() for t in shapes.values())
    eye = torch.eye(size, dtype=torch.float64)
    root = torch.stack(
        [flatten(covariance.colour(unflatten(row, shapes))) for row in eye], dim=1
    )
    return root @ root.T


def small_task(activation=None):
    net = nn.Sequential(
        nn.Linear(4, 5), activation or nn.Tanh(), nn.Linear(5, 3)
    ).double()
    values = generator(5)
    for parameter in net.parameters():
        parameter.data.normal_(generator=values)
    return Task(net)


TASK = small_task()
PUBLIC = Batch(normal(30, 4, key=8), torch.arange(30) % 3, EventSpec.vector(4))
SHAPES = {"w": torch.zeros(3, 4).double(), "b": torch.zeros(3).double()}
SIZE = 15


# --- the diagonal optimum ------------------------------------------------------------


def trace_gain(a, h):
    """Information of isotropic over that of optimal noise, at one utility cost."""
    v = optimal_variance({"w": a**2}, {"w": h**2}, 1.0, cap=1e15, ridge=1e-22)["w"]
    assert float((v * h**2).sum()) == pytest.approx(float((h**2).sum()), rel=1e-9)
    return float((a**2).sum() / (a**2 / v).sum())


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=2, max_size=20
    )
)
def test_t5_gain_is_one_over_the_squared_cosine(values):
    a, h = torch.tensor(values, dtype=torch.float64).T
    cosine = float(a @ h / a.norm() / h.norm())
    assert trace_gain(a, h) == pytest.approx(1 / cosine**2, rel=1e-6)


def test_no_gain_where_sensitivity_is_proportional_to_the_gradient():
    h = normal(50).abs()
    assert trace_gain(3 * h, h) == pytest.approx(1, rel=1e-9)


def test_noise_of_a_network_is_the_formula_of_its_exact_scales():
    defense = OptimalGradientNoise(std=0.1, probes=4000, samples=3, cap=1e9)
    batch = PUBLIC.select([3])
    plan = defense.calibrate(TASK, batch, 0)
    a2 = exact_squared_sensitivities(TASK, Gradient(), batch.inputs, batch.targets)
    g = TASK.gradient(batch.inputs, batch.targets)
    h2 = {n: t.detach().square() for n, t in g.items()}
    exact = optimal_variance(a2, h2, 0.1, cap=1e9, ridge=1e-6)
    for name, v in exact.items():
        # 4000 probes leave a standard error of 1.1 % of the scale of each entry.
        ratio = plan.arrays[name] / v
        torch.testing.assert_close(ratio, torch.ones_like(v), rtol=0.0, atol=0.1)


def test_clamps_keep_exact_zeros_of_relu_networks_finite():
    task = small_task(nn.ReLU())
    with torch.no_grad():
        task.parameters()["0.bias"].fill_(-1e3)  # every unit is off
    for defense in (
        OptimalGradientNoise(std=0.1, samples=3),
        MatrixOptimalNoise(std=0.1, samples=3, rank=2),
        OptimalGradientPruning(ratio=0.3, samples=3),
    ):
        plan = defense.calibrate(task, PUBLIC, 0)
        assert all(bool(t.isfinite().all()) for t in plan.arrays.values())
        assert defense.apply(task.gradient(PUBLIC.inputs, PUBLIC.targets), plan, 1)


@pytest.mark.parametrize(
    "defense",
    [
        OptimalGradientNoise(std=0.2, ridge=1e-9, samples=30),
        MatrixOptimalNoise(std=0.2, ridge=1e-6, samples=30, rank=4),
        MatrixOptimalNoise(std=0.2, ridge=1e-6, samples=30, form="kronecker"),
        MatrixOptimalNoise(std=0.2, ridge=1e-6, samples=30, objective="trace"),
    ],
)
def test_costs_the_utility_of_isotropic_noise_on_public_data(defense):
    law = Mechanism(Gradient(), [defense]).law(
        Mechanism(Gradient(), [defense]).calibrate(TASK, PUBLIC, 0)
    )
    own, isotropic = 0.0, 0.0
    for index in range(len(PUBLIC)):
        one = PUBLIC.select([index])
        g = {n: t.detach() for n, t in TASK.gradient(one.inputs, one.targets).items()}
        isotropic += 0.2**2 * float(dot(g, g))
        if law.covariance is None:
            own += float(dot({n: law.variance[n] * t for n, t in g.items()}, g))
        else:
            own += float(flatten(law.covariance.transposed_colour(g)).square().sum())
    assert own == pytest.approx(isotropic, rel=1e-3)


def test_without_public_data_a_sentence_says_what_to_do():
    for defense in (
        OptimalGradientNoise(std=0.1),
        OptimalGradientPruning(ratio=0.5),
        MatrixOptimalNoise(std=0.1, batch_size=31),
    ):
        public = (
            None if defense != MatrixOptimalNoise(std=0.1, batch_size=31) else PUBLIC
        )
        with pytest.raises(InvalidInput, match="give the World public examples"):
            defense.calibrate(TASK, public, 0)


# --- pruning -------------------------------------------------------------------------


def test_t6_ratio_zero_is_the_identity_and_counts_are_exact():
    tree = {n: normal(*p.shape, key=3) for n, p in TASK.parameters().items()}
    count = sum(t.numel() for t in tree.values())
    for ratio in (0.0, 0.31, 0.999):
        defense = OptimalGradientPruning(ratio=ratio, samples=4)
        released = defense.apply(tree, defense.calibrate(TASK, PUBLIC, 0), 1)
        removed = sum(int((t == 0).sum()) for t in released.values())
        assert removed == int(ratio * count)


def test_t6_keeps_less_information_than_any_mask_of_the_same_utility():
    a2, h2 = normal(400, key=1).square(), normal(400, key=2).square()
    kept = optimal_mask({"w": a2}, {"w": h2}, 200)["w"]
    utility, information = float(h2[kept].sum()), float(a2[kept].sum())
    one = float(a2.max())  # greedy knapsack: optimal up to one item
    source = generator(7)
    for trial in range(200):
        # Random masks, tilted towards good ones, cut at the same utility.
        tilt = (h2 / a2).log() * (trial / 100) + torch.randn(
            400, generator=source, dtype=torch.float64
        )
        order = tilt.argsort(descending=True)
        enough = int((h2[order].cumsum(0) < utility).sum()) + 1
        assert float(a2[order[:enough]].sum()) >= information - one


def test_prunes_the_largest_ratio_of_sensitivity_to_gradient():
    a2, h2 = torch.tensor([4.0, 1.0, 0.0, 9.0]), torch.tensor([1.0, 4.0, 0.0, 9.0])
    assert utility_per_information(a2, h2).tolist() == [0.25, 4.0, math.inf, 1.0]
    assert optimal_mask({"w": a2}, {"w": h2}, 1)["w"].tolist() == [False, *[True] * 3]


# --- the matrix optimum --------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 20])
def test_t12_geometric_mean_solves_its_equation_and_is_positive(size):
    h, m = spd(size, 1), spd(size, 2)
    s = geometric_mean(h, m)
    torch.testing.assert_close(s @ h @ s, m)
    torch.testing.assert_close(s, s.T)
    assert float(torch.linalg.eigvalsh(s)[0]) > 0


def test_t12_no_feasible_perturbation_lowers_the_trace():
    h, m = spd(8, 1), spd(8, 2)
    s = geometric_mean(h, m)
    best = float((torch.linalg.inv(s) @ m).trace())
    cost = float((s @ h).trace())
    for key in range(50):
        bump = normal(8, 8, key=key)
        other = s + 0.1 * (bump + bump.T) * s.diagonal().mean()
        if float(torch.linalg.eigvalsh(other)[0]) <= 0:
            continue
        other = other * (cost / float((other @ h).trace()))
        assert float((torch.linalg.inv(other) @ m).trace()) >= best * (1 - 1e-9)


def test_t12_diagonal_matrices_give_the_diagonal_optimum():
    a2, h2 = normal(6, key=1).square() + 0.1, normal(6, key=2).square() + 0.1
    s = geometric_mean(torch.diag(h2), torch.diag(a2))
    torch.testing.assert_close(s.diagonal(), diagonal_optimum(a2, h2))


def metric_of(columns=4, ridge=0.05):
    return Metric(normal(SIZE, columns, key=4), ridge)


def dense_metric(metric):
    eye = torch.eye(SIZE).double()
    return metric.columns @ metric.columns.T + metric.ridge * eye


def test_t12_low_rank_form_agrees_with_the_dense_one_at_full_rank():
    metric, weighted = metric_of(), normal(5, SIZE, 6, key=6)
    m = torch.einsum("npr,nqr->pq", weighted, weighted) / 5
    found = dense(low_rank_optimum(weighted, metric, SHAPES, SIZE, 0), SHAPES)
    # The floor of the form is a share of 1e-4.
    floor = 1e-4 * torch.eye(SIZE).double() * m.diagonal().mean()
    s = geometric_mean(dense_metric(metric), m + floor)
    torch.testing.assert_close(
        found, s, rtol=0.02, atol=0.02 * float(s.diagonal().mean())
    )


def test_low_rank_form_is_better_than_the_diagonal_and_worse_than_the_full_one():
    metric, weighted = metric_of(), normal(5, SIZE, 2, key=6)
    m = torch.einsum("npr,nqr->pq", weighted, weighted) / 5
    values = []
    for rank in (0, 2, 6, SIZE):
        s = low_rank_optimum(weighted, metric, SHAPES, rank, 0)
        s = dense(matched(s, metric, SHAPES, 1.0), SHAPES)
        assert float((s @ dense_metric(metric)).trace()) == pytest.approx(1, rel=1e-9)
        values.append(float((torch.linalg.inv(s) @ m).trace()))
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.9 * values[0]


def kronecker_of(weighted, metric, shapes):
    prior = torch.ones(weighted.shape[2], dtype=torch.float64)
    return kronecker_design(weighted, metric, shapes, prior, 1.0, 0)


def test_t12_kronecker_form_is_exact_for_kronecker_products():
    a, b, c, d = spd(3, 1), spd(4, 2), spd(3, 3), spd(4, 4)
    shapes = {"w": torch.zeros(3, 4).double()}
    m_root = torch.linalg.cholesky(torch.kron(a, b))
    h_root = torch.linalg.cholesky(torch.kron(c, d))
    form = kronecker_of(m_root[None], Metric(h_root, 1e-12), shapes)
    found = dense(form, shapes)
    s = geometric_mean(h_root @ h_root.T, m_root @ m_root.T)
    ratio = found / s
    torch.testing.assert_close(found, s * ratio.mean(), rtol=0.02, atol=0.01)


def test_utility_cost_is_the_trace_of_the_product():
    metric = metric_of()
    for form in (
        low_rank_optimum(normal(3, SIZE, 4, key=6), metric, SHAPES, 3, 0),
        kronecker_of(normal(3, SIZE, 4, key=6), metric, SHAPES),
    ):
        expected = float((dense(form, SHAPES) @ dense_metric(metric)).trace())
        assert utility_cost(form, metric, SHAPES) == pytest.approx(expected)
        scaled = matched(form, metric, SHAPES, 2.5)
        assert utility_cost(scaled, metric, SHAPES) == pytest.approx(2.5)


def test_bayesian_bound_is_concave_in_the_covariance():
    seen = normal(3, SIZE, 4, key=9)
    prior = torch.tensor([2.0, 1.0, 0.5, 0.1], dtype=torch.float64)

    def bound(s):
        information = sum(t.T @ torch.linalg.inv(s) @ t for t in seen) / len(seen)
        return float(torch.linalg.inv(information + torch.diag(1 / prior)).trace())

    for key in range(30):
        one, other = spd(SIZE, key), spd(SIZE, key + 100)
        middle = bound((one + other) / 2)
        assert middle >= (bound(one) + bound(other)) / 2 - 1e-12


def test_information_is_the_sum_of_the_quadratic_forms_of_the_inverse():
    seen, form = normal(3, SIZE, 4, key=9), low_rank_of_the_toy()
    inverse = torch.linalg.inv(dense(form, SHAPES))
    expected = sum(t.T @ inverse @ t for t in seen) / 3
    torch.testing.assert_close(average_information(seen, form, SHAPES), expected)


def low_rank_of_the_toy():
    return low_rank_optimum(normal(3, SIZE, 4, key=6), metric_of(), SHAPES, 3, 0)


def test_fixed_point_maximises_the_bayesian_bound():
    metric, seen = metric_of(), normal(4, SIZE, 5, key=9)
    prior = torch.logspace(0.5, -1.5, 5, dtype=torch.float64)
    h = dense_metric(metric)

    def bound(s):
        information = sum(t.T @ torch.linalg.inv(s) @ t for t in seen) / len(seen)
        return float(torch.linalg.inv(information + torch.diag(1 / prior)).trace())

    weighted, values = seen, []
    for _ in range(25):
        form = low_rank_optimum(weighted, metric, SHAPES, SIZE, 0)
        form = matched(form, metric, SHAPES, 1.0)
        posterior = posterior_covariance(seen, form, SHAPES, prior)
        values.append(float(posterior.trace()))
        weighted = seen @ posterior
    s = dense(form, SHAPES)
    assert values[-1] == pytest.approx(bound(s))
    assert values[3] > values[0]
    assert values[-1] == pytest.approx(max(values), rel=1e-3)
    for key in range(60):
        bump = normal(SIZE, SIZE, key=key)
        other = s + 0.05 * (bump + bump.T) * s.diagonal().mean() / SIZE**0.5
        if float(torch.linalg.eigvalsh(other)[0]) <= 0:
            continue
        other = other / float((other @ h).trace())
        assert bound(other) <= values[-1] * (1 + 1e-3)


def test_tangents_are_derivatives_along_the_directions_of_the_public_data():
    axes, variances = principal_directions(PUBLIC, 3)
    batch = PUBLIC.select([2, 5])
    seen = tangents(TASK, [batch], axes, ["2.weight"])
    assert seen.shape == (1, 15, 6)
    step = 1e-6
    for column, (example, axis) in enumerate((e, a) for e in (0, 1) for a in range(3)):
        shift = torch.zeros_like(batch.inputs)
        shift[example] = step * axes[axis]
        ends = [
            TASK.gradient(batch.inputs + s * shift, batch.targets)["2.weight"]
            for s in (1, -1)
        ]
        numeric = (ends[0] - ends[1]).reshape(-1) / (2 * step)
        torch.testing.assert_close(seen[0, :, column], numeric, rtol=1e-5, atol=1e-8)
    assert bool((variances.diff() <= 0).all())


def test_public_data_that_do_not_vary_are_refused():
    constant = Batch(torch.ones(3, 4), torch.zeros(3).long(), EventSpec.vector(4))
    with pytest.raises(InvalidInput, match="do not vary"):
        principal_directions(constant, 2)


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_curvature_columns_have_the_gauss_newton_matrix_as_mean(loss):
    task = Task(TASK.model, loss=loss)
    batch = PUBLIC.select([0, 1])
    draws = torch.stack(
        [flatten(sampled_label_gradient(task, batch, key)) for key in range(1500)]
    ).detach()

    def outputs(theta):
        parameters = unflatten(theta, task.parameters())
        return task.predict(batch.inputs, parameters)

    theta = flatten(task.parameters()).detach()
    jacobian = torch.func.jacrev(outputs)(theta)
    f = outputs(theta)
    if loss == "cross-entropy":
        p = f.softmax(dim=-1)
        hessians = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    else:
        hessians = (2 / 3 * torch.eye(3).double()).expand(2, 3, 3)
    exact = torch.einsum("bkp,bkl,blq->pq", jacobian, hessians, jacobian) / 2
    found = draws.T @ draws / len(draws)
    scale = exact.diagonal().clamp_min(1e-12).sqrt()
    error = (found - exact).abs() / torch.outer(scale, scale)
    assert float(error.max()) < 5.5 * (3 / len(draws)) ** 0.5 + 0.1
    one = metric_columns(task, [batch], "curvature", 0, ["0.weight"])
    assert one is not None
    assert one.shape == (20, 1)


def test_a_full_covariance_tells_more_than_its_diagonal_in_the_bound():
    world_noise = MatrixOptimalNoise(std=0.1, rank=4, samples=4)
    plan = world_noise.calibrate(TASK, PUBLIC, 0)
    covariance = world_noise.covariance(plan)
    assert isinstance(covariance, LowRank)
    shapes = {n: p.detach() for n, p in TASK.parameters().items()}
    whole = dense(covariance, shapes)
    assert_close_to_scale(whole.diagonal(), flatten(covariance.diagonal()), 1e-9)
    least = float(torch.linalg.eigvalsh(whole)[0])
    assert covariance.least() == pytest.approx(least, rel=1e-6)
    guarantee = Guarantee(plan.shapes).clipped(plan.covers, 0.5, "client")
    multiplier = world_noise.account(guarantee, plan).multiplier
    assert multiplier == pytest.approx(least**0.5 / 0.5, rel=1e-6)
    white = torch.stack(
        [flatten(covariance.whiten(unflatten(row, shapes))) for row in whole]
    )
    back = torch.stack(
        [flatten(covariance.whiten(unflatten(row, shapes))) for row in white.T]
    )
    torch.testing.assert_close(back, torch.eye(len(whole)).double(), rtol=0, atol=1e-8)


@given(
    key=st.integers(0, 10**6),
    rank=st.integers(0, 6),
    spread=st.sampled_from([0.0, 0.3, 1.2]),
    sign=st.sampled_from([-1.0, 0.0, 1.0]),
)
def test_the_least_variance_of_low_rank_noise_is_the_smallest_eigenvalue(
    key, rank, spread, sign
):
    root = (spread * normal(*SHAPES["w"].shape, key=key)).exp()
    basis = torch.linalg.qr(normal(root.numel(), rank, key=key + 1)).Q
    # Excess above and below 0, one of them exactly 0, or of one sign.
    drawn = 2 * normal(rank, key=key + 2)
    excess = drawn.tanh() if sign == 0 else sign * drawn.abs().tanh()
    excess[:1] = 0.0
    if sign > 0 and rank:
        # More noise exactly where the diagonal has least: all eigenvalues above min D.
        basis[:, -1] = torch.eye(root.numel()).double()[int(root.argmin())]
        basis, excess = basis[:, -1:], torch.tensor([5.0], dtype=torch.float64)
    form = LowRank({"w": root}, basis, excess)
    whole = torch.linalg.eigvalsh(dense(form, {"w": root}))
    assert form.least() <= float(whole[0]) * (1 + 1e-9)
    assert form.least() == pytest.approx(float(whole[0]), rel=2e-6)
    flat = root.reshape(-1).square()
    for share in (0.7, 0.999, 1.001, 1.5):
        found = eigenvalues_exceed(share * float(whole[0]), flat, basis, excess)
        assert found == (share < 1)


def test_low_rank_is_closed_under_noise_and_masks():
    form = LowRank.of(
        {n: normal(*t.shape, key=1).square() + 0.5 for n, t in SHAPES.items()},
        normal(SIZE, 2, key=3),
        torch.tensor([1.0, -0.02], dtype=torch.float64),
    )
    more = form.plus({"b": torch.tensor(0.3)})
    extra = flatten({"w": torch.zeros(3, 4), "b": torch.full((3,), 0.3)}).double()
    torch.testing.assert_close(
        dense(more, SHAPES), dense(form, SHAPES) + torch.diag(extra)
    )
    mask = {"w": torch.arange(12).reshape(3, 4) % 3 > 0}
    kept = flatten({"w": mask["w"], "b": torch.ones(3, dtype=torch.bool)})
    cut = dense(form.masked(mask), SHAPES)[kept][:, kept]
    torch.testing.assert_close(cut, dense(form, SHAPES)[kept][:, kept])
    torch.testing.assert_close(dense(form.scaled(2.0), SHAPES), 2 * dense(form, SHAPES))
    with pytest.raises(InvalidInput, match="positive definite"):
        LowRank.of({"b": torch.ones(3).double()}, normal(3, 1), torch.tensor([-9.0]))


def test_kronecker_noise_refuses_what_has_no_cheap_inverse():
    noise = MatrixOptimalNoise(std=0.1, form="kronecker", samples=2)
    for other in (
        GaussianNoise(std=0.1),
        Pruning(ratio=0.5),
        Pruning(ratio=0.5, kind="random"),
        OptimalGradientPruning(ratio=0.5, samples=2),
    ):
        with pytest.raises(InvalidInput, match="no cheap inverse; use noise with"):
            Mechanism(Gradient(), [noise, other]).calibrate(TASK, PUBLIC, 0)
    apart = GaussianNoise(std=0.1, only=("0.*",))
    rest = MatrixOptimalNoise(std=0.1, form="kronecker", samples=2, only=("2.*",))
    for free in ([noise], [noise, Pruning(ratio=0.0)], [rest, apart], [apart, rest]):
        stack = Mechanism(Gradient(), free)
        assert stack.law(stack.calibrate(TASK, PUBLIC, 0)).covariance is not None
    covariance = noise.covariance(noise.calibrate(TASK, PUBLIC, 0))
    assert isinstance(covariance, KroneckerFactors)
    whole = dense(covariance, {n: p.detach() for n, p in TASK.parameters().items()})
    least = float(torch.linalg.eigvalsh(whole)[0])
    assert covariance.least() == pytest.approx(least, rel=1e-6)


def test_kronecker_noise_outlives_the_transform_it_was_first_used_in():
    factors = {"w": spd(3, 1)}, {"w": spd(4, 2)}
    form = KroneckerFactors(*factors, {"w": (3, 4)})
    tree = {"w": normal(3, 4)}
    _, inside = torch.func.jvp(form.whiten, (tree,), (tree,))
    again = pickle.loads(pickle.dumps(form)).whiten(tree)
    torch.testing.assert_close(again["w"], inside["w"])
    inverse = torch.linalg.inv(dense(form, tree))
    squared = float(flatten(tree) @ inverse @ flatten(tree))
    assert float(again["w"].square().sum()) == pytest.approx(squared)


def test_each_iteration_of_the_matrix_design_counts_for_the_bayesian_bound_alone():
    def covariance(**options):
        noise = MatrixOptimalNoise(std=0.1, rank=2, samples=2, **options)
        return dict(noise.calibrate(TASK, PUBLIC, 0).arrays)

    once, thrice = covariance(iterations=1), covariance(iterations=3)
    assert any(not torch.allclose(once[n], thrice[n], rtol=1e-3) for n in once)
    trace = [covariance(objective="trace", iterations=k) for k in (1, 3)]
    assert all(torch.equal(trace[0][n], trace[1][n]) for n in trace[0])


def test_low_rank_noise_goes_with_masks_but_not_with_another_correlated_noise():
    noise = MatrixOptimalNoise(std=0.1, rank=2, samples=2)
    stack = Mechanism(Gradient(), [noise, Pruning(ratio=0.5, kind="random")])
    assert stack.law(stack.calibrate(TASK, PUBLIC, 0)).covariance is not None
    with pytest.raises(InvalidInput, match="two correlated noises"):
        Mechanism(Gradient(), [noise, noise]).calibrate(TASK, PUBLIC, 0)


class Scaled(nn.Module):
    """A network with a parameter that is a single number."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.temperature * self.inner(x).tanh()


def test_a_parameter_that_is_a_number_gets_noise_in_every_form():
    task = Task(Scaled().double())
    like = {n: p.detach() for n, p in task.parameters().items()}
    for form in ("low-rank", "kronecker"):
        noise = MatrixOptimalNoise(std=0.1, form=form, rank=3)
        plan = noise.calibrate(task, PUBLIC, 0)
        covariance = noise.covariance(plan)
        whole = dense(covariance, like)
        torch.testing.assert_close(whole.diagonal(), flatten(covariance.diagonal()))
        white = covariance.whiten(covariance.colour(like))
        torch.testing.assert_close(flatten(white), flatten(like))
        released = noise.apply(task.gradient(PUBLIC.inputs, PUBLIC.targets), plan, 1)
        assert released["temperature"].shape == ()


# --- large networks ------------------------------------------------------------------

LARGE = {"samples": 2, "directions": 5, "rank": 6}


@pytest.mark.parametrize("form", ["low-rank", "kronecker"])
def test_pieces_of_a_large_network_give_what_the_whole_gives(form, monkeypatch):
    task, noise = wide_task(), MatrixOptimalNoise(std=0.1, form=form, **LARGE)
    like = {n: p.detach() for n, p in task.parameters().items()}
    direction = {n: normal(*p.shape, key=i) for i, (n, p) in enumerate(like.items())}
    whole = noise.covariance(noise.calibrate(task, PUBLIC, 0))
    monkeypatch.setattr(_principal_directions, "_STORED", 1000)
    monkeypatch.setattr(_matrix_columns, "_STORED", 1000)
    monkeypatch.setattr(_public_scales, "_STORED", 4 * len(PUBLIC) * size(like))
    monkeypatch.setattr(_blocks, "_ROWS", 10_007)
    monkeypatch.setattr(_blocks, "_ENTRIES", 3 * size(like))
    batches = [PUBLIC.select([0])]
    assert isinstance(tangents(task, batches, normal(2, 4), list(like)), Tangents)
    pieces = noise.covariance(noise.calibrate(task, PUBLIC, 0))
    for apply in ("whiten", "colour", "transposed_colour"):
        expected = flatten(getattr(whole, apply)(direction))
        found = flatten(getattr(pieces, apply)(direction))
        assert float((found - expected).norm()) < 1e-3 * float(expected.norm())
    assert pieces.least() > 0


def wide_task():
    net = nn.Sequential(nn.Linear(4, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
    net.append(nn.Linear(200, 3))
    values = generator(3)
    for parameter in net.parameters():
        parameter.data.normal_(generator=values).div_(parameter.shape[-1] ** 0.5)
    return Task(net.double())


def floored(matrix):
    return matrix + 1e-4 * matrix.diagonal().mean() * torch.eye(len(matrix)).double()


def plain_factors(columns, like, ridge):
    """Partial traces of columns [P_l, C] and a ridge, from the definition."""
    rows = len(like)
    x = columns.T.reshape(columns.shape[1], rows, -1)
    width = x.shape[2]
    a = sum(one @ one.T for one in x) + ridge * width * torch.eye(rows).double()
    b = sum(one.T @ one for one in x) + ridge * rows * torch.eye(width).double()
    return floored(a), floored(b) / a.trace()


def test_kronecker_design_is_that_of_the_definition_without_small_spaces():
    task = wide_task()
    shapes = {n: p.detach() for n, p in task.parameters().items()}
    batches = [PUBLIC.select([i]) for i in range(6)]
    axes, prior = principal_directions(PUBLIC, 3)
    seen = tangents(task, batches[:2], axes, list(shapes))
    metric = Metric(metric_columns(task, batches, "u2", 0, list(shapes)), 0.01)
    found = kronecker_design(seen, metric, shapes, prior, 2.5, 2)
    small = read_as_matrices(seen[0], shapes)["2.weight"]
    assert small.core.shape == (3, 4, 4)  # of 200 by 200
    sizes = [t.numel() for t in shapes.values()]

    def design(weighted):
        left, right = {}, {}
        pieces = torch.cat(list(weighted), dim=1) / len(weighted) ** 0.5
        parts = zip(pieces.split(sizes), metric.columns.split(sizes), strict=True)
        for (name, like), (own, cost) in zip(shapes.items(), parts, strict=True):
            pairs = zip(
                plain_factors(cost, like, metric.ridge),
                plain_factors(own, like, 0.0),
                strict=True,
            )
            means = (floored(geometric_mean(h, m)) for h, m in pairs)
            left[name], right[name] = (power(s, 0.5) for s in means)
        form = KroneckerFactors(left, right, {n: t.shape for n, t in shapes.items()})
        return matched(form, metric, shapes, 2.5)

    form = design(seen)
    for _ in range(2):
        form = design(seen @ posterior_covariance(seen, form, shapes, prior))
    for name in shapes:
        assert_close_to_scale(found.left[name], form.left[name], 1e-7)
        assert_close_to_scale(found.right[name], form.right[name], 1e-7)


def test_matrices_in_small_spaces_have_the_products_of_the_whole_ones():
    left, right = normal(100, 4, key=1), normal(90, 7, key=2)
    narrow = torch.einsum("mk,ckl,nl->cmn", left, normal(5, 4, 7, key=3), right)
    shapes = {"w": torch.zeros(100, 90)}
    first, second = spd(100, 4), spd(90, 5)
    wide = narrow.clone()
    wide[0] += 1e-3 * normal(100, 90, key=6)
    for x, shape in ((narrow, (5, 4, 7)), (wide, (5, 100, 90))):
        columns = read_as_matrices(x.flatten(1).T, shapes)["w"]
        assert columns.core.shape == shape
        weight = normal(5, 2, key=7)
        own, other = columns.combined(weight).partial_traces()
        y = torch.einsum("cmn,cd->dmn", x, weight)
        torch.testing.assert_close(own, torch.einsum("cij,ckj->ik", y, y))
        torch.testing.assert_close(other, torch.einsum("cij,cik->jk", y, y))
        moved = (first @ x @ second).flatten(1)
        torch.testing.assert_close(columns.products(first, second), moved @ moved.T)


def test_matrices_of_zeros_are_left_as_they_are():
    columns = read_as_matrices(torch.zeros(9000, 3), {"w": torch.zeros(100, 90)})["w"]
    assert columns.core.shape == (3, 100, 90)
    assert all(float(t.sum()) == 0 for t in columns.partial_traces())


def test_pieces_are_weighted_and_single_precision_but_else_the_same(monkeypatch):
    axes, _ = principal_directions(PUBLIC, 3)
    batches = [PUBLIC.select([2, 5]), PUBLIC.select([7, 1])]
    weight, names = normal(6, 6, key=2), ["0.bias", "2.weight"]
    whole = tangents(TASK, batches, axes, names) @ weight
    monkeypatch.setattr(_principal_directions, "_STORED", 0)
    pieces = (
        tangents(TASK, batches, axes, names) @ weight[:, :4] @ torch.eye(4).double()
    )
    assert pieces.shape == (2, 20, 4)
    for found, expected in zip(pieces, whole[:, :, :4], strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_columns_of_the_metric_are_as_many_as_fit(monkeypatch):
    batches = [PUBLIC.select([i]) for i in range(30)]
    names = list(TASK.parameters())
    exact = metric_columns(TASK, batches, "u2", 0, names)
    first = metric_columns(TASK, batches[:10], "u2", 0, names)
    monkeypatch.setattr(_public_scales, "_STORED", 10 * 4 * len(exact) + 3)
    found = metric_columns(TASK, batches, "u2", 0, names)
    assert exact.shape == (43, 30)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), first, rtol=1e-5, atol=1e-7)
    monkeypatch.setattr(_public_scales, "_STORED", 1)
    assert metric_columns(TASK, batches, "u2", 0, names).shape == (43, 8)


def test_noise_power_as_the_cost_needs_no_columns():
    for form in ("low-rank", "kronecker"):
        noise = MatrixOptimalNoise(std=0.1, form=form, metric="power", rank=2)
        covariance = noise.covariance(noise.calibrate(TASK, PUBLIC, 0))
        power = float(flatten(covariance.diagonal()).sum())
        assert power == pytest.approx(43 * 0.1**2)


# --- the size of the batch -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("optimal-gradient-noise", {"std": 0.1}),
        ("optimal-gradient-pruning", {"ratio": 0.5}),
        ("matrix-optimal-noise", {"std": 0.1}),
    ],
)
def test_a_design_for_batches_of_another_size_is_refused(name, strength):
    two, four, rest = (PUBLIC.select(r) for r in (range(2), range(4), range(4, 30)))
    wrong = (
        rf"'{name}' is made for batches of 2, but the private batch of a client has 4 "
        r"examples; set its option batch_size to 4"
    )
    design = exhume.defense(name, **strength, samples=2, batch_size=2)
    alone = Mechanism(Gradient(), [design])
    World(TASK, two, alone, rest).observe(0)
    for ask in (World.observe, World.plans):
        with pytest.raises(InvalidInput, match=wrong):
            ask(World(TASK, four, alone, rest), 0)
    plans = alone.calibrate(TASK, rest, 0)
    with pytest.raises(InvalidInput, match=wrong):
        alone.values(TASK, four, 0, plans)
    with pytest.raises(InvalidInput, match=wrong):
        alone.sample(TASK, four, 0, rest)
    # Two clients have two examples each of four, and one each of two.
    total = exhume.defense("secure-aggregation", clients=2)
    summed = Mechanism(Gradient(), [design, total])
    World(TASK, four, summed, rest).observe(0)
    with pytest.raises(InvalidInput, match="has 1 example; set its option batch_size"):
        World(TASK, two, summed, rest).observe(0)
    idle = exhume.defense(name, **dict.fromkeys(strength, 0.0), batch_size=2)
    World(TASK, four, Mechanism(Gradient(), [idle]), rest).observe(0)


# --- scales of the private batch -----------------------------------------------------


def test_t10_private_scales_warn_void_the_guarantee_and_follow_the_candidate():
    defense = OptimalGradientNoise(std=0.1, scale_source="private", probes=4, samples=2)
    mechanism = Mechanism(Gradient(), [defense])
    with pytest.warns(UserWarning, match="scale_source='public'"):
        plans = mechanism.calibrate(TASK, PUBLIC, 0)
    law = mechanism.law(plans)
    assert law.cov_depends_on_data
    assert isinstance(law.variance_at, PrivateVariance)
    assert "private" in mechanism.guarantee(plans).reasons[0]
    one, other = PUBLIC.select([0]), PUBLIC.select([1])
    first, second = (
        law.variance_at(TASK, Gradient(), Candidate(b.inputs, b.targets))
        for b in (one, other)
    )
    assert not torch.allclose(flatten(first), flatten(second))
    draws = torch.stack(
        [
            flatten(mechanism.sample(TASK, one, key, plans=plans).values)
            for key in range(200)
        ]
    )
    ratio = draws.var(dim=0) / flatten(first)
    assert float((ratio - 1).abs().max()) < 5.5 * (2 / 200) ** 0.5


def test_private_scales_cost_the_utility_of_isotropic_noise_on_every_batch():
    defense = OptimalGradientNoise(
        std=0.1, scale_source="private", probes=4, samples=2, ridge=1e-9
    )
    mechanism = Mechanism(Gradient(), [defense])
    with pytest.warns(UserWarning, match="private"):
        plans = mechanism.calibrate(TASK, PUBLIC, 0)
    law = mechanism.law(plans)
    for index in range(3):
        own = PUBLIC.select([index])
        g = TASK.gradient(own.inputs, own.targets)
        power = float(flatten(g).square().sum())
        v = law.variance_of(TASK, Gradient(), Candidate(own.inputs, own.targets))
        cost = sum(float((v[n] * t.square()).sum()) for n, t in g.items())
        assert cost == pytest.approx(0.1**2 * power, rel=1e-4)
        public = sum(float((law.variance[n] * t.square()).sum()) for n, t in g.items())
        assert abs(public / (0.1**2 * power) - 1) > 0.02
        with pytest.warns(UserWarning, match="private"):
            u1, u2 = u1_u2(TASK, mechanism, [own], PUBLIC, 0)
        world = World(TASK, own, mechanism, PUBLIC.select(range(3, 30)))
        with pytest.warns(UserWarning, match="private"):
            observation = world.observe(0)
        facts = collect_facts(world, observation, g)
        assert (u1, u2) == (pytest.approx(0, abs=1e-9), pytest.approx(0.1, rel=1e-4))
        ratio = float(flatten(v).sum()) / power
        assert facts["relative_noise"] == pytest.approx(ratio**0.5)


def test_the_variance_of_a_candidate_is_the_declared_one_where_it_is_known():
    given = {"w": torch.ones(2), "b": torch.ones(1)}
    candidate = Candidate(torch.zeros(1, 4), torch.zeros(1))
    own = {"w": torch.full((2,), 3.0)}
    law = Law().plus_private_noise(given, lambda *_: own)
    found = law.variance_of(TASK, Gradient(), candidate)
    assert float(found["w"].sum()) == 6
    assert torch.equal(found["b"], given["b"])
    mixed = law.plus_noise({"w": torch.ones(2)})
    for one in (mixed, Law().plus_noise(given)):
        found = one.variance_of(TASK, Gradient(), candidate)
        assert all(torch.equal(found[n], v) for n, v in one.variance.items())


def test_a_whole_covariance_is_never_made_of_the_private_batch():
    with pytest.raises(InvalidInput, match=r"no bound is known; use scale_source='pub"):
        MatrixOptimalNoise(std=0.1, scale_source="private")
    with pytest.raises(InvalidInput, match="scale_source is 'secret'"):
        MatrixOptimalNoise(std=0.1, scale_source="secret")  # type: ignore[arg-type]


def test_private_masks_show_in_the_zeros_and_have_no_fisher_information():
    defense = OptimalGradientPruning(
        ratio=0.5, scale_source="private", probes=4, samples=2
    )
    mechanism = Mechanism(Gradient(), [defense])
    with pytest.warns(UserWarning, match="scale_source='public'"):
        plans = mechanism.calibrate(TASK, PUBLIC, 0)
    release = mechanism.sample(TASK, PUBLIC.select([0]), 1, plans=plans).values
    law = mechanism.law(plans, release)
    assert law.irregular is not None
    assert all(torch.equal(law.mask[n], t != 0) for n, t in release.items())


def test_a_mask_before_correlated_noise_leaves_the_noise_of_the_others_visible():
    form = LowRank.of({"b": torch.ones(2).double()}, torch.full((2, 1), 3.0).double())
    law = Mechanism(Gradient(), []).law(())
    cut = law.masked({"b": torch.tensor([True, False])}).plus_noise({}, covariance=form)
    basis = torch.tensor([1.0, 0.0], dtype=torch.float64)
    shown = cut.whitener({"b": basis})(cut.mean({"b": basis}))["b"]
    inverse = torch.linalg.inv(dense(form, {"b": basis}))
    assert float(shown @ shown) == pytest.approx(float(inverse[0, 0]))
    assert float(cut.mean({"b": torch.ones(2).double()})["b"][1]) == 0


def test_private_scales_beside_other_noise_are_refused_by_the_bound_not_ignored():
    private = OptimalGradientNoise(std=0.1, scale_source="private", probes=2, samples=2)
    for stack in ([private, GaussianNoise(std=1.0)], [GaussianNoise(std=1.0), private]):
        mechanism = Mechanism(Gradient(), stack)
        with pytest.warns(UserWarning, match="private"):
            plans = mechanism.calibrate(TASK, PUBLIC, 0)
        assert "private" in str(mechanism.law(plans).not_gaussian)
    private_alone = Law().plus_private_noise({"w": torch.ones(2)}, lambda *_: {})
    assert private_alone.not_gaussian is None
    cut = Law().masked({"w": torch.tensor([True, False])})
    noisy = cut.plus_private_noise({"w": torch.ones(2)}, lambda *_: {})
    assert "private" in str(noisy.not_gaussian)
    already = replace(cut, not_gaussian="rounded")
    assert already.plus_private_noise({}, lambda *_: {}).not_gaussian == "rounded"


def test_a_private_mask_behind_differential_privacy_voids_it():
    stack = [
        DpSgd(max_norm=1.0, noise_multiplier=1.0, batch_size=1),
        OptimalGradientPruning(ratio=0.5, scale_source="private", probes=2, samples=2),
    ]
    mechanism = Mechanism(Gradient(), stack)
    with pytest.warns(UserWarning, match="private"):
        plans = mechanism.calibrate(TASK, PUBLIC, 0)
    assert mechanism.guarantee(plans).multiplier == 0
    local = Mechanism(Gradient(), [stack[0], LocalAggregation(steps=2)])
    assert local.guarantee(local.calibrate(TASK, PUBLIC, 0)).multiplier == 0
    alone = Mechanism(Gradient(), stack[:1])
    assert alone.guarantee(alone.calibrate(TASK, PUBLIC, 0)).multiplier == 1
