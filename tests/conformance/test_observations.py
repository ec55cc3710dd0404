"""Conformance of observation models: two routes, adjoints, derivatives, residuals."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from torch import nn

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.task import Task
from exhume.problem.tree import dot, norm, scale, size, subtract

from .rows import every
from .toys import COLOUR, GRAY, VECTOR, convolutional, seeded, smooth, smooth_mlp

LABELS = torch.tensor([3, 0, 3])


def batch_norm_net(spec):
    layers = [nn.Linear(spec.dimension, 8), nn.BatchNorm1d(8), nn.Tanh()]
    return seeded(nn.Sequential(nn.Flatten(), *layers, nn.Linear(8, 5)), 0)


#: setting → (event, network, mode)
SETTINGS = {
    "gray": (GRAY, smooth_mlp, "eval"),
    "vector": (VECTOR, smooth_mlp, "eval"),
    "convolution": (COLOUR, convolutional, "eval"),
    "batch norm, eval": (GRAY, batch_norm_net, "eval"),
    "batch norm, train": (GRAY, batch_norm_net, "train"),
}
every_model = every("observation")
#: a residual of its own vanishes only where training has settled
every_explicit_model = every(
    "observation", lambda m: type(m).residual is ObservationModel.residual
)
#: a training to the end has no derivative
every_open_model = every("observation", lambda m: m.opaque is None)
every_setting = pytest.mark.parametrize("setting", SETTINGS)


def case(setting: str, labels: torch.Tensor = LABELS):
    spec, network, mode = SETTINGS[setting]
    task = Task(network(spec).double(), mode=mode)
    return task, Candidate(smooth(spec, len(labels), 4).double(), labels)


def noise(shape, key: int) -> torch.Tensor:
    local = generator(key, "observation", "noise")
    return torch.randn(shape, generator=local, dtype=torch.float64)


@every_model
@every_setting
def test_both_routes_agree(observation, setting):
    task, candidate = case(setting)
    plain, functional = (
        observation.forward(task, candidate),
        observation.forward_func(task, candidate),
    )
    assert plain.keys() == functional.keys()
    for tensor in plain:
        torch.testing.assert_close(plain[tensor].detach(), functional[tensor].detach())


@every_open_model
@every_setting
def test_vjp_is_the_adjoint_of_jvp(observation, setting):
    task, candidate = case(setting)
    values = observation.forward(task, candidate)
    for key in range(3):
        t = noise(candidate.inputs.shape, key)
        u = {n: noise(v.shape, 10 + key) for n, v in values.items()}
        forward = observation.jvp(task, candidate, t)
        left = float(dot(forward, u).detach())
        right = float((t * observation.vjp(task, candidate, u)).sum().detach())
        # The products may cancel: errors are those of their terms.
        size = float(norm(forward).detach() * norm(u))
        assert left == pytest.approx(right, rel=0, abs=1e-11 * size)


@every_open_model
@every_setting
def test_jvp_equals_central_differences(observation, setting):
    task, candidate = case(setting)
    t, h = noise(candidate.inputs.shape, 1), 1e-5

    def at(step):
        shifted = dataclasses.replace(candidate, inputs=candidate.inputs + step * t)
        return observation.forward(task, shifted)

    expected = scale(1 / (2 * h), subtract(at(h), at(-h)))
    got = observation.jvp(task, candidate, t)
    assert float(norm(subtract(got, expected)) / norm(expected)) < 1e-7


@every_explicit_model
@every_setting
def test_the_residual_vanishes_at_the_truth_and_nowhere_near(observation, setting):
    """A sign or scale error in F would show here (S3)."""
    task, candidate = case(setting)
    observed = {n: v.detach() for n, v in observation.forward(task, candidate).items()}
    zero = observation.residual(task, candidate, observed)
    assert float(norm(zero)) <= 1e-12 * float(norm(observed))
    other = dataclasses.replace(candidate, inputs=candidate.inputs.flip(-1) * 0.9)
    assert float(norm(observation.residual(task, other, observed))) > 1e-3
    negated = scale(-1, observed)
    assert float(norm(observation.residual(task, candidate, negated))) > float(
        norm(observed)
    )


@every_model
@every_setting
def test_the_order_of_the_batch_does_not_matter(observation, setting):
    task, candidate = case(setting)
    turned = Candidate(candidate.inputs.flip(0), candidate.targets.flip(0))
    values = observation.forward(task, candidate)
    gap = subtract(values, observation.forward(task, turned))
    # a long training carries rounding on
    share = 1e-6 if observation.opaque is not None else 1e-12
    assert float(norm(gap)) < share * float(norm(values))


@every_model
def test_nothing_is_kept_or_changed(observation):
    task, candidate = case("batch norm, train")
    state = {n: t.clone() for n, t in task.model.state_dict().items()}
    inputs = candidate.inputs.clone()
    values = observation.forward(task, candidate)
    if observation.opaque is None:
        observation.vjp(task, candidate, {n: v.detach() for n, v in values.items()})
    assert torch.equal(candidate.inputs, inputs)
    assert not candidate.inputs.requires_grad
    assert all(torch.equal(t, state[n]) for n, t in task.model.state_dict().items())
    assert all(p.grad is None for p in task.model.parameters())


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_precision_follows_the_task(observation, dtype):
    task = Task(smooth_mlp(GRAY).to(dtype))
    candidate = Candidate(smooth(GRAY, 3, 4).to(dtype), LABELS)
    values = observation.forward(task, candidate)
    assert {v.dtype for v in values.values()} == {dtype}
    assert values.keys() == task.parameters().keys()
    assert size(values) == size(task.parameters())
    assert all(v.shape == task.parameters()[n].shape for n, v in values.items())


@every_model
def test_models_are_plain_data(observation):
    assert pickle.loads(pickle.dumps(observation)) == observation
    shapes = observation.hidden(3)
    assert all(shape[0] == 3 for shape in shapes.values())
    assert isinstance(observation.informed(0.1, 3), ObservationModel)
    assert isinstance(observation.informed(None, None), ObservationModel)


@every_model
@every_setting
def test_at_the_task_s_own_weights_it_is_the_same(observation, setting):
    task, candidate = case(setting)
    try:
        moved = observation.forward_at(task, candidate, task.parameters())
    except InvalidInput as error:
        assert "weights that move" in str(error)  # noqa: PT017
        return
    expected = observation.forward(task, candidate)
    for tensor in expected:
        torch.testing.assert_close(moved[tensor].detach(), expected[tensor].detach())


@every_model
@every_setting
def test_a_single_step_is_a_multiple_of_the_gradient(observation, setting):
    task, candidate = case(setting)
    single = observation.single_step(len(LABELS))
    if single is None:
        return
    factor, gradient = single
    expected = scale(factor, gradient.forward(task, candidate))
    gap = subtract(observation.forward(task, candidate), expected)
    assert float(norm(gap)) <= 1e-12 * float(norm(expected))


@every_model
def test_the_weights_that_are_seen_have_the_layout_of_the_model(observation):
    task, candidate = case("gray")
    observed = {n: v.detach() for n, v in observation.forward(task, candidate).items()}
    seen = observation.task_seen(task, observed)
    assert {n: p.shape for n, p in seen.parameters().items()} == {
        n: p.shape for n, p in task.parameters().items()
    }
