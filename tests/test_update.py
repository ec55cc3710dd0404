"""The change of the weights after local training, against torch.optim itself."""

from __future__ import annotations

import copy

import pytest
import torch

from conformance.closeness import assert_close_to_scale
from exhume.errors import InvalidInput, Unsuited
from exhume.observations.local_training import (
    Optimiser,
    State,
    adam_step,
    clip_norm,
    momentum_step,
)
from exhume.observations.update import Update
from exhume.problem.batch import Batch
from exhume.problem.knowledge import UNKNOWN, Fact
from exhume.problem.law import Law
from exhume.problem.mechanism import Mechanism
from exhume.problem.observation import Candidate
from exhume.problem.task import Task
from exhume.problem.threat import ThreatModel
from exhume.problem.tree import flatten, norm, scale, subtract
from exhume.problem.world import World
from toys import GRAY, smooth, smooth_mlp

LABELS = torch.tensor([3, 0, 3, 1, 2, 4, 0])
CLIENTS = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"weight_decay": 0.1},
    "momentum and decay": {"momentum": 0.5, "weight_decay": 0.1},
    "clipped": {"clip": 0.1},
    "adam": {"optimiser": "adam", "rate": 0.01},
    "adam with a large ε": {"optimiser": "adam", "rate": 0.01, "epsilon": 0.1},
    "adam with decay": {"optimiser": "adam", "rate": 0.01, "weight_decay": 0.1},
    "adamw": {"optimiser": "adamw", "rate": 0.01, "weight_decay": 0.1},
}


def client():
    return Task(smooth_mlp(GRAY).double()), Candidate(
        smooth(GRAY, len(LABELS), 4).double(), LABELS
    )


def by_torch(task: Task, candidate: Candidate, update: Update):
    """Train with torch.optim on the same batches."""
    model = copy.deepcopy(task.model)
    decay = {"weight_decay": update.weight_decay}
    own = {
        "sgd": lambda p: torch.optim.SGD(
            p,
            lr=update.rate,
            momentum=update.momentum,
            nesterov=update.nesterov,
            **decay,
        ),
        "adam": lambda p: torch.optim.Adam(
            p, lr=update.rate, eps=update.epsilon, **decay
        ),
        "adamw": lambda p: torch.optim.AdamW(p, lr=update.rate, **decay),
    }[update.optimiser](model.parameters())
    for index in update.batches(len(candidate.inputs)):
        own.zero_grad()
        outputs = model(candidate.inputs[index])
        torch.nn.functional.cross_entropy(outputs, candidate.targets[index]).backward()
        if update.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), update.clip)
        own.step()
    before = task.parameters()
    return {n: (p - before[n]).detach() for n, p in model.named_parameters()}


@pytest.mark.parametrize("options", CLIENTS.values(), ids=CLIENTS)
def test_the_client_trains_as_torch_does(options):
    task, candidate = client()
    update = Update(epochs=3, batch_size=3, **options)
    expected = by_torch(task, candidate, update)
    for route in (update.forward, update.forward_func):
        gap = norm(subtract(route(task, candidate), expected))
        # torch adds its ε of clipping and of Adam in another place
        assert float(gap) < 2e-5 * float(norm(expected))


