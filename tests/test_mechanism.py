"""D∘F: stages in order, reproducible samples, the law before and after a release."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import exhume
from conformance.closeness import assert_close_to_scale
from exhume import Batch, EventSpec, Mechanism, Task, ThreatModel, World
from exhume.defenses.clipping import Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.pruning import KeepLargest, Pruning
from exhume.errors import InvalidInput
from exhume.observations.gradient import Gradient
from exhume.problem.defense import Defense, Stage


def tiny_task() -> Task:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    values = torch.Generator().manual_seed(2)
    for parameter in net.parameters():
        parameter.data.normal_(generator=values)
    return Task(net.double(), mode="train")


TASK = tiny_task()
BATCH = Batch(
    torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double(),
    torch.tensor([2, 0, 1]),
    EventSpec.vector(5),
)
STACK = (Clipping(max_norm=0.5), Pruning(ratio=0.3), GaussianNoise(std=0.1))


def same(a, b) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


@dataclass(frozen=True)
class AtModel(Defense):
    """Does nothing, early."""

    stage: ClassVar[Stage] = Stage.MODEL

    def calibrate(self, task, public, key):
        return self._plan(task)

    def _release(self, covered, plan, key):
        return covered

    def push(self, law, plan, observed):
        return law


@dataclass(frozen=True)
class AtAggregate(AtModel):
    """Does nothing, late."""

    stage: ClassVar[Stage] = Stage.AGGREGATE


def test_a_mechanism_names_what_is_not_of_its_kind():
    with pytest.raises(InvalidInput, match=r"got 'gradient'.*for example Mechanism"):
        Mechanism("gradient")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"'gaussian-noise'"):
        Mechanism(Gradient(), ["gaussian-noise"])  # type: ignore[arg-type]
    noise = GaussianNoise(std=0.1)
    assert Mechanism(Gradient(), noise).defenses == (noise,)  # type: ignore[arg-type]
    assert Mechanism(Gradient(), [noise]).defenses == (noise,)  # type: ignore[arg-type]


def test_a_task_takes_networks_only():
    with pytest.raises(InvalidInput, match=r"the model is a Mlp.*\.build\("):
        Task(exhume.model("mlp"))


def test_defenses_act_in_the_order_of_their_stages():
    update = GaussianNoise(std=0.1)
    ordered = Mechanism(Gradient(), [AtModel(), update, update, AtAggregate()])
    assert isinstance(ordered.defenses, tuple)
    for wrong in ([update, AtModel()], [AtAggregate(), update]):
        with pytest.raises(InvalidInput, match="not in the order of their stages"):
            Mechanism(Gradient(), wrong)


def test_without_defenses_the_release_is_the_gradient():
    observation = Mechanism(Gradient()).sample(TASK, BATCH, key=0)
    assert same(observation.values, TASK.gradient(BATCH.inputs, BATCH.targets))
    assert observation.plans == ()
    assert Mechanism(Gradient()).law(()).mean(observation.values).keys()


def test_sample_is_reproducible_from_its_key():
    mechanism = Mechanism(Gradient(), STACK)
    first, again = (mechanism.sample(TASK, BATCH, key=5) for _ in range(2))
    other = mechanism.sample(TASK, BATCH, key=6)
    assert same(first.values, again.values)
    assert first.key == 5
    assert not any(torch.equal(first.values[n], other.values[n]) for n in other.values)


def test_equal_defenses_in_one_stack_draw_different_noise():
    noise = GaussianNoise(std=1.0)
    once = Mechanism(Gradient(), [noise])
    twice = Mechanism(Gradient(), [noise, noise])
    plans = twice.calibrate(TASK, None, 0)
    zeros = {n: torch.zeros_like(p) for n, p in TASK.parameters().items()}
    single = once.release(zeros, plans[:1], 0)
    double = twice.release(zeros, plans, 0)
    for n in zeros:
        assert not torch.allclose(double[n], 2 * single[n])


def test_sample_is_calibration_then_release_of_the_exact_update():
    mechanism = Mechanism(Gradient(), STACK)
    observation = mechanism.sample(TASK, BATCH, key=5)
    exact = TASK.gradient(BATCH.inputs, BATCH.targets)
    released = mechanism.release(exact, observation.plans, 5)
    assert same(released, observation.values)
    assert not any(t.requires_grad for t in observation.values.values())


def test_sampling_leaves_batch_and_model_alone():
    inputs = BATCH.inputs.clone()
    state = {n: t.clone() for n, t in TASK.model.state_dict().items()}
    Mechanism(Gradient(), STACK).sample(TASK, BATCH, key=0)
    assert torch.equal(BATCH.inputs, inputs)
    assert same(state, TASK.model.state_dict())


def test_defenses_compose_from_left_to_right():
    clip, noise = Clipping(max_norm=0.1), GaussianNoise(std=10.0)
    exact = TASK.gradient(BATCH.inputs, BATCH.targets)
    norms = []
    for stack in ([clip, noise], [noise, clip]):
        mechanism = Mechanism(Gradient(), stack)
        released = mechanism.release(exact, mechanism.calibrate(TASK, None, 0), 0)
        norms.append(float(torch.cat([t.flatten() for t in released.values()]).norm()))
    assert norms[0] > 1
    assert norms[1] == pytest.approx(0.1)


def test_law_before_a_release_and_after_it():
    mechanism = Mechanism(Gradient(), [Clipping(max_norm=0.5), Pruning(ratio=0.3)])
    observation = mechanism.sample(TASK, BATCH, key=0)
    before = mechanism.law(observation.plans)
    after = mechanism.law(observation.plans, observation.values)
    assert not before.mask
    assert isinstance(before.maps[-1], KeepLargest)
    assert set(after.mask) == set(observation.values)
    assert len(after.maps) == 1
    exact = TASK.gradient(BATCH.inputs, BATCH.targets)
    for law in (before, after):
        assert_close_to_scale(law.mean(exact), observation.values, 1e-13)


def test_law_hides_zeros_that_noise_covers():
    mechanism = Mechanism(Gradient(), [Pruning(ratio=0.3), GaussianNoise(std=0.1)])
    observation = mechanism.sample(TASK, BATCH, key=0)
    assert not mechanism.law(observation.plans, observation.values).mask


def test_random_mask_in_the_law_is_the_one_that_was_used():
    mechanism = Mechanism(Gradient(), [Pruning(ratio=0.5, kind="random")])
    observation = mechanism.sample(TASK, BATCH, key=3)
    law = mechanism.law(observation.plans)
    exact = TASK.gradient(BATCH.inputs, BATCH.targets)
    for n, mask in law.mask.items():
        assert torch.equal(observation.values[n], torch.where(mask, exact[n], 0))
    other = mechanism.law(mechanism.sample(TASK, BATCH, key=4).plans)
    assert any(not torch.equal(other.mask[n], law.mask[n]) for n in law.mask)


def test_the_attacker_gets_the_law_of_this_release():
    mechanism = Mechanism(Gradient(), [Pruning(ratio=0.5)])
    world = World(TASK, BATCH, mechanism)
    observation = world.observe(key=0)
    problem = ThreatModel("labels-known").reveal(world, observation)
    for n, mask in problem.law.mask.items():
        assert torch.equal(mask, observation.values[n] != 0)


def test_single_defenses_can_be_named_from_the_package():
    import exhume

    assert exhume.defenses.GaussianNoise is GaussianNoise
    assert exhume.observations.Gradient is Gradient
    assert exhume.defense("gaussian-noise", std=0.1) == GaussianNoise(std=0.1)
    for missing in ("Noise", "gaussian", "Gaussiannoise"):
        with pytest.raises(AttributeError, match=missing):
            getattr(exhume.defenses, missing)
