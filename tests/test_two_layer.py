"""The tensor attack: moments, decomposition, subspaces, and recovery of inputs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import exhume
from exhume.attacks.two_layer.activation import (
    ACTIVATIONS,
    activation,
    hermite_moment,
    recognised,
)
from exhume.attacks.two_layer.checks import inspect_weights, mean_significance
from exhume.attacks.two_layer.completion import completed
from exhume.attacks.two_layer.decomposition import (
    jennrich,
    normal_equations,
    symmetric_cubes,
)
from exhume.attacks.two_layer.features import recover_features
from exhume.attacks.two_layer.fit import (
    Neurons,
    gauss_newton_step,
    misfit,
    predicted,
    residuals,
)
from exhume.attacks.two_layer.implied import implied_targets
from exhume.attacks.two_layer.joint_signs import joint_signs
from exhume.attacks.two_layer.locate import locate
from exhume.attacks.two_layer.moments import (
    first_moment,
    fourth_from_hidden,
    fourth_from_output,
    second_from_hidden,
    second_moment,
    third_from_hidden,
    third_moment,
)
from exhume.attacks.two_layer.recovery import TwoLayerView, recover_inputs
from exhume.attacks.two_layer.search import span_confidence
from exhume.attacks.two_layer.signs import bias_factors, consistent_norms, softmax_sign
from exhume.attacks.two_layer.subspace import noise_threshold, row_subspace
from exhume.attacks.two_layer.totals import residual_total, signs_of_total
from exhume.errors import Inconsistent, InvalidInput
from exhume.keys import generator
from exhume.models._init import fresh
from exhume.observations.gradient import Gradient
from exhume.observations.update import Update

#: c_0 … c_4 of common activations, by adaptive quadrature elsewhere
MOMENTS = {
    "quadratic-cubic": (1, 3, 2, 6, 0),
    "tanh": (0, 0.6057, 0, -0.3636, 0),
    "sigmoid": (0.5, 0.2066, 0, -0.0624, 0),
    "normal-cdf": (0.5, 0.2821, 0, -0.1410, 0),
    "sin": (0, 0.6065, 0, -0.6065, 0),
    "relu": (0.39894, 0.5, 0.39894, 0, -0.39894),
    "leaky-relu": (0.3950, 0.5050, 0.3950, 0, -0.3950),
    "gelu": (0.2821, 0.5, 0.4231, 0, -0.3526),
    "silu": (0.2066, 0.5, 0.3508, 0, -0.1852),
    "softplus": (0.8061, 0.5, 0.2066, 0, -0.0624),
    "elu": (0.1605, 0.7616, 0.2616, -0.1374, -0.1374),
    "selu": (0, 0.9852, 0.1777, -0.2415, 0.0407),
}


def problem(
    name, m=5000, d=50, batch=2, seed=0, *, bias=2.0, random=False, released="hidden"
):
    """One-output network of the theory: unit inputs, W ~ N(0, I), a = 1/m."""
    source = torch.Generator().manual_seed(seed)
    weight = torch.randn(m, d, generator=source, dtype=torch.float64)
    inputs = torch.eye(d, dtype=torch.float64)[:batch]
    if random:
        inputs = torch.randn(batch, d, generator=source, dtype=torch.float64)
        inputs /= inputs.norm(dim=1, keepdim=True)
    sigma = ACTIVATIONS[name]
    arguments = weight @ inputs.T
    targets = torch.tensor([1.0, -1.0] * batch, dtype=torch.float64)[:batch]
    residual = sigma.value(arguments).mean(0) - targets + bias
    hidden = (sigma.slope(arguments) * residual) @ inputs / m
    output = (sigma.value(arguments) @ residual)[None]
    view = TwoLayerView(
        weight,
        torch.full((1, m), 1 / m, dtype=torch.float64),
        name,
        hidden if released == "hidden" else None,
        output if released == "output" else None,
    )
    return view, inputs, residual


def rms(found, inputs):
    """Return the error over the best assignment and signs, and the order."""
    overlap = found.directions @ inputs.T
    rows, order = linear_sum_assignment(-overlap.abs().numpy())
    side = overlap[rows, order].sign().unsqueeze(1)
    gap = (side * found.directions[rows] - inputs[order]).square().sum(dim=1)
    return math.sqrt(float(gap.mean())), order


# Moments


@pytest.mark.parametrize("name", MOMENTS)
def test_hermite_moments_are_those_of_the_theory(name):
    for order, expected in enumerate(MOMENTS[name]):
        found = hermite_moment(ACTIVATIONS[name].value, order)
        assert found == pytest.approx(expected, abs=1e-3)


def test_a_scaled_moment_is_a_moment_of_the_derivative():
    # E[(βZ)³ He₃(Z)] = 6 β³.
    found = hermite_moment(lambda z: z**3, 3, scale=1.7)
    assert found == pytest.approx(6 * 1.7**3, rel=1e-6)
    with pytest.raises(InvalidInput, match="order"):
        hermite_moment(torch.tanh, 5)


def test_empirical_moments_tend_to_those_of_the_data():
    view, inputs, residual = problem("quadratic-cubic", m=200_000, d=3, random=True)
    c = MOMENTS["quadratic-cubic"]
    rows = view.hidden_gradient[:] * view.width
    weights = (ACTIVATIONS["quadratic-cubic"].value(view.weight @ inputs.T)) @ residual
    points = view.weight
    one = torch.einsum("i,ij->j", residual, inputs)
    two = torch.einsum("i,ij,ik->jk", residual, inputs, inputs)
    three = torch.einsum("i,ij,ik,il->jkl", residual, inputs, inputs, inputs)
    size = float(residual.abs().sum())
    for found, expected, order in (
        (first_moment(weights, points), one, 1),
        (second_moment(weights, points), two, 2),
        (third_moment(weights, points), three, 3),
        (second_from_hidden(rows, points), two, 2),
        (third_from_hidden(rows, points), three, 3),
    ):
        # A few standard errors of an average over 200,000 neurons.
        assert float((found - c[order] * expected).norm()) < 0.1 * size * c[order]


def test_cubes_are_summed_in_blocks_of_bounded_size():
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                self.numbers = max(self.numbers, found.numel())
            return found

    source = torch.Generator().manual_seed(0)
    points = torch.randn(4_000, 64, generator=source, dtype=torch.float64)
    weights = torch.randn(4_000, generator=source, dtype=torch.float64)
    with Largest() as largest:
        found = third_moment(weights, points)
    assert largest.numbers <= 2**22 < 4_000 * 64**2
    few = points[:, :3]
    cubes = torch.einsum("j,ja,jb,jc->abc", weights, few, few, few) / 4_000
    first = weights @ few / 4_000
    eye = torch.eye(3, dtype=torch.float64)
    for letters in ("a,bc->abc", "b,ac->abc", "c,ab->abc"):
        cubes -= torch.einsum(letters, first, eye)
    torch.testing.assert_close(found[:3, :3, :3], cubes)


def test_order_four_sees_what_order_three_does_not():
    view, inputs, residual = problem("relu", m=400_000, d=3, random=True)
    c4 = MOMENTS["relu"][4]
    along = inputs.sum(0) / inputs.sum(0).norm()
    expected = c4 * torch.einsum(
        "i,ij,ik,il->jkl", residual * (inputs @ along), inputs, inputs, inputs
    )
    rows = view.hidden_gradient[:] * view.width
    weights = torch.relu(view.weight @ inputs.T) @ residual
    for found in (
        fourth_from_hidden(rows, view.weight, along),
        fourth_from_output(weights, view.weight, along),
    ):
        assert float((found - expected).norm()) < 0.15 * float(expected.norm())


def test_impossible_activations_are_refused_in_words():
    for name, what in (("identity", "one linear combination"), ("quadratic", "span")):
        with pytest.raises(InvalidInput, match=what):
            activation(name)
    with pytest.raises(InvalidInput, match="moments are known for"):
        activation("tan")


def test_an_activation_is_recognised_by_what_it_does():
    before = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    for name, one in ACTIVATIONS.items():
        found = recognised(before, one.value(before))
        assert found is not None
        assert found[0].name == name
    kept = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0])
    sigma, factors = recognised(before, kept * torch.tanh(before))
    assert sigma.name == "tanh"
    assert torch.allclose(factors, kept, atol=1e-5)
    assert recognised(before, before.cos()) is None
    # Near 0 it is a line up to a millionth, and still nearest to itself.
    tiny = 3e-3 * before
    assert recognised(tiny, torch.tanh(tiny))[0].name == "tanh"


# Decomposition


@given(st.integers(2, 5), st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_cubes_of_independent_directions_are_found(n, seed):
    source = np.random.default_rng(seed)
    q, _ = np.linalg.qr(source.standard_normal((n, n)))
    q = q + 0.3 * source.standard_normal((n, n)) / n
    q /= np.linalg.norm(q, axis=0)
    weights = source.uniform(0.5, 2, n) * source.choice([-1, 1], n)
    tensor = np.einsum("k,ik,jk,lk->ijl", weights, q, q, q)
    found = symmetric_cubes(torch.from_numpy(tensor), key=0)
    assert found.misfit < 1e-6
    likeness = np.abs(found.directions.numpy().T @ q)
    assert np.allclose(likeness.max(axis=0), 1, atol=1e-5)


def test_the_normal_equations_of_cubes_are_those_of_their_jacobian():
    source = torch.Generator().manual_seed(0)
    tensor = torch.randn(4, 4, 4, generator=source, dtype=torch.float64)
    orders = list(itertools.permutations(range(3)))
    tensor = sum(tensor.permute(o) for o in orders) / 6
    columns = torch.randn(4, 4, generator=source, dtype=torch.float64)

    def rest(flat):
        v = flat.reshape(4, 4).T
        return (torch.einsum("ik,jk,lk->ijl", v, v, v) - tensor).reshape(-1)

    flat = columns.T.reshape(-1)
    slopes = torch.autograd.functional.jacobian(rest, flat)
    normal, slope, error = normal_equations(tensor.numpy(), columns.numpy())
    assert np.allclose(normal, slopes.T @ slopes)
    assert np.allclose(slope, slopes.T @ rest(flat))
    assert error == pytest.approx(float(rest(flat).norm()))


def test_cubes_beside_noise_are_found_in_sixteen_dimensions():
    source = np.random.default_rng(0)
    q, _ = np.linalg.qr(source.standard_normal((16, 16)))
    tensor = np.einsum("ik,jk,lk->ijl", q, q, q)
    noise = source.standard_normal((16, 16, 16))
    noise = sum(noise.transpose(o) for o in itertools.permutations(range(3)))
    tensor += 0.1 * noise * np.linalg.norm(tensor) / np.linalg.norm(noise)
    found = symmetric_cubes(torch.from_numpy(tensor), key=0)
    likeness = np.abs(found.directions.numpy().T @ q).max(axis=0)
    assert float(likeness.min()) > 0.98


def test_one_pair_of_slices_is_enough_without_noise():
    q = np.array([[1.0, 0.6], [0.0, 0.8]])
    tensor = np.einsum("k,ik,jk,lk->ijl", [2.0, -1.0], q, q, q)
    found = jennrich(tensor, np.array([1.0, 0.3]), np.array([0.2, -1.0]))
    assert np.allclose(np.abs(found.T @ q).max(axis=0), 1)


def test_complex_roots_and_singular_slices_do_not_crash():
    # T(·,·,a) of this tensor rotates, so that the eigenvectors are complex.
    tensor = torch.zeros(2, 2, 2, dtype=torch.float64)
    for i, j, k in itertools.product(range(2), repeat=3):
        tensor[i, j, k] = {0: 1.0, 1: 0.0, 2: -1.0, 3: 0.0}[i + j + k]
    for one in (tensor, torch.zeros(3, 3, 3, dtype=torch.float64)):
        found = symmetric_cubes(one, key=0)
        assert bool(torch.isfinite(found.directions).all())


# Recovery


@pytest.mark.parametrize(
    ("name", "released", "most"),
    [
        ("quadratic-cubic", "hidden", 3e-3),
        ("tanh", "hidden", 3e-3),
        ("sigmoid", "hidden", 6e-3),
        ("relu", "hidden", 2e-2),
        ("gelu", "hidden", 5e-2),
    ],
)
def test_the_estimator_of_the_theorem_is_accurate(name, released, most):
    errors = []
    for seed in range(3):
        view, inputs, _ = problem(name, seed=seed, released=released, bias=30)
        found = recover_inputs(view, 2, norm=1.0, key=seed)
        errors.append(rms(found, inputs)[0] ** 2)
    assert float(np.median(errors)) < most


@pytest.mark.parametrize("name", ["quadratic-cubic", "tanh", "sigmoid"])
@pytest.mark.parametrize("d", [50, 300])
def test_errors_in_the_span_of_the_rows_are_nearly_free_of_the_dimension(name, d):
    errors = []
    for seed in range(5):
        view, inputs, _ = problem(name, d=d, seed=seed, bias=30)
        found = recover_inputs(view, 2, norm=1.0, subspace="svd", key=seed)
        errors.append(rms(found, inputs)[0] ** 2)
    assert float(np.median(errors)) <= 3e-3


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_batches_of_up_to_six_are_recovered(batch):
    view, inputs, _ = problem("tanh", m=20_000, d=60, batch=batch, random=True)
    assert rms(recover_inputs(view, batch, norm=1.0), inputs)[0] < 0.05


def test_the_error_falls_as_one_over_the_root_of_the_width():
    widths, errors = (1000, 4000, 16_000), []
    for width in widths:
        trials = []
        for seed in range(5):
            view, inputs, _ = problem("quadratic-cubic", m=width, d=30, seed=seed)
            found = recover_inputs(view, 2, norm=1.0, subspace="moments", key=seed)
            trials.append(rms(found, inputs)[0])
        errors.append(np.median(trials))
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.35


def test_the_output_gradient_alone_gives_the_inputs_of_wide_networks():
    view, inputs, _ = problem("quadratic-cubic", m=50_000, d=20, released="output")
    found = recover_inputs(view, 2, norm=1.0)
    assert found.source == "output"
    assert rms(found, inputs)[0] < 0.25


def from_output(name, sizes, m=20_000, d=8, **options):
    """Return the output gradient of inputs with given residuals."""
    view, inputs, _ = problem(
        name, m=m, d=d, batch=len(sizes), random=True, released="output", **options
    )
    exact = torch.tensor(sizes, dtype=torch.float64)
    shown = (view.sigma.value(view.weight @ inputs.T) @ exact)[None]
    return replace(view, output_gradient=shown), inputs, exact


def test_signs_from_the_output_gradient_are_told_for_all_inputs_together():
    # The larger residual pulls the fit of the smaller one, alone, to the other sign.
    view, inputs, exact = from_output("quadratic-cubic", [1.0, -5.0])
    found = recover_inputs(view, 2, norm=1.0)
    overlap = found.directions @ inputs.T
    order = overlap.abs().argmax(dim=0)
    assert bool(found.sign_known.all())
    assert bool((overlap.amax(dim=0) > 0.9).all())
    assert torch.equal(found.residuals[order, 0].sign(), exact.sign())


@pytest.mark.parametrize("size", [1, 4, 12])
@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh"])
def test_joint_signs_are_the_true_ones_or_left_open(name, size):
    source = torch.Generator().manual_seed(size)
    arguments = torch.randn(4000, size, generator=source, dtype=torch.float64)
    exact = torch.randn(size, 2, generator=source, dtype=torch.float64)
    turned = torch.where(torch.rand(size, generator=source) < 0.5, -1.0, 1.0).double()
    sigma = ACTIVATIONS[name]
    shown = sigma.value(arguments * turned) @ exact
    signs, told = joint_signs(sigma.value(arguments), sigma.value(-arguments), shown)
    # Of twelve sigmoids only a constant tells signs, in thousands of combinations.
    open_ones = name == "tanh" or (name == "sigmoid" and size == 12)
    assert bool(told.any()) != open_ones
    assert torch.equal(signs[told], turned[told])


def test_opposite_residuals_of_a_sigmoid_leave_signs_open():
    source = torch.Generator().manual_seed(0)
    arguments = torch.randn(4000, 2, generator=source, dtype=torch.float64)
    shown = torch.sigmoid(arguments) @ torch.tensor([[1.0], [-1.0]]).double()
    pair = torch.sigmoid(arguments), torch.sigmoid(-arguments)
    assert not bool(joint_signs(*pair, shown)[1].any())


@pytest.mark.parametrize("released", ["hidden", "both", "zeros"])
def test_an_output_unit_without_weights_is_passed_over(released):
    view, inputs, residual = problem("tanh", m=4000, d=20, random=True)
    heads = torch.cat([torch.zeros_like(view.output), view.output])
    shown = None
    if released == "both":
        size = torch.stack([2 * residual, residual], dim=1)
        shown = (view.sigma.value(view.weight @ inputs.T) @ size).T
    elif released == "zeros":
        shown = torch.zeros_like(heads)
    other = replace(view, output=heads, output_gradient=shown)
    found = recover_inputs(other, 2, norm=1.0)
    assert rms(found, inputs)[0] < 0.1
    if shown is None:
        assert "labels are not identified" in " ".join(found.notes)
    elif released == "both":
        # Residuals that the hidden gradient does not show come from the other one.
        ratio = found.residuals[:, 0] / found.residuals[:, 1]
        assert torch.allclose(ratio, torch.full((2,), 2.0).double(), rtol=0.05)


def test_no_weights_in_the_output_layer_are_said():
    view, _, _ = problem("tanh", m=100, d=5)
    with pytest.raises(InvalidInput, match="output weights are zero"):
        recover_inputs(replace(view, output=torch.zeros_like(view.output)), 2)


def test_one_neuron_has_no_halves_to_agree():
    view, _, _ = problem("tanh", m=1, d=1, batch=1, released="output")
    found = recover_inputs(view, 1)
    assert float(found.confidence) == 0


def test_precisions_may_differ():
    view, inputs, _ = problem("quadratic-cubic", m=8000, d=10)
    mixed = replace(view, weight=view.weight.float())
    found = recover_inputs(mixed, 2, norm=1.0, subspace="moments")
    assert rms(found, inputs)[0] < 0.1


def test_an_activation_that_does_not_bend_is_said():
    view, inputs, residual = problem("tanh", m=2000, d=20, random=True)
    weight = 1e-3 * view.weight
    slopes = view.sigma.slope(weight @ inputs.T)
    flat = replace(view, weight=weight, hidden_gradient=slopes * residual @ inputs)
    found = recover_inputs(flat, 2, polish=20)
    assert rms(found, inputs)[0] > 0.1
    assert "nearly a polynomial" in " ".join(found.notes)
    assert found.confidence.tolist() == [0, 0]
    bent = recover_inputs(view, 2, polish=20)
    assert bool(bent.reached.all())
    assert float(bent.confidence.min()) > 0.99


def test_confidence_is_that_of_the_polished_estimate():
    view, inputs, _ = problem("softplus", m=600, d=20, batch=2, random=True, seed=3)
    rough = recover_inputs(view, 2)
    found = recover_inputs(view, 2, polish=50)
    assert float(rough.confidence.min()) < 0.9
    assert rms(found, inputs)[0] < 1e-5
    assert float(found.confidence.min()) > 0.999
    assert not any("halves" in note for note in found.notes)


@pytest.mark.parametrize("name", ["tanh", "quadratic-cubic", "softplus"])
def test_polishing_ends_at_the_inputs_norms_and_residuals(name):
    view, inputs, residual = problem(name, m=2000, d=30, batch=3, random=True)
    found = recover_inputs(view, 3, polish=50)
    error, order = rms(found, inputs)
    assert error < 1e-5
    assert found.misfit < 1e-5
    assert torch.allclose(found.inputs.norm(dim=1), torch.ones(3).double(), atol=1e-4)
    sizes = found.residuals[:, 0].abs()
    assert torch.allclose(sizes, residual.abs()[order], rtol=1e-3)


def test_the_batch_size_is_counted():
    view, inputs, _ = problem("tanh", m=3000, d=20, batch=3, random=True)
    assert len(recover_inputs(view).inputs) == 3
    source = torch.Generator().manual_seed(1)
    noise = torch.randn(3000, 20, generator=source).double()
    scale = 0.1 * float(view.hidden_gradient.square().mean().sqrt())
    noisy = replace(view, hidden_gradient=view.hidden_gradient + scale * noise)
    found = recover_inputs(noisy)
    assert len(found.inputs) == 3
    assert rms(found, inputs)[0] < 0.2


def test_the_threshold_separates_a_signal_from_noise():
    source = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 100, generator=source, dtype=torch.float64)
    values = torch.linalg.svdvals(noise)
    # The edge of pure noise is √m + √d.
    assert noise_threshold(values, 2000) > float(values[0])
    assert noise_threshold(values, 2000) < 2 * (math.sqrt(2000) + math.sqrt(100))


def test_the_batch_size_is_counted_with_fewer_neurons_than_dimensions():
    view, _, _ = problem("tanh", m=60, d=200, random=True)
    source = torch.Generator().manual_seed(1)
    noise = torch.randn(60, 200, generator=source).double()
    scale = 0.1 * float(view.hidden_gradient.square().mean().sqrt())
    noisy = replace(view, hidden_gradient=view.hidden_gradient + scale * noise)
    assert row_subspace(noisy, None, key=0).basis.shape == (200, 2)


def test_the_rows_of_the_gradient_span_the_inputs_exactly():
    view, inputs, _ = problem("tanh", m=500, d=40, batch=3, random=True)
    found = row_subspace(view, 3, key=0)
    assert found.gap > 1e5
    outside = inputs - inputs @ found.basis @ found.basis.T
    assert float(outside.norm()) < 1e-6


def test_strong_noise_moves_the_choice_to_moments():
    kinds = []
    for level in (0.0, 600.0):
        view, _, _ = problem("quadratic-cubic", m=8000, d=40, seed=2, bias=30)
        source = torch.Generator().manual_seed(5)
        noise = torch.randn(8000, 40, generator=source).double() * level / 8000
        noisy = replace(view, hidden_gradient=view.hidden_gradient + noise)
        kinds.append(recover_inputs(noisy, 2, norm=1.0).subspace.kind)
    assert kinds == ["svd", "moments"]


def test_directions_and_fit_agree_with_the_forward_model():
    view, inputs, residual = problem("softplus", m=500, d=4, random=True)
    neurons = Neurons(
        view.weight, view.output.T, view.hidden_gradient, None, view.sigma, 1.0
    )
    exact = residual.unsqueeze(1)
    assert torch.allclose(predicted(neurons, inputs, exact), view.hidden_gradient)
    assert torch.allclose(residuals(neurons, inputs), exact, atol=1e-6)
    assert misfit(neurons, inputs, exact) < 1e-12
    near = inputs + 0.01
    moved, changed = gauss_newton_step(neurons, near, exact, 0.0)
    assert misfit(neurons, moved, changed) < 0.2 * misfit(neurons, near, exact)


def test_removed_entries_are_filled_in():
    source = torch.Generator().manual_seed(0)
    rows = torch.randn(800, 2, generator=source) @ torch.randn(2, 30, generator=source)
    kept = torch.rand(rows.shape, generator=source) > 0.5
    found = completed(rows * kept, kept, rank=2)
    assert found is not None
    assert float((found - rows).norm() / rows.norm()) < 1e-4
    noisy = rows + 0.1 * torch.randn(rows.shape, generator=source)
    assert completed(noisy * kept, kept, rank=2) is None


# Limits of identifiability


def test_limits_are_told():
    view, _, _ = problem("tanh", m=60, d=50)
    notes = " ".join(recover_inputs(view, 2, norm=1.0).notes)
    assert "narrow" in notes
    assert "signs are not identified" in notes
    view, inputs, _ = problem("quadratic-cubic", m=2000, d=10)
    assert recover_inputs(view, 2, norm=1.0).notes == ()
    assert bool(recover_inputs(view, 2, norm=1.0).sign_known.all())
    close = inputs.clone()
    close[1] = close[0] + 0.01 * close[1]
    arguments = view.weight @ close.T
    hidden = view.sigma.slope(arguments) @ close / 2000
    near = replace(view, hidden_gradient=hidden)
    assert "nearly parallel" in " ".join(recover_inputs(near, 2, norm=1.0).notes)
    relu, _, _ = problem("relu", m=2000, d=10)
    assert "product of residual and norm" in " ".join(recover_inputs(relu, 2).notes)


def test_weights_that_are_not_gaussian_are_detected_and_whitened():
    source = torch.Generator().manual_seed(0)
    view, inputs, residual = problem("tanh", m=8000, d=12, random=True)
    uniform = (torch.rand(8000, 12, generator=source) - 0.5).double()
    flat = inspect_weights(replace(view, weight=uniform))
    assert "not Gaussian" in " ".join(flat.notes)
    assert inspect_weights(view).notes == ()
    stretch = torch.diag(torch.linspace(0.5, 2, 12, dtype=torch.float64))
    weight = view.weight @ stretch
    arguments = weight @ inputs.T
    hidden = (view.sigma.slope(arguments) * residual) @ inputs / 8000
    skewed = replace(view, weight=weight, hidden_gradient=hidden)
    assert inspect_weights(skewed).root is not None
    found = recover_inputs(skewed, 2)
    assert "whitened" in " ".join(found.notes)
    assert rms(found, inputs)[0] < 0.3


@pytest.mark.parametrize("norm", [None, 3.0])
def test_a_norm_that_is_given_is_one_before_whitening(norm):
    view, inputs, residual = problem("relu", m=4000, d=8, random=True, bias=30)
    weight = view.weight * torch.linspace(0.5, 2, 8, dtype=torch.float64)
    slopes = view.sigma.slope(weight @ inputs.T)
    skewed = replace(view, weight=weight, hidden_gradient=slopes * residual @ inputs)
    found = recover_inputs(skewed, 2, norm=norm, polish=30)
    size = torch.full((2,), norm or 1.0, dtype=torch.float64)
    torch.testing.assert_close(found.inputs.norm(dim=1), size)
    error, order = rms(found, inputs)
    assert error < 1e-3
    # Only the product of residual and norm shows.
    product = found.residuals[:, 0].abs() * size
    expected = 4000 * residual.abs()[order]
    assert (product / expected).tolist() == pytest.approx([1, 1], abs=0.01)
    assert any("norms are set to 1" in n for n in found.notes) == (norm is None)


def with_mean(name, length, **options):
    """Move the weights of a problem, and its gradient with them."""
    view, inputs, residual = problem(name, random=True, **options)
    d = inputs.shape[1]
    source = torch.Generator().manual_seed(7)
    mean = torch.randn(d, generator=source, dtype=torch.float64)
    weight = view.weight + length * mean / mean.norm()
    arguments = weight @ inputs.T
    hidden = (view.sigma.slope(arguments) * residual) @ inputs / len(weight)
    output = (view.sigma.value(arguments) @ residual)[None]
    shown = view.hidden_gradient is not None
    moved = replace(
        view,
        weight=weight,
        hidden_gradient=hidden if shown else None,
        output_gradient=None if shown else output,
    )
    return moved, inputs


@pytest.mark.parametrize(
    ("name", "released", "most"),
    [("tanh", "hidden", 0.05), ("relu", "hidden", 0.12), (None, "output", 0.3)],
)
def test_moments_are_taken_about_a_mean_of_the_weights(name, released, most):
    name = name or "quadratic-cubic"
    view, inputs = with_mean(name, 2.0, m=20_000, d=12, released=released)
    weights = inspect_weights(view)
    assert weights.root is None
    assert weights.mean is not None
    assert weights.scale == pytest.approx(1, abs=0.02)
    (note,) = weights.notes
    assert "mean (of length 2" in note
    centred = weights.centred(view).weight
    assert float(centred[slice(None)].mean(dim=0).norm()) < 1e-6
    assert centred.shape == view.weight.shape
    error = rms(recover_inputs(view, 2, norm=1.0), inputs)[0]
    # Without the mean taken off, errors are above 0.4.
    assert error < most


def test_a_mean_and_a_covariance_are_told_apart():
    view, inputs = with_mean("tanh", 2.0, m=8000, d=12)
    stretch = torch.diag(torch.linspace(0.5, 2, 12, dtype=torch.float64))
    weight = view.weight @ stretch
    arguments = weight @ inputs.T
    hidden = view.sigma.slope(arguments) @ inputs / 8000
    both = replace(view, weight=weight, hidden_gradient=hidden)
    found = inspect_weights(both)
    assert found.root is not None
    white = found.centred(found.whitened(both)).weight[slice(None)] / found.scale
    gram = white.T @ white / 8000
    torch.testing.assert_close(gram, torch.eye(12).double(), atol=1e-6, rtol=0)
    assert not any("not Gaussian" in n for n in found.notes)
    assert rms(recover_inputs(both, 2), inputs)[0] < 0.1
    same = replace(view, weight=torch.ones(8000, 12, dtype=torch.float64))
    assert "same hidden weights" in inspect_weights(same).notes[0]


@pytest.mark.parametrize("dependent", [False, True])
def test_a_mean_is_seen_no_more_often_than_chance(dependent):
    source = torch.Generator().manual_seed(0)
    mix = torch.eye(6) + (2.0 if dependent else 0.0) * torch.ones(6, 6)
    chances = []
    for _ in range(400):
        sample = (torch.randn(300, 6, generator=source) @ mix).double()
        chances.append(mean_significance(sample, sample.T @ sample / 300))
        assert mean_significance(sample) > 0
    share = sum(c < 0.1 for c in chances) / 400
    # Binomial: three standard deviations of the share are 0.045.
    assert share == pytest.approx(0.1, abs=0.045)
    sample[:, 2] += 1.0
    assert mean_significance(sample, sample.T @ sample / 300) < 1e-9
    assert mean_significance(torch.zeros(4, 2)) == 1
    assert mean_significance(torch.ones(4, 2)) == 0


def test_bad_views_are_refused_in_words():
    view, _, _ = problem("tanh", m=100, d=5)
    with pytest.raises(Inconsistent, match="offsets"):
        replace(view, offset=torch.zeros(50))
    with pytest.raises(Inconsistent, match="hidden gradient"):
        replace(view, hidden_gradient=view.hidden_gradient[:50])
    with pytest.raises(InvalidInput, match="needs the gradient"):
        replace(view, hidden_gradient=None)
    with pytest.raises(InvalidInput, match="not released"):
        recover_inputs(view, 2, source="output")
    with pytest.raises(InvalidInput, match="at most 5 examples"):
        recover_inputs(view, 6)
    equal = replace(view, hidden_gradient=torch.zeros(100, 5))
    with pytest.raises(InvalidInput, match="equal rows"):
        recover_inputs(equal, 2)


# On tasks: classes, biases, deep networks


def world(batch, net, loss="cross-entropy", defenses=()):
    task = exhume.Task(net, loss=loss)
    mechanism = exhume.Mechanism(Gradient(), defenses)
    return exhume.World(task, batch, mechanism, None, None)


def reveal(one, threat="parameter-aware"):
    return exhume.ThreatModel(threat).reveal(one, one.observe())


def faces(*indices, labels):
    batch = exhume.dataset("faces").load().select(list(indices))
    return replace(batch, targets=torch.tensor(labels))


@pytest.mark.parametrize(
    ("activation_name", "bias", "labels"),
    [("tanh", False, (1, 7)), ("relu", False, (3, 3)), ("gelu", True, (0, 2))],
)
def test_faces_and_labels_come_out_of_a_softmax_network(activation_name, bias, labels):
    batch = faces(3, 40, labels=labels)
    net = exhume.model(
        "two-layer", width=4000, activation=activation_name, bias=bias
    ).build(batch.spec, 10, 0)
    guess = exhume.attack("tensor")(reveal(world(batch, net)), key=0)
    gap = torch.cdist(guess.inputs.flatten(1), batch.inputs.flatten(1))
    rows, order = linear_sum_assignment(gap.numpy())
    error = gap[rows, order].square() / batch.spec.dimension
    assert float(error.max()) < 1e-3  # 30 dB
    assert guess.targets[rows].tolist() == [labels[i] for i in order]


def test_real_targets_come_out():
    spec = exhume.EventSpec.vector(12)
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 12, generator=source)
    inputs /= inputs.norm(dim=1, keepdim=True)
    targets = torch.tensor([[1.0], [-1.0], [1.0]])
    net = exhume.model(
        "two-layer", width=3000, activation="softplus", hidden_std=1.0
    ).build(spec, 1, 0)
    batch = exhume.Batch(inputs, targets, spec)
    one = world(batch, net, loss="mse")
    guess = exhume.attack("tensor")(reveal(one), key=0)
    gap = torch.cdist(guess.inputs, inputs)
    rows, order = linear_sum_assignment(gap.numpy())
    assert float(gap[rows, order].max()) < 1e-3
    assert torch.allclose(guess.targets[rows], targets[order], atol=1e-2)
    found = recover_features(reveal(one))
    located = locate(reveal(one), one.task, 3)
    again = implied_targets(located, found.values, found.residuals)
    assert torch.allclose(again, found.targets, atol=1e-9)


def test_principal_components_recover_one_example():
    batch = faces(5, labels=(2,))
    net = exhume.model("two-layer", width=2000, activation="tanh").build(
        batch.spec, 10, 0
    )
    guess = exhume.attack("pca")(reveal(world(batch, net)), key=0)
    assert float((guess.inputs - batch.inputs).square().mean()) < 1e-4


def test_dropped_neurons_and_removed_entries_are_known():
    batch = faces(3, 40, labels=(1, 7))
    net = exhume.model("two-layer", width=4000, activation="tanh").build(
        batch.spec, 10, 0
    )
    for defense in (
        exhume.defense("dropout", ratio=0.5),
        exhume.defense("pruning", ratio=0.3, kind="random"),
        exhume.defense("clipping", max_norm=0.01),
    ):
        one = world(batch, net, defenses=(defense,))
        guess = exhume.attack("tensor")(reveal(one), key=0)
        gap = torch.cdist(guess.inputs.flatten(1), batch.inputs.flatten(1)).square()
        assert float(gap.amin(dim=0).max()) / 625 < 1e-3, defense


def test_features_of_a_deep_network_are_what_enters_its_last_layers():
    def layers():
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(625, 40),
            nn.Tanh(),
            nn.Linear(40, 3000),
            nn.Tanh(),
            nn.Linear(3000, 10),
        )

    net = fresh(layers, generator(0, "deep"))
    batch = faces(3, 40, labels=(1, 7))
    one = world(batch, net)
    found = recover_features(reveal(one))
    truth = net[:3](batch.inputs).detach().double()
    gap = torch.cdist(found.values, truth)
    assert float(gap.amin(dim=0).max() / truth.norm(dim=1).min()) < 1e-3
    assert not found.reads_input
    assert found.confidence.shape == (2,)
    assert "not Gaussian" in " ".join(found.notes)
    guess = exhume.attack("tensor")(reveal(one), key=0)
    assert guess.outcome is exhume.Outcome.NOT_APPLICABLE
    assert "features only" in guess.notes[0]


def test_networks_without_two_linear_layers_are_out_of_reach():
    batch = faces(3, labels=(1,))
    net = nn.Sequential(nn.Flatten(), nn.Linear(625, 10))
    assert "two fully connected" in recover_features(reveal(world(batch, net)))


def test_softmax_residuals_tell_their_sign():
    turned = torch.tensor([[0.1, -0.3, 0.2], [-0.2, 0.5, -0.3]], dtype=torch.float64)
    assert softmax_sign(turned).tolist() == [1.0, -1.0]


def test_lengths_make_the_residuals_of_a_homogeneous_network_fit():
    batch = faces(40, labels=(7,))
    net = exhume.model("two-layer", width=4000, activation="relu").build(
        batch.spec, 10, 0
    )
    one = world(batch, net)
    seen = reveal(one)
    located = locate(seen, one.task, 1)
    found = recover_inputs(located.view, 1)
    lengths = consistent_norms(seen, one.task, located, found)
    truth = batch.inputs.flatten(1).norm(dim=1).double()
    assert torch.allclose(lengths.sort().values, truth.sort().values, rtol=0.02)


def sphere(count, d=12, seed=0):
    inputs = torch.randn(count, d, generator=torch.Generator().manual_seed(seed))
    return inputs / inputs.norm(dim=1, keepdim=True), exhume.EventSpec.vector(d)


@pytest.mark.parametrize("constant", [3.0, -3.0])
def test_the_bias_trick_tells_signs_and_labels(constant):
    inputs, spec = sphere(3)
    targets = torch.tensor([[1.0], [-1.0], [1.0]])
    net = exhume.model(
        "two-layer", width=3000, activation="tanh", output_constant=constant
    ).build(spec, 1, 0)
    one = world(exhume.Batch(inputs, targets, spec), net, loss="mse")
    found = recover_features(reveal(one))
    assert bool(found.sign_known.all())
    gap = torch.cdist(found.values, inputs.double())
    assert float(gap.amin(dim=0).max()) < 1e-3
    assert torch.allclose(found.targets[gap.argmin(dim=0)], targets.double(), atol=1e-2)
    plain = exhume.model("two-layer", width=3000, activation="tanh").build(spec, 1, 0)
    other = world(exhume.Batch(inputs, targets, spec), plain, loss="mse")
    assert not bool(recover_features(reveal(other)).sign_known.any())


def two_classes(activation_name, *, bias):
    """Return a network of two classes, and a problem with odd activation on it."""
    inputs, spec = sphere(3)
    net = fresh(
        lambda: nn.Sequential(
            nn.Linear(12, 3000, bias=False),
            nn.Tanh() if activation_name == "tanh" else nn.Sigmoid(),
            nn.Linear(3000, 2, bias=bias),
        ),
        generator(0, "two-classes"),
    )
    for layer, size in ((net[0], 1.0), (net[2], 0.05)):
        torch.nn.init.normal_(layer.weight, std=size, generator=generator(0, "normal"))
    labels = torch.tensor([0, 1, 1])
    return world(exhume.Batch(inputs, labels, spec), net), inputs, labels


@pytest.mark.parametrize(
    ("activation_name", "bias"), [("tanh", True), ("sigmoid", True), ("sigmoid", False)]
)
def test_the_sum_of_residuals_tells_signs_of_two_classes(activation_name, bias):
    one, inputs, labels = two_classes(activation_name, bias=bias)
    found = recover_features(reveal(one))
    assert bool(found.sign_known.all())
    gap = torch.cdist(found.values, inputs.double())
    assert float(gap.amin(dim=0).max()) < 1e-2
    assert torch.equal(found.targets[gap.argmin(dim=0)], labels)
    located = locate(reveal(one), one.task, 3)
    total = residual_total(located, recover_inputs(located.view, 3, polish=50))
    logits = one.task.model(inputs.to(one.task.dtype)).detach()
    exact = (logits.softmax(dim=1) - torch.eye(2)[labels]).mean(dim=0)
    torch.testing.assert_close(total, exact.double(), atol=1e-3, rtol=1e-3)


def test_what_nothing_determines_stays_open():
    one, _, _ = two_classes("tanh", bias=False)
    found = recover_features(reveal(one))
    assert not bool(found.sign_known.any())
    assert "nothing determines" in found.notes[-1]


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_signs_of_a_known_sum_are_found_or_left_open(size, classes, seed):
    source = torch.Generator().manual_seed(seed)
    exact = torch.randn(size, classes, generator=source, dtype=torch.float64)
    turned = torch.where(torch.rand(size, generator=source) < 0.5, -1.0, 1.0).double()
    signs, told = signs_of_total(exact * turned[:, None], exact.sum(dim=0))
    assert torch.equal(signs[told], turned[told])
    # Independent of order: every pattern at the same distance is as good.
    assert (
        float(((exact * (turned * signs)[:, None]).sum(0) - exact.sum(0)).norm()) < 1e-9
    )


def test_equal_residuals_and_large_batches_leave_signs_open():
    equal = torch.tensor([[0.5, -0.5], [0.5, -0.5]], dtype=torch.float64)
    _, told = signs_of_total(equal, torch.zeros(2))
    assert not bool(told.any())
    signs, told = signs_of_total(equal, torch.tensor([-1.0, 1.0]))
    assert (signs.tolist(), told.tolist()) == ([-1, -1], [True, True])
    # Two labels of class 0 say the same, without any sum.
    signs, told = signs_of_total(equal, None, negative=2)
    assert (signs.tolist(), told.tolist()) == ([-1, -1], [True, True])
    _, told = signs_of_total(equal, None, negative=1)
    assert not bool(told.any())
    assert not bool(signs_of_total(torch.rand(13, 2), torch.zeros(2))[1].any())


def zero_biases(net):
    with torch.no_grad():
        net.get_submodule("hidden").bias.zero_()
    return net


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_a_hidden_bias_of_zero_tells_signs_and_lengths(name):
    inputs, spec = sphere(2)
    inputs = 3 * inputs
    net = exhume.model("two-layer", width=3000, activation=name, bias=True).build(
        spec, 1, 0
    )
    targets = torch.tensor([[5.0], [-5.0]])
    one = world(exhume.Batch(inputs, targets, spec), zero_biases(net), loss="mse")
    found = recover_features(reveal(one))
    assert bool(found.sign_known.all())
    assert found.norm_known
    gap = torch.cdist(found.values, inputs.double())
    assert float(gap.amin(dim=0).max()) < 0.05
    located = locate(reveal(one), one.task, 2)
    again = recover_inputs(located.view, 2, polish=30)
    factors = bias_factors(located, again)
    lengths = 1 / factors.abs() if name == "relu" else torch.ones(2).double()
    wanted = torch.full((2,), 3.0 if name == "relu" else 1.0).double()
    assert torch.allclose(lengths, wanted, rtol=0.02)


@pytest.mark.parametrize("name", ["tanh", "gelu"])
@pytest.mark.parametrize("kind", ["frozen", "constant"])
def test_hidden_biases_that_are_no_feature_are_offsets(name, kind):
    inputs, spec = sphere(2)
    inputs = 2 * inputs
    net = exhume.model("two-layer", width=3000, activation=name, bias=True).build(
        spec, 1, 0
    )
    bias = net.get_submodule("hidden").bias
    if kind == "frozen":
        bias.requires_grad_(False)
    else:
        torch.nn.init.constant_(bias, 0.7)
    targets = torch.tensor([[5.0], [-5.0]])
    one = world(exhume.Batch(inputs, targets, spec), net, loss="mse")
    found = recover_features(reveal(one))
    assert not isinstance(found, str), found
    # An odd activation is not odd beside an offset, so that signs show.
    assert bool(found.sign_known.all())
    assert found.norm_known
    gap = torch.cdist(found.values, inputs.double())
    assert float(gap.amin(dim=0).max()) < 1e-3
    assert torch.allclose(found.targets[gap.argmin(dim=0)], targets.double(), atol=1e-2)


@pytest.mark.parametrize("frozen", ["hidden", "output"])
def test_one_layer_may_be_frozen(frozen):
    inputs, spec = sphere(1, d=6)
    net = exhume.model(
        "two-layer", width=60_000, activation="quadratic-cubic", hidden_std=1.0
    ).build(spec, 3, 0)
    net.get_submodule(frozen).weight.requires_grad_(False)
    one = world(exhume.Batch(inputs, torch.tensor([1]), spec), net)
    found = recover_features(reveal(one), norm=1.0)
    assert not isinstance(found, str), found
    likeness = torch.nn.functional.cosine_similarity(found.values, inputs.double())
    assert float(likeness.abs()) > 0.99


def test_a_clipped_release_gives_no_lengths():
    batch = faces(40, labels=(7,))
    net = exhume.model("two-layer", width=2000, activation="relu").build(
        batch.spec, 10, 0
    )
    clip = exhume.defense("clipping", max_norm=1e-3)
    one = world(batch, net, defenses=(clip,))
    assert not recover_features(reveal(one)).norm_known


def small_world(targets, loss, outputs=1, defenses=(), activation_name="gelu"):
    """Return a network of 2000 neurons, a batch on the sphere, and what is observed."""
    inputs, spec = sphere(len(targets))
    net = exhume.model("two-layer", width=2000, activation=activation_name).build(
        spec, outputs, 0
    )
    batch = exhume.Batch(inputs, targets, spec)
    return world(batch, net, loss=loss, defenses=defenses), inputs


@pytest.mark.parametrize(
    ("targets", "loss", "outputs"),
    [
        (torch.tensor([1, 0]), "logistic", 1),
        (torch.tensor([1.0, -1.0]), "logistic", 1),
        (torch.tensor([[0.0, 1.0, 0.0], [0.9, 0.1, 0.0]]), "cross-entropy", 3),
    ],
)
def test_known_labels_of_every_kind_are_put_in_order(targets, loss, outputs):
    one, inputs = small_world(targets, loss, outputs)
    guess = exhume.attack("tensor")(reveal(one, "labels-known"), key=0)
    gap = torch.cdist(guess.inputs, inputs)
    assert float(gap.amin(dim=0).max()) < 1e-3
    found = guess.targets[gap.argmin(dim=0)]
    expected = targets if loss == "logistic" else targets.argmax(dim=1)
    assert found.tolist() == pytest.approx(expected.tolist())


def test_a_clipped_release_gives_no_real_targets():
    targets = torch.tensor([[1.0], [-1.0]])
    clip = exhume.defense("clipping", max_norm=1e-3)
    one, inputs = small_world(targets, "mse", defenses=(clip,), activation_name="tanh")
    found = recover_features(reveal(one, "labels-known"))
    assert "real targets cannot be told" in " ".join(found.notes)
    assert not bool(found.sign_known.any())
    gap = torch.cdist(found.values, inputs.double())
    turned = torch.cdist(-found.values, inputs.double())
    assert float(torch.minimum(gap, turned).amin(dim=0).max()) < 1e-3


@pytest.mark.parametrize("scale", [0.0, 1 / 40_000])
def test_labels_need_no_independent_output_units(scale):
    labels = torch.tensor([1, 2, 0])
    inputs, spec = sphere(3)
    net = exhume.model(
        "two-layer", width=40_000, activation="quadratic-cubic", hidden_std=1.0
    ).build(spec, 4, 0)
    with torch.no_grad():
        heads = net.get_submodule("output").weight.zero_()
        heads[0] = scale
    one = world(exhume.Batch(inputs, labels, spec), net)
    # With all of them zero the output gradient is the only one.
    found = recover_features(reveal(one), norm=1.0)
    assert not isinstance(found, str), found
    gap = torch.cdist(found.values, inputs.double())
    assert float(gap.amin(dim=0).max()) < (0.5 if scale == 0 else 1e-3)
    assert torch.equal(found.targets[gap.argmin(dim=0)], labels)


def test_what_is_no_finite_gradient_is_said():
    one, _ = small_world(torch.tensor([[1.0], [-1.0]]), "mse")
    seen = reveal(one)
    spoilt = {name: t.clone() for name, t in seen.observed.items()}
    spoilt["hidden.weight"][3, 4] = math.nan
    with pytest.raises(Inconsistent, match="not finite"):
        recover_features(replace(seen, observed=spoilt))
    moved = replace(one, mechanism=exhume.Mechanism(Update(epochs=3)))
    assert "not the gradient of one step" in recover_features(reveal(moved))


def test_noise_lowers_the_confidence():
    assert span_confidence(math.inf) == 1
    assert span_confidence(1.0) == 0
    view, _, _ = problem("tanh", m=3000, d=30, batch=1)
    noise = torch.randn(3000, 30, generator=torch.Generator().manual_seed(0)).double()
    found = recover_inputs(replace(view, hidden_gradient=noise), 1, norm=1.0)
    assert float(found.confidence) < 0.5
    assert "does not stand out" in " ".join(found.notes)
