"""PRECODE: the layers that it adds, the noise that stays private, and its break."""

import pytest
import torch
from torch import nn

import exhume
from exhume import Mechanism, Task, World
from exhume.attacks.gauss_newton import GaussNewton
from exhume.defenses.local_aggregation import LocalAggregation
from exhume.defenses.precode import (
    LatentSample,
    Precode,
    WithLatentNoise,
    reparametrise,
)
from exhume.defenses.secure_aggregation import SecureAggregation
from exhume.errors import InvalidInput
from exhume.keys import fold
from exhume.observations.gradient import Gradient
from exhume.problem.observation import Candidate
from exhume.problem.tree import flatten
from toys import GRAY, convolutional, make_world, reveal

NEW = [f"3.{part}.{kind}" for part in ("encoder", "decoder", "head") for kind in
       ("weight", "bias")]  # fmt: skip


def world(*defenses, labels=(2,), **options):
    stack = defenses or (Precode(latent=4),)
    return make_world(
        GRAY,
        labels=labels,
        model=convolutional(GRAY),
        defenses=stack,
        dtype=torch.float64,
        **options,
    )


def secret(w, key: int):
    """Return the plan as the first client completes it in ``w.observe(key)``."""
    defense, plan = w.mechanism.defenses[0], w.observe(key).plans[0]
    whole = Candidate(w.batch.inputs, w.batch.targets)
    own = fold(key, "personalise", 0)
    return defense.personalise(w.task, Gradient(), whole, plan, own)


def test_a_sample_of_known_noise():
    mean, log_variance = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 2.0]]).log()
    z = reparametrise(mean, log_variance, torch.tensor([[3.0, -1.0]]))
    torch.testing.assert_close(z, torch.tensor([[1.0, 2.0 - 2**0.5]]))
    layer = LatentSample(torch.zeros(1, 2))
    assert torch.equal(layer(torch.cat([mean, mean], dim=1)), mean)
    with pytest.raises(InvalidInput, match="drawn for 3 examples"):
        LatentSample(torch.zeros(3, 2))(torch.zeros(2, 4))


def test_the_update_names_the_layers_of_the_bottleneck():
    w = world()
    observation = w.observe()
    assert list(observation.values) == ["0.weight", "0.bias", *NEW]
    assert list(observation.plans[0].covers) == NEW
    shapes = {n: tuple(observation.values[n].shape) for n in NEW}
    assert shapes["3.encoder.weight"] == (8, 96)
    assert shapes["3.decoder.weight"] == (96, 4)
    assert torch.equal(
        w.mechanism.induced(w.task, observation.plans).task.parameters()[
            "3.head.weight"
        ],
        w.task.parameters()["3.weight"],
    )


def test_release_is_the_gradient_at_the_private_noise():
    w = world(labels=(2, 0))
    plan = secret(w, key=5)
    noise = plan.arrays["noise"]
    assert noise.shape == (2, 4)
    assert not torch.equal(noise[0], noise[1])
    own = Precode(latent=4).transform_task(w.task, plan)
    exact = own.gradient(w.batch.inputs, w.batch.targets)
    released = w.observe(5)
    assert all(torch.equal(released.values[n], exact[n]) for n in exact)
    public = released.plans[0]
    assert not bool(public.arrays["noise"].any())
    mean_path = Precode(latent=4).transform_task(w.task, public)
    at_mean = mean_path.gradient(w.batch.inputs, w.batch.targets)
    assert not bool(at_mean["3.encoder.weight"][4:].any())
    assert float((flatten(at_mean) - flatten(exact)).norm()) > 0.1 * float(
        flatten(exact).norm()
    )


@pytest.mark.parametrize("local", [(), (LocalAggregation(steps=3, rate=0.2),)])
def test_the_noise_as_an_unknown_makes_the_forward_model_exact(local):
    w = world(Precode(latent=4), *local, labels=(2, 0))
    observation = w.observe(5)
    induced = w.mechanism.induced(w.task, observation.plans)
    (name,) = induced.model.hidden(2)
    assert induced.model.hidden(2) == {name: (2, 4)}
    noise = {name: secret(w, 5).arrays["noise"]}
    truth = Candidate(w.batch.inputs, w.batch.targets, noise)
    for forward in (induced.model.forward, induced.model.forward_func):
        values = forward(induced.task, truth)
        assert list(values) == list(observation.values)
        for n, t in values.items():
            torch.testing.assert_close(t, observation.values[n], rtol=1e-8, atol=1e-12)
    h, plain = 1e-6, {name: noise[name].clone().requires_grad_()}
    value = flatten(
        induced.model.forward(
            induced.task, Candidate(truth.inputs, truth.targets, plain)
        )
    )
    weights = torch.linspace(-1, 1, len(value)).double()
    (slope,) = torch.autograd.grad(value @ weights, plain[name])
    step = torch.zeros(2, 4).double()
    step[1, 2] = h
    ends = [
        flatten(
            induced.model.forward(
                induced.task,
                Candidate(truth.inputs, truth.targets, {name: noise[name] + s * step}),
            )
        )
        @ weights
        for s in (1, -1)
    ]
    assert float(slope[1, 2]) == pytest.approx(
        float(ends[0] - ends[1]) / (2 * h), rel=1e-5
    )


def test_clients_behind_an_aggregation_draw_their_own_noise():
    w = world(Precode(latent=4), SecureAggregation(clients=2), labels=(2, 0))
    induced = w.mechanism.induced(w.task, w.observe().plans)
    assert list(induced.model.hidden(2).values()) == [(2, 4)]
    single = Precode(latent=4)
    alone = World(w.task, w.batch, Mechanism(Gradient(), [single]))
    assert not torch.allclose(
        w.observe(1).values["0.bias"], alone.observe(1).values["0.bias"]
    )


def test_where_it_cannot_be_put_is_refused():
    w = make_world(GRAY, model=convolutional(GRAY))
    with pytest.raises(InvalidInput, match=r"'0' was asked for.*'3'"):
        Precode(layer="0").calibrate(w.task, None, 0)
    bare = Task(nn.Linear(6, 3))
    task = Precode(latent=2).transform_task(
        bare, Precode(latent=2).calibrate(bare, None, 0)
    )
    assert next(iter(task.parameters())) == "encoder.weight"
    assert task.output_size(torch.zeros(1, 6)) == 3


def test_the_break_solving_for_the_noise_too_recovers_the_image():
    w = world()
    problem = reveal(w)
    assert isinstance(problem.observation_model, WithLatentNoise)
    adaptive = GaussNewton()(problem, key=0)
    blind = GaussNewton(restarts=1)(reveal(w, "defense-unknown"), key=0)
    found, missed = (
        min(exhume.score(g, w.batch).values["psnr"]) for g in (adaptive, blind)
    )
    assert found > 80
    assert missed < 30
