"""CENSOR: orthogonal in every layer, the best of several draws, and what is left."""

import pytest
import torch
from torch import nn

import exhume
from exhume import Mechanism, Task, World
from exhume.defenses.censor import Censor, NormAndAngle, matched_norm, orthogonal_part
from exhume.defenses.clipping import Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.keys import fold, generator
from exhume.observations.gradient import Gradient
from exhume.problem.observation import Candidate
from exhume.problem.tree import flatten
from toys import GRAY, convolutional, make_world, mlp, reveal


def cosine(a, b) -> float:
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("scale", [1e-20, 0.1, 1.0, 10.0, 1e12])
@pytest.mark.parametrize("shape", [(2,), (3, 3), (40, 25), (100_000,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_s24_orthogonal_at_every_scale_with_the_norm_of_the_gradient(
    scale, shape, dtype
):
    g = scale * torch.randn(shape, generator=generator(1, "g")).to(dtype)
    released = matched_norm(g, generator(2, "v"))
    assert released.dtype == dtype
    assert abs(cosine(released, g)) < 1e-6
    ratio = float(released.double().norm() / g.double().norm())
    assert ratio == pytest.approx(1, abs=1e-6)


def test_the_projection_of_the_released_code_fails_this_test():
    g = 10 * torch.randn(50, generator=generator(1, "g")).double()
    v = torch.randn(50, generator=generator(2, "v")).double()
    wrong = v - (v @ g) / g.norm() * g
    assert abs(cosine(wrong, g)) > 0.1
    assert abs(cosine(orthogonal_part(v, g), g)) < 1e-13


def test_directions_are_uniform_in_the_complement():
    g = torch.tensor([3.0, 0.0, 0.0, 0.0]).double()
    draws = torch.stack([matched_norm(g, generator(k, "d")) for k in range(4000)])
    assert float(draws[:, 0].abs().max()) < 1e-12
    second = draws[:, 1:].T @ draws[:, 1:] / len(draws)
    error = (second - 3 * torch.eye(3).double()).abs().max()
    assert float(error) < 5 * 9 / len(draws) ** 0.5
    assert float(draws.mean(0).norm()) < 5 * 3 / len(draws) ** 0.5


def test_without_a_complement_nothing_is_released():
    for g in (torch.tensor(4.0), torch.tensor([4.0]), torch.zeros(5), torch.zeros(0)):
        assert torch.equal(matched_norm(g, generator(0, "x")), torch.zeros_like(g))
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    w = make_world(GRAY)
    task = Task(net.double(), loss="mse")
    batch = exhume.Batch(
        torch.ones(2, 4).double(), torch.ones(2, 1).double(), exhume.EventSpec.vector(4)
    )
    world = World(task, batch, Mechanism(Gradient(), [Censor()]))
    observation = world.observe()
    assert observation.values["2.bias"].item() == 0
    law = world.mechanism.law(observation.plans, observation.values)
    assert not bool(law.mask["2.bias"].any())
    assert len(w.batch) == 1


def test_the_best_of_the_trials_by_the_loss_after_the_step():
    w = make_world(GRAY, labels=(1, 2), model=convolutional(GRAY), dtype=torch.float64)
    g = w.task.gradient(w.batch.inputs, w.batch.targets)
    whole = Candidate(w.batch.inputs, w.batch.targets)
    defense = Censor(trials=8, rate=0.5)
    plan = defense.calibrate(w.task, None, 0)
    own = defense.personalise(w.task, Gradient(), whole, plan, key=9)
    losses = []
    for trial in range(8):
        seed = fold(9, "trial", trial)
        moved = {
            n: p.detach() - 0.5 * matched_norm(g[n], generator(seed, n))
            for n, p in w.task.parameters().items()
        }
        value = w.task.loss_value(w.batch.inputs, w.batch.targets, moved)
        losses.append((float(value), seed))
    assert int(own.arrays["seed"]) == min(losses)[1]
    assert min(losses)[0] < losses[0][0]
    released = defense.apply(g, own, key=0)
    assert all(abs(cosine(released[n], g[n])) < 1e-12 for n in g)
    alone = defense.apply(g, plan, key=0)
    assert not torch.equal(alone["0.weight"], released["0.weight"])
    part = Censor(only=("0.*",))
    some = part.apply(g, part.calibrate(w.task, None, 0), 0)
    assert torch.equal(some["3.weight"], g["3.weight"])


def test_norms_and_angles_are_left_and_the_law_hands_them_over():
    w = make_world(
        GRAY, labels=(1, 2), model=mlp(GRAY), defenses=(Censor(),), dtype=torch.float64
    )
    observation, problem = w.observe(), reveal(w)
    g = w.task.gradient(w.batch.inputs, w.batch.targets)
    for n, t in observation.values.items():
        assert float(t.norm()) == pytest.approx(float(g[n].norm()), rel=1e-12)
    law = problem.law
    assert law.irregular
    assert law.not_gaussian
    seen = law.mean(g)
    for n, t in observation.values.items():
        torch.testing.assert_close(seen[n], t, rtol=1e-9, atol=1e-12)
    # Two coordinates per layer: longer by a tenth, and turned towards the release.
    for n, t in observation.values.items():
        longer = law.mean({**g, n: 1.1 * g[n]})[n] - t
        assert float(longer.norm()) == pytest.approx(0.1 * float(t.norm()), rel=1e-6)
        turned = law.mean({**g, n: (g[n] + t) / 2**0.5})[n] - t
        assert float(turned.norm()) == pytest.approx(float(t.norm()) / 2**0.5, rel=1e-6)


def test_two_numbers_are_released_up_to_their_sign():
    g = torch.tensor([0.6, -0.8]).double()
    released = matched_norm(g, generator(3, "x"))
    assert torch.allclose(released.abs(), torch.tensor([0.8, 0.6]).double())


def test_clipping_and_noise_after_it():
    w = make_world(GRAY, model=mlp(GRAY), dtype=torch.float64)
    for later in (Clipping(max_norm=1e-3), GaussianNoise(std=0.1)):
        mechanism = Mechanism(Gradient(), [Censor(), later])
        observation = mechanism.sample(w.task, w.batch, key=1)
        law = mechanism.law(observation.plans, observation.values)
        g = w.task.gradient(w.batch.inputs, w.batch.targets)
        if later.adds_noise:
            assert not any(bool(m.any()) for m in law.mask.values())
            continue
        seen, values = law.mean(g), observation.values
        torch.testing.assert_close(
            flatten(seen), flatten(values), rtol=1e-8, atol=1e-12
        )


def test_the_view_ignores_what_was_released_as_zero():
    view = NormAndAngle.of({"a": torch.zeros(3), "b": torch.tensor([3.0, 4.0])})
    assert set(view.along) == {"b"}
    tree = {"a": torch.ones(3), "b": torch.zeros(2).requires_grad_()}
    value = view(tree)["b"].sum()
    (slope,) = torch.autograd.grad(value, tree["b"])
    assert bool(slope.isfinite().all())
    assert float(value.detach().abs()) < 1e-12


def test_an_adaptive_attack_recovers_few_unknowns():
    spec = exhume.EventSpec.vector(3)
    net = nn.Sequential(
        nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)
    )
    values = torch.Generator().manual_seed(4)
    for p in net.parameters():
        p.data.normal_(generator=values)
    x = torch.tensor([[0.4, -0.7, 0.2]]).double()
    batch = exhume.Batch(x, torch.tensor([1]), spec)
    w = World(Task(net.double()), batch, Mechanism(Gradient(), [Censor()]))
    guess = exhume.attack("gauss-newton", restarts=20)(reveal(w), key=0)
    assert float((guess.inputs - x).abs().max()) < 1e-5