@pytest.mark.parametrize("options", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize("epochs", [2, 4])
def test_the_unrolled_client_is_differentiable(options, epochs):
    """Four epochs of three steps go through the steps that are computed again."""
    task, candidate = client()
    model = Update(epochs=epochs, batch_size=3, **options)
    values = model.forward(task, candidate)
    local = torch.Generator().manual_seed(1)
    t = torch.randn(candidate.inputs.shape, generator=local, dtype=torch.float64)
    forwards = flatten(model.jvp(task, candidate, t))
    u = {n: torch.sign(v.detach()) for n, v in values.items()}
    left = float(forwards @ flatten(u))
    right = float((t * model.vjp(task, candidate, u)).sum())
    assert left == pytest.approx(right, rel=1e-6)
    h = 1e-6
    ahead, behind = (
        flatten(
            model.forward(task, Candidate(candidate.inputs + s * h * t, LABELS))
        ).detach()
        for s in (1, -1)
    )
    assert float((forwards - (ahead - behind) / (2 * h)).norm()) < 1e-4 * float(
        forwards.norm()
    )


def test_the_options_change_the_update():
    task, candidate = client()
    found = {
        name: flatten(Update(epochs=2, batch_size=3, **o).forward(task, candidate))
        for name, o in CLIENTS.items()
    }
    for name, values in found.items():
        others = [v for n, v in found.items() if n != name]
        assert all(float((values - v).norm()) > 1e-4 for v in others), name


def test_an_epoch_visits_every_example_once():
    for order in ("shuffled", "given", "unknown"):
        update = Update(epochs=3, batch_size=3, order=order)
        batches = update.batches(7)
        assert len(batches) == 9
        for epoch in range(3):
            seen = torch.cat(batches[3 * epoch : 3 * epoch + 3])
            assert seen.sort().values.tolist() == list(range(7))
    shuffled = Update(epochs=2, batch_size=7).batches(7)
    assert shuffled[0].tolist() != shuffled[1].tolist()


def test_the_path_holds_the_weights_of_every_step():
    task, candidate = client()
    update = Update(epochs=2, batch_size=3)
    path = update.path(task, candidate, graph=False)
    assert len(path) == 1 + len(update.batches(len(LABELS)))
    released = update.forward(task, candidate)
    # A difference of weights has the rounding of the weights.
    scale_of_weights = float(flatten(path[0]).abs().max())
    moved = subtract(path[-1], path[0])
    assert_close_to_scale(moved, released, 1e-13, scale=scale_of_weights)
    once = Update(batch_size=0).forward(
        task, Candidate(*(t[update.batches(7)[0]] for t in (candidate.inputs, LABELS)))
    )
    moved = subtract(path[1], path[0])
    assert_close_to_scale(moved, once, 1e-13, scale=scale_of_weights)


def test_without_a_rate_the_gradients_stay_at_the_start():
    task, candidate = client()
    update = Update(epochs=2, batch_size=0, rate=None)
    step = Update(rate=1.0).forward(task, candidate)
    got = update.forward(task, candidate)
    assert_close_to_scale(got, scale(2, step), 1e-12)


def test_momentum_and_adam_follow_their_formulas():
    g, h = {"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 1.0])}
    first, state = momentum_step(g, State(), 0.5, nesterov=False)
    second, _ = momentum_step(h, state, 0.5, nesterov=True)
    assert first["w"].tolist() == [1.0, -2.0]
    assert second["w"].tolist() == [3 + 0.5 * 3.5, 1 + 0.5 * 0.0]
    signs, state = adam_step(g, State())
    torch.testing.assert_close(signs["w"], torch.tensor([1.0, -1.0]))
    third, _ = adam_step(h, state)
    m = (0.1 * h["w"] + 0.09 * g["w"]) / (1 - 0.81)
    v = (0.001 * h["w"] ** 2 + 0.000999 * g["w"] ** 2) / (1 - 0.999**2)
    torch.testing.assert_close(third["w"], m / v.sqrt())
    assert clip_norm(h, 10.0)["w"].tolist() == [3.0, 1.0]
    assert float(norm(clip_norm(h, 0.5))) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "rule",
    [
        Optimiser(weight_decay=0.1),
        Optimiser(weight_decay=0.1, momentum=0.9),
        Optimiser(weight_decay=0.1, momentum=0.9, nesterov=True),
        Optimiser("adamw", weight_decay=0.1),
    ],
    ids=str,
)
def test_the_pull_of_weight_decay_is_that_of_a_weight_without_data(rule):
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    if rule.name == "adamw":
        own = torch.optim.AdamW([weight], lr=0.05, weight_decay=0.1)
    else:
        own = torch.optim.SGD(
            [weight],
            lr=0.05,
            momentum=rule.momentum,
            nesterov=rule.nesterov,
            weight_decay=0.1,
        )
    for _ in range(7):
        weight.grad = torch.zeros_like(weight)
        own.step()
    assert rule.pull(7, 0.05) == pytest.approx(float(weight.detach()), rel=1e-12)
    assert Optimiser().pull(7, 0.05) == 1.0
    assert Optimiser("adam", weight_decay=0.1).pull(7, 0.05) is None


# --- what an attacker is told --------------------------------------------------------


def world_of(update: Update) -> World:
    task, candidate = client()
    batch = Batch(candidate.inputs, candidate.targets, GRAY)
    return World(task, batch, Mechanism(update))


def test_nobody_is_told_the_order_unless_the_threat_says_so():
    world = world_of(Update(epochs=2, batch_size=3, order_key=5))
    seen = world.observe()
    server = ThreatModel("labels-known").reveal(world, seen)
    assert server.batch_order is UNKNOWN
    model = server.require(Fact.LOCAL_SCHEDULE)
    assert (model.order, model.order_key, model.rate) == ("unknown", 0, 0.1)
    assert server.observation_model.rate is None
    assert server.targets.tolist() == sorted(LABELS.tolist())
    oracle = ThreatModel("order-known").reveal(world, seen)
    assert oracle.require(Fact.LOCAL_SCHEDULE) == world.mechanism.observation
    assert oracle.targets.tolist() == LABELS.tolist()
    blind = ThreatModel("rate-unknown").reveal(world, seen)
    assert blind.require(Fact.LOCAL_SCHEDULE).rate is None
    in_order = world_of(Update(epochs=2, batch_size=3, order="given"))
    told = ThreatModel("order-known").reveal(in_order, in_order.observe())
    assert told.require(Fact.LOCAL_SCHEDULE) == in_order.mechanism.observation


def test_what_is_known_of_a_schedule_goes_in_and_out_by_its_key():
    update = Update(epochs=2, batch_size=3, order_key=5)
    blind = update.informed(None, None)
    assert (blind.known_rate, blind.known_order) == (None, None)
    assert blind.informed(update.known_rate, update.known_order) == update
    in_order = Update(order="given")
    assert blind.informed(0.1, in_order.known_order).order == "given"
    task, candidate = client()
    assert update.task_seen(task, {}) is task
    step = Update(rate=0.05, momentum=0.9, nesterov=True)
    factor, model = step.single_step()
    expected = scale(factor, model.forward(task, candidate))
    assert_close_to_scale(step.forward(task, candidate), expected, 1e-12)
    several = [{"epochs": 2}, {"batch_size": 3}, {"optimiser": "adam"}, {"clip": 1.0}]
    assert all(Update(**options).single_step() is None for options in several)
    assert Update(rate=None).single_step() is None
    assert Update(batch_size=4, rate=0.1).single_step(4) is not None
    assert Update(batch_size=4, rate=0.1).single_step(5) is None


def test_one_plain_step_is_a_gradient_to_attacks_on_gradients():
    import exhume

    world = world_of(Update(rate=0.05))
    one = World(world.task, world.batch.select([0]), world.mechanism)
    problem = ThreatModel("labels-known").reveal(one, one.observe())
    found = exhume.attack("analytic-linear")(problem)
    torch.testing.assert_close(found.inputs, one.batch.inputs)
    several = world_of(Update(epochs=2, rate=0.05))
    problem = ThreatModel("labels-known").reveal(several, several.observe())
    with pytest.raises(Unsuited, match="several steps"):
        exhume.attack("analytic-linear")(problem)


def test_a_scaled_law_is_the_law_of_the_scaled_release():
    law = Law(variance={"w": torch.tensor(4.0)}).then(_shifted)
    twice = law.scaled(-0.5)
    update = {"w": torch.tensor([1.0, -3.0])}
    expected = -0.5 * law.mean(update)["w"]
    assert torch.equal(twice.mean({"w": -0.5 * update["w"]})["w"], expected)
    assert float(twice.variance["w"]) == 1.0


def _shifted(tree):
    return {name: t + 1 for name, t in tree.items()}


def test_defenses_inside_of_one_gradient_are_refused():
    from exhume.defenses import DpSgd, GaussianNoise

    Mechanism(Update(), [GaussianNoise(std=0.1)])
    with pytest.raises(InvalidInput, match="one gradient is computed"):
        Mechanism(Update(), [DpSgd(max_norm=1.0, noise_multiplier=1.0, batch_size=7)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "at least 1"),
        ({"rate": 0.0}, "above 0"),
        ({"momentum": 1.0}, "below 1"),
        ({"optimiser": "adam", "momentum": 0.9}, "belongs to sgd"),
        ({"optimiser": "adam", "epsilon": 0.0}, "epsilon is 0.0"),
        ({"weight_decay": -1.0}, "at least 0"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(InvalidInput, match=words):
        Update(**options)
