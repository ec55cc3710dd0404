"""Conformance of observation models, and facts about the mean gradient."""

from __future__ import annotations

import dataclasses
import inspect
import pickle

import pytest
import torch
from torch import nn

from exhume import registry
from exhume.config import build
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.observation import Candidate
from exhume.problem.task import Task
from exhume.problem.tree import add, dot, flatten, norm, scale, size, subtract
from toys import COLOUR, GRAY, VECTOR, convolutional, seeded, smooth, smooth_mlp

NAMES = registry.names("observation")
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
every_model = pytest.mark.parametrize("name", NAMES)
#: a training to the end has no derivative; its residual has tests of its own
OPAQUE = {n for n in NAMES if registry.find("observation", n).opaque is not None}
#: models whose residual is not F(S) − O: it vanishes only where training has settled
IMPLICIT = {"weights"}
every_explicit_model = pytest.mark.parametrize("name", sorted(set(NAMES) - IMPLICIT))
every_open_model = pytest.mark.parametrize("name", sorted(set(NAMES) - OPAQUE))
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
def test_both_routes_agree(name, setting):
    task, candidate = case(setting)
    model = build("observation", name)
    plain, functional = (
        model.forward(task, candidate),
        model.forward_func(task, candidate),
    )
    assert plain.keys() == functional.keys()
    for tensor in plain:
        torch.testing.assert_close(plain[tensor].detach(), functional[tensor].detach())


@every_open_model
@every_setting
def test_vjp_is_the_adjoint_of_jvp(name, setting):
    task, candidate = case(setting)
    model = build("observation", name)
    values = model.forward(task, candidate)
    for key in range(3):
        t = noise(candidate.inputs.shape, key)
        u = {n: noise(v.shape, 10 + key) for n, v in values.items()}
        left = float(dot(model.jvp(task, candidate, t), u).detach())
        right = float((t * model.vjp(task, candidate, u)).sum().detach())
        assert left == pytest.approx(right, rel=1e-9, abs=1e-12)


@every_open_model
@every_setting
def test_jvp_equals_central_differences(name, setting):
    task, candidate = case(setting)
    model = build("observation", name)
    t, h = noise(candidate.inputs.shape, 1), 1e-5

    def at(step):
        shifted = dataclasses.replace(candidate, inputs=candidate.inputs + step * t)
        return model.forward(task, shifted)

    expected = scale(1 / (2 * h), subtract(at(h), at(-h)))
    got = model.jvp(task, candidate, t)
    assert float(norm(subtract(got, expected)) / norm(expected)) < 1e-7


@every_explicit_model
@every_setting
def test_the_residual_vanishes_at_the_truth_and_nowhere_near(name, setting):
    """A sign or scale error in F would show here (S3)."""
    task, candidate = case(setting)
    model = build("observation", name)
    observed = {n: v.detach() for n, v in model.forward(task, candidate).items()}
    zero = model.residual(task, candidate, observed)
    assert float(norm(zero)) <= 1e-12 * float(norm(observed))
    other = dataclasses.replace(candidate, inputs=candidate.inputs.flip(-1) * 0.9)
    assert float(norm(model.residual(task, other, observed))) > 1e-3
    negated = scale(-1, observed)
    assert float(norm(model.residual(task, candidate, negated))) > float(norm(observed))


@every_model
@every_setting
def test_the_order_of_the_batch_does_not_matter(name, setting):
    task, candidate = case(setting)
    model = build("observation", name)
    turned = Candidate(candidate.inputs.flip(0), candidate.targets.flip(0))
    gap = subtract(model.forward(task, candidate), model.forward(task, turned))
    # a long training carries rounding on
    assert float(norm(gap)) < (1e-6 if name in OPAQUE else 1e-14)


@every_model
def test_nothing_is_kept_or_changed(name):
    task, candidate = case("batch norm, train")
    model = build("observation", name)
    state = {n: t.clone() for n, t in task.model.state_dict().items()}
    inputs = candidate.inputs.clone()
    values = model.forward(task, candidate)
    if name not in OPAQUE:
        model.vjp(task, candidate, {n: v.detach() for n, v in values.items()})
    assert torch.equal(candidate.inputs, inputs)
    assert not candidate.inputs.requires_grad
    assert all(torch.equal(t, state[n]) for n, t in task.model.state_dict().items())
    assert all(p.grad is None for p in task.model.parameters())


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_precision_follows_the_task(name, dtype):
    task = Task(smooth_mlp(GRAY).to(dtype))
    candidate = Candidate(smooth(GRAY, 3, 4).to(dtype), LABELS)
    values = build("observation", name).forward(task, candidate)
    assert {v.dtype for v in values.values()} == {dtype}
    assert values.keys() == task.parameters().keys()
    assert size(values) == size(task.parameters())
    assert all(v.shape == task.parameters()[n].shape for n, v in values.items())


@every_model
def test_models_are_plain_data_and_every_method_is_called_here(name):
    model = build("observation", name)
    assert pickle.loads(pickle.dumps(model)) == model
    methods = {
        n for n, _ in inspect.getmembers(type(model), callable) if not n.startswith("_")
    }
    assert methods <= {
        "forward",
        "forward_at",
        "forward_func",
        "hidden",
        "informed",
        "jvp",
        "residual",
        "single_step",
        "task_seen",
        "vjp",
    } | {"update": {"batches", "path"}, "weights": {"left", "train"}}.get(name, set())


# --- the gradient --------------------------------------------------------------------


@pytest.mark.parametrize("setting", [s for s in SETTINGS if "train" not in s])
def test_the_gradient_is_linear_in_the_batch_mean(setting):
    task, candidate = case(setting)
    whole = Gradient().forward(task, candidate)
    total = None
    for i in range(3):
        one = Candidate(candidate.inputs[i : i + 1], candidate.targets[i : i + 1])
        part = Gradient().forward(task, one)
        total = part if total is None else add(total, part)
    assert total is not None
    assert float(norm(subtract(whole, scale(1 / 3, total)))) < 1e-14


def test_batch_norm_couples_examples_in_train_mode_only():
    for mode, coupled in (("train", True), ("eval", False)):
        task, candidate = case(f"batch norm, {mode}")
        twice = Candidate(candidate.inputs[[0, 0, 1]], candidate.targets[[0, 0, 1]])
        pair = Candidate(candidate.inputs[[0, 1]], candidate.targets[[0, 1]])
        single = [
            Gradient().forward(task, Candidate(x[None].repeat(2, 1, 1, 1), y.repeat(2)))
            for x, y in zip(pair.inputs, pair.targets, strict=True)
        ]
        mixed = scale(1 / 3, add(scale(2, single[0]), single[1]))
        gap = float(norm(subtract(Gradient().forward(task, twice), mixed)))
        assert (gap > 1e-2) == coupled


def test_the_gradient_of_a_linear_classifier_is_the_textbook_one():
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 0).double()
    task, x = Task(model), smooth(GRAY, 3, 4).double()
    p = (x.flatten(1) @ model[1].weight.T + model[1].bias).softmax(-1).detach()
    delta = (p - torch.eye(5, dtype=torch.float64)[LABELS]) / 3
    got = Gradient().forward(task, Candidate(x, LABELS))
    expected = {"1.weight": delta.T @ x.flatten(1), "1.bias": delta.sum(0)}
    torch.testing.assert_close(flatten(got), flatten(expected))
