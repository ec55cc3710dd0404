"""Local aggregation: the unrolled training against a plain loop, and its inversion."""

import copy

import pytest
import torch
from torch import nn

import exhume
from exhume import Mechanism
from exhume.defenses.example_clipping import ExampleClipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.local_aggregation import LocalAggregation, LocalSteps, sgd_step
from exhume.errors import InvalidInput
from exhume.observations.gradient import Gradient
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.tree import add, flatten, scale
from exhume.problem.tree import norm as norm_of
from toys import GRAY, convolutional, make_world, reveal


def world(*defenses, mode="eval", norm=False, **options):
    return make_world(
        GRAY,
        labels=(2, 0, 4),
        model=convolutional(GRAY, norm=norm),
        mode=mode,
        defenses=defenses,
        dtype=torch.float64,
        **options,
    )


def trained(task, inputs, targets, steps: int, rate: float) -> dict:
    """Train with torch's own optimiser; return (before − after) / (K η)."""
    net = copy.deepcopy(task.model)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimiser = torch.optim.SGD(net.parameters(), lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimiser.step()
    return {
        n: (before[n] - p.detach()) / (steps * rate) for n, p in net.named_parameters()
    }


@pytest.mark.parametrize(("mode", "norm"), [("eval", False), ("train", True)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_release_equals_a_plain_training_loop(steps, mode, norm):
    w = world(LocalAggregation(steps=steps, rate=0.3), mode=mode, norm=norm)
    expected = trained(w.task, w.batch.inputs, w.batch.targets, steps, 0.3)
    for n, t in w.observe().values.items():
        torch.testing.assert_close(t, expected[n], rtol=1e-9, atol=1e-11)


def test_one_step_is_the_gradient_and_more_are_not():
    w = world()
    candidate = Candidate(w.batch.inputs, w.batch.targets)
    plan = LocalAggregation(steps=1).calibrate(w.task, None, 0)
    inner = Gradient()
    assert LocalAggregation(steps=1).transform_model(inner, plan) is inner
    exact = inner.forward(w.task, candidate)
    far = LocalSteps(inner, 3, 0.3).forward(w.task, candidate)
    near = LocalSteps(inner, 3, 1e-9).forward(w.task, candidate)
    for n, t in exact.items():
        torch.testing.assert_close(near[n], t, rtol=1e-6, atol=1e-9)
    assert float((flatten(far) - flatten(exact)).norm()) > 1e-2 * float(
        flatten(exact).norm()
    )
    moved = sgd_step({"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}, 0.25)
    assert moved["w"].item() == 0.0


def test_derivatives_go_through_all_steps():
    w = world()
    model, targets = LocalSteps(Gradient(), 3, 0.5), w.batch.targets
    x = w.batch.inputs
    source = torch.Generator().manual_seed(0)
    t = torch.randn(x.shape, generator=source).double()
    ahead = flatten(model.jvp(w.task, Candidate(x, targets), t))
    h = 1e-5
    plus, minus = (
        flatten(model.forward(w.task, Candidate(x + s * h * t, targets)))
        for s in (1, -1)
    )
    torch.testing.assert_close(ahead, (plus - minus) / (2 * h), rtol=1e-5, atol=1e-8)
    values = model.forward(w.task, Candidate(x, targets))
    cotangent = {
        n: torch.randn(v.shape, generator=source).double() for n, v in values.items()
    }
    back = model.vjp(w.task, Candidate(x, targets), cotangent)
    assert float((back * t).sum()) == pytest.approx(
        float(flatten(cotangent) @ ahead), rel=1e-9
    )
    first = flatten(Gradient().jvp(w.task, Candidate(x, targets), t))
    assert float((ahead - first).norm()) > 1e-2 * float(first.norm())


def test_what_cannot_move_its_weights_is_refused():
    class Fixed(Gradient):
        forward_at = ObservationModel.forward_at

    w = world()
    candidate = Candidate(w.batch.inputs, w.batch.targets)
    with pytest.raises(InvalidInput, match="Fixed cannot be evaluated at weights"):
        LocalSteps(Fixed(), 2, 0.1).forward(w.task, candidate)


def test_clipping_of_examples_happens_in_every_step():
    limit, rate = 0.5, 0.3
    stack = ExampleClipping(max_norm=limit), LocalAggregation(steps=2, rate=rate)
    w = world(*stack)
    theta = {n: p.detach().clone() for n, p in w.task.parameters().items()}
    total = {n: torch.zeros_like(p) for n, p in theta.items()}
    for _ in range(2):
        step = {n: torch.zeros_like(p) for n, p in theta.items()}
        for x, y in zip(w.batch.inputs, w.batch.targets, strict=True):
            own = w.task.gradient_func(x[None], y[None], theta)
            share = min(1.0, limit / float(norm_of(own))) / 3
            step = add(step, scale(share, own))
        total = add(total, scale(0.5, step))
        theta = sgd_step(theta, step, rate)
    for n, t in w.observe().values.items():
        torch.testing.assert_close(t, total[n], rtol=1e-9, atol=1e-11)


def test_noise_on_the_finished_update_stays_in_the_law_and_bounds_apply():
    stack = (LocalAggregation(steps=2, rate=0.1), GaussianNoise(std=0.5))
    w = world(*stack)
    prior = exhume.prior("gaussian").fit(w.public, w.task)
    law = w.mechanism.law(w.observe().plans)
    assert float(law.variance["0.bias"]) == 0.25
    floor = exhume.bound("bayesian-cramer-rao")(w, prior, 0)
    assert isinstance(floor, exhume.BoundValue)
    assert 0 < floor.mse < floor.details["prior_variance"] / (3 * 64)


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_gauss_newton_inverts_the_training_and_not_only_a_step(rate):
    face = exhume.dataset("faces").load().select([0])
    net = exhume.model("lenet-zhu").build(face.spec, 2, key=0)
    mechanism = Mechanism(Gradient(), [LocalAggregation(steps=3, rate=rate)])
    w = exhume.World(exhume.Task(net), face, mechanism)
    guess = exhume.attack("gauss-newton")(reveal(w), key=0)
    assert min(exhume.score(guess, face).values["psnr"]) > 80
