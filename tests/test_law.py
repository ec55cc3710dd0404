"""The law that a stack of defenses declares is the law of what it releases."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from conformance.closeness import assert_close_to_scale
from exhume import Mechanism, Task
from exhume.defenses.clipping import ClipNorm, Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.pruning import KeepLargest, Pruning
from exhume.errors import InvalidInput
from exhume.observations.gradient import Gradient
from exhume.problem.law import KeepWhere, Law
from exhume.problem.tree import flatten, unflatten

CLIP = Clipping(max_norm=0.5)
NOISE = GaussianNoise(std=0.2)
LARGEST = Pruning(ratio=0.5)
RANDOM = Pruning(ratio=0.5, kind="random")
ON_FIRST = GaussianNoise(std=0.1, only=("0.*",))
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


def relu_task() -> Task:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    values = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        parameter.data.normal_(generator=values)
    return Task(net)


TASK = relu_task()
INPUTS = torch.randn(2, 4, generator=torch.Generator().manual_seed(4)).double()
LABELS = torch.tensor([0, 1])
EXACT = TASK.gradient(INPUTS, LABELS)
# Without the zeros that ReLU makes, so that every coordinate can be told from a mask.
TREE = {n: t + 0.01 * (i + 1) for i, (n, t) in enumerate(EXACT.items())}


def run(*stack, tree=TREE, key=0):
    """Release a tree; return what was released and the law that goes with it."""
    mechanism = Mechanism(Gradient(), stack)
    plans = mechanism.calibrate(TASK, None, key)
    released = mechanism.release(tree, plans, key)
    return released, mechanism.law(plans, released), mechanism, plans


def tensors(value, like=TREE):
    return {n: torch.full_like(t, value) for n, t in like.items()}


# --- the mean is what the release does -----------------------------------------------

DETERMINISTIC = [
    [],
    [CLIP],
    [LARGEST],
    [RANDOM],
    [CLIP, LARGEST],
    [LARGEST, CLIP],
    [CLIP, RANDOM],
    [RANDOM, CLIP],
    [LARGEST, CLIP, RANDOM],
    [RANDOM, CLIP, LARGEST],
    [LARGEST, CLIP, Pruning(ratio=0.8)],
    [Pruning(ratio=0.3, only=("0.*",)), Clipping(max_norm=0.1, only=("2.*",))],
    [LARGEST, GaussianNoise(std=0.0)],
]


@pytest.mark.parametrize("tree", [TREE, EXACT], ids=["dense", "with ReLU zeros"])
@pytest.mark.parametrize(
    "stack", DETERMINISTIC, ids=lambda s: "-".join(type(d).__name__ for d in s) or "-"
)
def test_mean_equals_release_of_a_deterministic_stack(stack, tree):
    released, law, mechanism, plans = run(*stack, tree=tree)
    assert not law.noisy
    blind = mechanism.law(plans)
    assert_close_to_scale(law.mean(tree), released, 1e-13)
    assert_close_to_scale(blind.mean(tree), released, 1e-13)


NOISY = [
    [NOISE],
    [CLIP, NOISE],
    [LARGEST, NOISE],
    [RANDOM, NOISE],
    [NOISE, RANDOM],
    [NOISE, RANDOM, GaussianNoise(std=0.1)],
    [CLIP, GaussianNoise(std=0.3, only=("2.*",))],
    [LARGEST, CLIP, NOISE, RANDOM],
]


@pytest.mark.parametrize(
    "stack", NOISY, ids=lambda s: "-".join(type(d).__name__ for d in s)
)
def test_moments_of_releases_equal_the_law(stack):
    mechanism = Mechanism(Gradient(), stack)
    plans = mechanism.calibrate(TASK, None, 0)
    law = mechanism.law(plans)
    assert law.not_gaussian is None
    count = 2000
    samples = torch.stack(
        [flatten(mechanism.release(TREE, plans, key)) for key in range(count)]
    ).numpy()
    kept = flatten(law.keep(tensors(1.0))).numpy() > 0
    zero = torch.zeros((), dtype=torch.float64)
    variance = flatten(
        {n: law.variance.get(n, zero).expand(t.shape) for n, t in TREE.items()}
    ).numpy()[kept]
    mean = flatten(law.mean(TREE)).numpy()[kept]
    found = samples[:, kept]
    limit = 5 * np.sqrt(variance / count) + 1e-12
    assert (np.abs(found.mean(axis=0) - mean) <= limit).all()
    # A sample variance has relative standard error √(2/n).
    spread = np.abs(found.var(axis=0) - variance)
    assert (spread <= 5 * variance * np.sqrt(2 / count) + 1e-24).all()


@pytest.mark.parametrize("stack", [[RANDOM, NOISE], [NOISE, RANDOM], [RANDOM]])
def test_void_coordinates_say_nothing_of_the_input(stack):
    released, law, mechanism, plans = run(*stack)
    (plan,) = (plan for plan in plans if plan.arrays)
    void = {n: ~m for n, m in plan.arrays.items()}
    assert sum(int(v.sum()) for v in void.values()) == int(0.5 * flatten(TREE).numel())
    assert all(not bool(t[void[n]].any()) for n, t in law.mean(TREE).items())
    other = {n: torch.where(void[n], t + 3.0, t) for n, t in TREE.items()}
    again = mechanism.release(other, plans, 0)
    assert all(torch.equal(again[n], released[n]) for n in TREE)


# --- masks ---------------------------------------------------------------------------


def test_visible_zeros_become_the_mask():
    released, law, _, _ = run(LARGEST)
    assert all(torch.equal(law.mask[n], released[n] != 0) for n in TREE)
    assert law.maps == ()
    assert law.irregular is not None
    assert "Fisher information" in law.irregular


def test_zeros_of_relu_are_taken_for_void_and_nothing_else_is():
    light = Pruning(ratio=0.05)
    assert sum(int((t == 0).sum()) for t in EXACT.values()) > 1
    released, law, _, _ = run(light, tree=EXACT)
    for n, t in released.items():
        assert torch.equal(law.mask[n], t != 0)
        assert torch.equal(law.mean(EXACT)[n], t)


@pytest.mark.parametrize("later", [NOISE, RANDOM, Pruning(ratio=0.8)])
def test_hidden_zeros_become_a_map_of_the_candidate(later):
    _, law, _, plans = run(LARGEST, later)
    assert law.maps[0] == KeepLargest(int(plans[0].numbers["removed"]), NAMES)
    assert law.irregular is not None


def test_noise_on_other_tensors_hides_the_zeros_as_well():
    _, law, _, _ = run(LARGEST, GaussianNoise(std=0.1, only=("2.*",)))
    assert isinstance(law.maps[0], KeepLargest)


def test_a_mask_acts_before_the_clipping_that_follows():
    _, law, _, plans = run(RANDOM, CLIP)
    mask = plans[0].arrays
    pruned = KeepWhere(mask)(TREE)
    expected = ClipNorm(0.5, NAMES)(pruned)
    mean = law.mean(TREE)
    wrong = KeepWhere(mask)(ClipNorm(0.5, NAMES)(TREE))
    assert all(torch.equal(mean[n], expected[n]) for n in TREE)
    assert float((flatten(mean) - flatten(wrong)).norm()) > 0.01


def test_masks_intersect():
    a = {"w": torch.tensor([True, True, False])}
    b = {"w": torch.tensor([True, False, False]), "v": torch.tensor([False])}
    law = Law().masked(a).masked(b)
    assert law.mask["w"].tolist() == [True, False, False]
    tree = {"w": torch.tensor([1.0, 2.0, float("inf")]), "v": torch.ones(1)}
    kept = law.keep({**tree, "u": torch.ones(2)})
    assert {n: t.tolist() for n, t in kept.items()} == {
        "w": [1.0, 0.0, 0.0],
        "v": [0.0],
        "u": [1.0, 1.0],
    }


# --- what is not Gaussian or not regular ---------------------------------------------


@pytest.mark.parametrize(
    ("stack", "irregular", "not_gaussian"),
    [
        ([NOISE], None, None),
        ([CLIP, NOISE], None, None),
        ([RANDOM, NOISE], None, None),
        ([NOISE, RANDOM], None, None),
        ([LARGEST, NOISE], "jumps", None),
        ([NOISE, CLIP], None, "before clipping"),
        ([NOISE, LARGEST], None, "whose noise is large"),
        ([ON_FIRST, LARGEST], "jumps", "noise is large"),
        ([NOISE, CLIP, NOISE], None, "before clipping"),
        ([ON_FIRST, Clipping(max_norm=1, only=("2.*",))], None, None),
        ([GaussianNoise(std=0.0), CLIP], None, None),
    ],
)
@pytest.mark.parametrize("visible", [True, False])
def test_exceptions_are_declared(stack, irregular, not_gaussian, visible):
    released, _, mechanism, plans = run(*stack)
    law = mechanism.law(plans, released if visible else None)
    for found, expected in (
        (law.irregular, irregular),
        (law.not_gaussian, not_gaussian),
    ):
        assert (found is None) == (expected is None)
        assert expected is None or expected in found
    assert not law.cov_depends_on_data


# --- precision -----------------------------------------------------------------------


def test_precision_is_inverse_variance_and_zero_where_void():
    _, law, _, plans = run(NOISE, RANDOM, GaussianNoise(std=0.1))
    for n, weight in law.precision(TREE).items():
        expected = plans[1].arrays[n].double() / (0.2**2 + 0.1**2)
        # What was removed carries the later noise alone.
        gone = ~plans[1].arrays[n]
        torch.testing.assert_close(
            law.variance[n][gone], torch.full_like(TREE[n], 0.1**2)[gone]
        )
        assert_close_to_scale(weight, expected, 1e-13)


def test_precision_after_noise_then_visible_magnitude_pruning():
    released, law, _, _ = run(NOISE, LARGEST)
    for n, weight in law.precision(TREE).items():
        expected = (released[n] != 0).double() / 0.2**2
        assert_close_to_scale(weight, expected, 1e-13)


def test_precision_is_infinite_where_something_is_exact():
    _, law, _, _ = run(GaussianNoise(std=0.2, only=("2.*",)))
    assert law.exact_names(TREE) == ["0.weight", "0.bias"]
    with pytest.raises(ValueError, match=r"infinite precision: 0\.weight, 0\.bias"):
        law.precision(TREE)


def test_void_coordinates_are_not_exact():
    variance = {"w": torch.tensor([0.0, 1.0])}
    law = Law(variance=variance)
    like = {"w": torch.zeros(2)}
    assert law.exact_names(like) == ["w"]
    masked = law.masked({"w": torch.tensor([False, True])})
    assert masked.exact_names(like) == []
    assert masked.precision(like)["w"].tolist() == [0.0, 1.0]
    assert Law().exact_names(like) == ["w"]
    assert Law(mask={"w": torch.zeros(2, dtype=torch.bool)}).exact_names(like) == []


def test_precision_follows_the_type_and_refuses_noise_below_it():
    single = {n: t.float() for n, t in TREE.items()}
    _, law, _, _ = run(GaussianNoise(std=1e-15))
    for weight in law.precision(single).values():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, torch.full_like(weight, 1e30))
    _, law, _, _ = run(GaussianNoise(std=1e-25))
    assert law.exact_names(single) == []
    with pytest.raises(InvalidInput, match="too small"):
        law.precision(single)
    assert float(law.precision(TREE)["2.bias"][0]) == pytest.approx(1e50)


def test_noisy_on_and_noise_covers():
    law = Law(variance={"a": torch.tensor([0.0, 1.0]), "b": torch.tensor(2.0)})
    assert law.noisy
    assert law.noisy_on(["a"])
    assert not law.noise_covers(["a"])
    assert law.noise_covers(["b"])
    assert not law.noisy_on(["c"])
    assert not law.noise_covers(["b", "c"])
    assert not Law().noisy


# --- derivatives ---------------------------------------------------------------------

MAPS = {
    "clip": ClipNorm(0.5, NAMES),
    "clip below the limit": ClipNorm(100.0, NAMES),
    "largest": KeepLargest(11, NAMES),
    "mask": KeepWhere({n: t > 0 for n, t in TREE.items()}),
}
DIRECTION = {
    n: torch.randn(t.shape, generator=torch.Generator().manual_seed(8)).double()
    for n, t in TREE.items()
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_differentiable_in_both_modes(name):
    transform = MAPS[name]
    step = 1e-6
    ahead, behind = (
        flatten(transform({n: t + s * DIRECTION[n] for n, t in TREE.items()}))
        for s in (step, -step)
    )
    expected = (ahead - behind) / (2 * step)
    forward = flatten(torch.func.jvp(transform, (TREE,), (DIRECTION,))[1])
    torch.testing.assert_close(forward, expected, rtol=1e-7, atol=1e-9)
    point = flatten(TREE).requires_grad_()
    value = flatten(transform(unflatten(point, TREE)))
    weights = torch.linspace(-1, 1, len(point), dtype=torch.float64)
    (back,) = torch.autograd.grad(value, point, weights)
    torch.testing.assert_close(back @ flatten(DIRECTION), weights @ forward)


@pytest.mark.parametrize("name", MAPS)
def test_maps_run_inside_vmap_and_pickle(name):
    transform = pickle.loads(pickle.dumps(MAPS[name]))
    several = {n: torch.stack([t, 2 * t, -t]) for n, t in TREE.items()}
    batched = torch.func.vmap(transform)(several)
    for i, factor in enumerate((1, 2, -1)):
        single = MAPS[name]({n: factor * t for n, t in TREE.items()})
        assert_close_to_scale({n: t[i] for n, t in batched.items()}, single, 1e-13)


def test_clipping_of_a_zero_gradient_has_a_derivative():
    zeros = tensors(0.0)
    value, tangent = torch.func.jvp(MAPS["clip"], (zeros,), (DIRECTION,))
    assert not bool(flatten(value).any())
    assert torch.equal(flatten(tangent), flatten(DIRECTION))
    point = flatten(zeros).requires_grad_()
    (back,) = torch.autograd.grad(
        flatten(MAPS["clip"](unflatten(point, TREE))).sum(), point
    )
    assert torch.equal(back, torch.ones_like(back))


def test_mean_of_a_law_is_differentiable_through_the_model():
    _, law, _, _ = run(CLIP, RANDOM, NOISE)
    inputs = INPUTS.clone().requires_grad_()
    mean = flatten(law.mean(TASK.gradient(inputs, LABELS)))
    weights = torch.linspace(-1, 1, len(mean), dtype=torch.float64)
    (back,) = torch.autograd.grad(mean, inputs, weights)

    def at(x):
        return flatten(law.mean(TASK.gradient_func(x, LABELS)))

    direction = torch.ones_like(INPUTS)
    forward = torch.func.jvp(at, (INPUTS,), (direction,))[1]
    torch.testing.assert_close((back * direction).sum(), weights @ forward)
