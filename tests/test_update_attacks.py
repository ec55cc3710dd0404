"""Attacks on updates of several steps: what stands in for steps, order and rate."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

import exhume
from conformance.closeness import assert_close_to_scale
from exhume.attacks.engine.batch_order import exchanged
from exhume.attacks.engine.discrepancy import angle_and_length
from exhume.attacks.engine.epochs import (
    OrderInvariance,
    PerCopy,
    fuse_epochs,
    order_invariance,
    random_kernel,
)
from exhume.attacks.engine.labels import label_note, recover_labels
from exhume.attacks.engine.local_steps import LocalSteps, small_step_rate
from exhume.attacks.engine.scalar_search import minimise_scalar
from exhume.attacks.engine.softened_adam import softened_adam
from exhume.attacks.engine.surrogate import (
    Surrogate,
    bending,
    bezier_point,
    interpolated_weights,
)
from exhume.attacks.engine.update_labels import mean_gradient, total_step
from exhume.errors import InvalidInput, Unsuited
from exhume.keys import generator
from exhume.observations.local_training import Optimiser
from exhume.observations.update import Update
from exhume.priors.total_variation import TotalVariationDensity
from exhume.problem.knowledge import UNKNOWN, Fact
from exhume.problem.mechanism import Mechanism
from exhume.problem.observation import Candidate
from exhume.problem.threat import ThreatModel
from exhume.problem.tree import add, norm, scale, subtract
from exhume.problem.world import World
from toys import GRAY, make_world, smooth, smooth_mlp

LABELS = (3, 0, 1, 2)
CLIENTS = {
    "sgd": {"rate": 0.3},
    "momentum": {"rate": 0.05, "momentum": 0.9},
    "decay": {"rate": 0.3, "weight_decay": 0.05},
    "adam": {"rate": 0.01, "optimiser": "adam", "weight_decay": 0.1},
}


def client(labels=LABELS, *, key: int = 0, **options) -> World:
    base = make_world(GRAY, labels=labels, model=smooth_mlp(GRAY), key=key)
    return World(base.task, base.batch, Mechanism(Update(**options)), base.public)


@lru_cache
def world(name: str = "sgd", epochs: int = 4) -> World:
    return client(epochs=epochs, batch_size=2, **CLIENTS[name])


def told(w: World, threat: str = "labels-known"):
    return ThreatModel(threat).reveal(w, w.observe(0))


def psnr(guess, w: World) -> float:
    guessed, error = guess.inputs, exhume.score(guess, w.batch)["psnr"]
    assert len(guessed) == len(error)
    return sum(value or 0.0 for value in error) / len(error)


@lru_cache
def surrogate(name: str, path: str, threat: str = "labels-known") -> float:
    w = world(name)
    attack = exhume.attack("surrogate-model", path=path, iterations=150)
    return psnr(attack(told(w, threat)), w)


def by_label(w: World):
    order = w.batch.targets.argsort(stable=True)
    return w.batch.inputs[order], w.batch.targets[order]


def trees(count: int, key: int = 1):
    local = generator(key, "trees")
    return [
        {
            name: torch.randn(shape, generator=local, dtype=torch.float64)
            for name, shape in {"w": (3, 2), "b": (3,)}.items()
        }
        for _ in range(count)
    ]


# --- formulas ------------------------------------------------------------------------


def test_interpolated_weights_lie_on_the_segment():
    start, end = trees(2)
    for share in (0.0, 0.3, 1.0):
        point = interpolated_weights(start, end, share)
        expected = add(start, scale(share, subtract(end, start)))
        assert_close_to_scale(point, expected, 1e-12)


def test_a_curve_has_its_ends_and_is_straight_with_its_control_in_the_middle():
    start, control, end = trees(3)
    for share, place in ((0.0, start), (1.0, end)):
        point = bezier_point(start, control, end, share)
        assert_close_to_scale(point, place, 1e-12)
    half = bezier_point(start, control, end, 0.5)
    expected = scale(0.25, add(add(start, scale(2, control)), end))
    assert_close_to_scale(half, expected, 1e-12)
    middle = scale(0.5, add(start, end))
    straight = bezier_point(start, middle, end, 0.2)
    line = interpolated_weights(start, end, 0.2)
    assert_close_to_scale(straight, line, 1e-12)
    assert float(bending(middle, start, end)) == pytest.approx(0, abs=1e-12)
    assert float(bending(start, start, end)) == pytest.approx(0.25)


def test_order_invariance_is_the_double_sum_and_no_order_changes_it():
    local = generator(2, "copies")
    copies = torch.rand(3, 5, 1, 4, 4, generator=local, dtype=torch.float64)
    means = copies.mean(dim=1).flatten(1)
    pairs = [(means[a] - means[b]).square().mean() for a in range(3) for b in range(3)]
    expected = torch.stack(pairs).sum() / 9
    torch.testing.assert_close(order_invariance(copies), expected)
    mixed = torch.stack([c[torch.randperm(5, generator=local)] for c in copies])
    kernel = random_kernel(1, 0)
    for prior in (
        OrderInvariance(weight=2.0, size=5),
        OrderInvariance(weight=2.0, size=5, kernel=kernel),
    ):
        before, after = (prior.energy(c.flatten(0, 1)) for c in (copies, mixed))
        torch.testing.assert_close(before, after)
        assert float(before) > 0
        same = copies[:1].expand(3, -1, -1, -1, -1).reshape(15, 1, 4, 4)
        assert float(prior.energy(same)) < 1e-12 * float(before)
    tv = TotalVariationDensity(weight=1.0)
    twice = torch.cat([copies[0], copies[0]])
    torch.testing.assert_close(
        PerCopy(of=tv, size=5).energy(twice), tv.energy(copies[0])
    )


def test_copies_are_matched_within_labels_before_the_mean():
    x = smooth(GRAY, 4, 3)
    labels = torch.tensor([1, 1, 2, 2])
    found = fuse_epochs(torch.stack([x, x[[1, 0, 3, 2]]]), labels)
    torch.testing.assert_close(found, x)
    crossed = fuse_epochs(torch.stack([x, x[[2, 1, 0, 3]]]), labels)
    assert not torch.allclose(crossed, x), "examples of other labels never match"


def test_angle_and_length_adds_the_relative_error():
    a, b = trees(2)
    cosine = float((a["w"] * b["w"]).sum() + a["b"] @ b["b"]) / float(norm(a) * norm(b))
    error = float(norm(subtract(a, b)) / norm(b)) ** 2
    assert float(angle_and_length(a, b)) == pytest.approx(1 - cosine + 0.1 * error)
    assert float(angle_and_length(a, scale(0.0, b))) == pytest.approx(1.0)


def test_the_step_size_of_small_steps_is_exact_for_one_step():
    w = client(rate=0.05)
    candidate = Candidate(w.batch.inputs, w.batch.targets)
    observed = w.mechanism.observation.forward(w.task, candidate)
    unit = Update(rate=None).forward(w.task, candidate)
    assert small_step_rate(unit, observed) == pytest.approx(0.05, rel=1e-5)
    assert small_step_rate(scale(0.0, unit), observed) > 0


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}],
    ids=str,
)
def test_the_total_step_is_where_a_constant_gradient_leads(options):
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    own = torch.optim.SGD([weight], lr=0.05, **options)
    for _ in range(7):
        weight.grad = torch.ones_like(weight)
        own.step()
    found = total_step(Optimiser(**options), 7, 0.05)
    assert -found == pytest.approx(float(weight.detach()), rel=1e-12)


def test_a_scalar_search_finds_the_best_of_several_valleys():
    def valleys(at: float) -> float:
        return math.inf if at < -1.5 else math.cos(5 * at) + 0.1 * (at - 1.9) ** 2

    best = min((valleys(k / 1e4), k / 1e4) for k in range(-20_000, 30_000))[1]
    found = minimise_scalar(valleys, -2, 3, points=21, sections=30)
    assert found == pytest.approx(best, abs=2e-4)
    assert minimise_scalar(lambda _: math.nan, 0, 1) == 0.5


def test_exchanges_find_a_split_and_keep_every_example():
    target = [{0, 1, 2}, {3, 4, 5}, {0, 4, 5}, {1, 2, 3}]

    def wrong(batches) -> float:
        pairs = zip(batches, target, strict=True)
        return 1.0 + sum(len(set(b.tolist()) - t) for b, t in pairs)

    guess = [torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])] * 2
    found = exchanged(wrong, guess, epochs=2, budget=36)
    assert wrong(found) == 1.0
    for epoch in (found[:2], found[2:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(6))
    assert guess[0].tolist() == [0, 2, 4], "the guess is not written to"
    assert exchanged(wrong, guess, epochs=2, budget=0)[0].tolist() == [0, 2, 4]


def test_a_candidate_may_carry_a_step_size_and_batches():
    w = world()
    own = Candidate(w.batch.inputs, w.batch.targets)
    known = w.mechanism.observation
    assert isinstance(known, Update)
    expected = known.forward(w.task, own)
    eta = torch.tensor(0.3, requires_grad=True)
    blind = known.informed(None, known.known_order)
    guess = Candidate(own.inputs, own.targets, {"rate": eta})
    for route in (blind.forward, blind.forward_func):
        found = route(w.task, guess)
        assert float(norm(subtract(found, expected)).detach()) < 1e-6
    (slope,) = torch.autograd.grad(found["3.bias"].sum() + found["1.bias"].sum(), eta)
    assert float(slope) != 0
    path = blind.path(
        w.task, guess, graph=False, batches=known.batches(len(own.inputs))
    )
    moved = subtract(path[-1], path[0])
    assert float(norm(subtract(moved, expected))) < 1e-6


# --- surrogate-model -----------------------------------------------------------------


@pytest.mark.parametrize("path", ["linear", "bezier"])
def test_a_learned_point_on_the_way_beats_the_initial_weights(path):
    assert surrogate("momentum", path) > surrogate("momentum", "initial") + 3


def test_a_fixed_point_has_nothing_to_settle():
    w, p = world(), told(world())
    for path, share in (("midpoint", 0.5), ("initial", 0.0)):
        objective = exhume.attack("surrogate-model", path=path).design(p).objective
        assert isinstance(objective, Surrogate)
        assert objective.share(objective.settle(w.batch.inputs, w.batch.targets)) == (
            share
        )


def test_neither_step_size_nor_order_is_needed():
    for threat in ("rate-unknown", "order-known"):
        found = surrogate("momentum", "linear", threat)
        assert found > surrogate("momentum", "initial") + 3


def test_the_objective_is_minimised_over_the_place():
    w = world("momentum")
    p = told(w)
    attack = exhume.attack("surrogate-model", total_variation=0.0)
    objective = attack.design(p).objective
    assert isinstance(objective, Surrogate)
    x, y = w.batch.inputs, w.batch.targets
    least = attack.objective(p, x, y)
    share = float(objective.share(objective.settle(x, y)))
    values = []
    for k in range(21):
        where = interpolated_weights(
            w.task.parameters(), add(w.task.parameters(), p.observed), k / 20
        )
        gradient = w.task.gradient(x, y, {n: t.detach() for n, t in where.items()})
        inner = sum(float((gradient[n] * t).sum()) for n, t in p.observed.items())
        values.append(1 + inner / float(norm(gradient) * norm(p.observed)))
    assert least == pytest.approx(min(values), abs=1e-3)
    assert share == pytest.approx(values.index(min(values)) / 20, abs=0.05)
    bent = exhume.attack("surrogate-model", path="bezier", total_variation=0.0)
    assert bent.objective(p, x, y) < least


@pytest.mark.parametrize("threat", ["labels-known", "rate-unknown"])
def test_weight_decay_alone_is_no_evidence(threat):
    """With strong decay the update is mostly −ηω Σ Θ, which no example explains."""
    w = client(epochs=2, batch_size=2, rate=0.05, weight_decay=1.0)
    x, y = w.batch.inputs, w.batch.targets
    p = told(w, threat)
    attack = exhume.attack("surrogate-model", total_variation=0.0)
    assert attack.objective(p, x, y) < 0.01
    gradient = w.task.gradient(x, y)
    inner = sum(float((gradient[n] * t).sum()) for n, t in p.observed.items())
    assert 1 + inner / float(norm(gradient) * norm(p.observed)) > 0.1


def test_adam_clients_are_pointed_out():
    p = told(world("adam"))
    found = exhume.attack("surrogate-model", iterations=2)(p)
    assert any("divided entry by entry" in note for note in found.notes)


# --- unrolled ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLIENTS)
def test_simulated_steps_beat_one_gradient(name):
    w = world(name)
    attack = exhume.attack("unrolled", iterations=100)
    found = attack(told(w, "order-known"))
    assert psnr(found, w) > surrogate(name, "initial", "order-known") + 8
    exact = exhume.attack("unrolled", total_variation=0.0)
    truth = exact.objective(told(w, "order-known"), w.batch.inputs, w.batch.targets)
    assert truth < 1e-6, "the simulation is the client's own training"


def test_a_client_with_adam_is_approached_from_a_soft_one():
    """With a large ε a step is along the gradient; then it hardens to the client's."""
    w = world("adam")
    p = told(w, "order-known")
    objective = exhume.attack("unrolled").design(p).objective
    softer = softened_adam(p, objective)
    sizes = [model.epsilon for model in softer]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 3
    assert sizes[-1] > objective.client.epsilon
    assert {replace(m, epsilon=objective.client.epsilon) for m in softer} == {
        objective.client
    }
    tiny = replace(objective, model=replace(objective.client, epsilon=1e3))
    assert softened_adam(p, tiny) == []
    sgd = told(world("sgd"), "order-known")
    assert softened_adam(sgd, exhume.attack("unrolled").design(sgd).objective) == []


def test_an_unknown_order_is_guessed_and_improved():
    w = world()
    p = told(w)
    attack = exhume.attack("unrolled", iterations=90)
    found = attack(p)
    assert psnr(found, w) > surrogate("sgd", "initial") + 5
    assert any("improved by exchanges" in note for note in found.notes)
    x, y = w.batch.inputs, w.batch.targets
    guess, searched = (
        exhume.attack("unrolled", total_variation=0.0, exchanges=n).objective(p, x, y)
        for n in (0, 100)
    )
    assert searched < 0.5 * guess


def test_an_unknown_step_size_is_one_unknown_more():
    w = world()
    p = told(w, "rate-unknown")
    found = exhume.attack("unrolled", iterations=90)(p)
    assert psnr(found, w) > surrogate("sgd", "initial") + 5
    (note,) = [n for n in found.notes if "step size" in n]
    assert float(note.split("; ")[1].split()[0]) == pytest.approx(0.3, rel=0.2)
    objective = exhume.attack("unrolled", exchanges=0).design(p).objective
    assert isinstance(objective, LocalSteps)
    x, y = by_label(w)
    rate = float(objective.rate(objective.settle(x, y)))
    assert rate == pytest.approx(0.3, rel=0.2)


def test_a_known_step_size_and_order_open_nothing():
    w = world()
    objective = exhume.attack("unrolled").design(told(w, "order-known")).objective
    assert isinstance(objective, LocalSteps)
    assert not objective.searches
    assert objective.settle(w.batch.inputs, w.batch.targets) == ()


def test_restarts_are_ranked_by_the_objective():
    w = world("sgd", 1)
    p = told(w)
    attack = exhume.attack("unrolled", iterations=9, restarts=2, start="normal")
    both = attack(p, key=3)
    assert {point.restart for point in both.trace} == {0, 1}
    alone = exhume.attack("unrolled", iterations=9, start="normal")(p, key=3)
    assert both.objective is not None
    assert alone.objective is not None
    assert both.objective <= alone.objective + 1e-9
    quick = exhume.attack("unrolled", seconds=0.2, restarts=3)(p)
    assert quick.cost.cpu_seconds < 5


# --- fedavg-epochs -------------------------------------------------------------------


@pytest.mark.parametrize("invariant", ["mean", "convolution"])
def test_examples_of_every_epoch_beat_one_gradient(invariant):
    w = world()
    attack = exhume.attack("fedavg-epochs", iterations=60, invariant=invariant)
    found = attack(told(w))
    assert psnr(found, w) > surrogate("sgd", "initial") + 3
    assert any("was kept" in note for note in found.notes)


def test_equal_copies_have_the_objective_of_one_batch():
    w = world()
    p, x, y = told(w), *by_label(w)
    settings = {"total_variation": 0.0}
    epochs = exhume.attack("fedavg-epochs", **settings)
    unrolled = exhume.attack("unrolled", exchanges=0, **settings)
    assert epochs.objective(p, x, y) == pytest.approx(unrolled.objective(p, x, y))
    objective = epochs.design(p).objective
    assert isinstance(objective, LocalSteps)
    assert objective.copies == 4
    with torch.no_grad():
        tiled = float(objective(x.repeat(4, 1, 1, 1), y))
        apart = float(objective(torch.cat([x.roll(k, 0) for k in range(4)]), y))
    assert tiled == pytest.approx(epochs.objective(p, x, y), rel=1e-5)
    assert apart > tiled


def test_joint_labels_and_an_unknown_step_size_go_together():
    w = world()
    p = ThreatModel("rate-unknown").without(Fact.LABELS).reveal(w, w.observe(0))
    found = exhume.attack("fedavg-epochs", iterations=3, labels="joint")(p)
    assert found.targets.shape == (4,)
    assert any("optimised together" in note for note in found.notes)
    assert any("step size" in note for note in found.notes)


# --- labels --------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 5, 20])
def test_labels_are_counted_across_steps(epochs):
    for key, labels in enumerate([(3, 0, 3, 1, 2, 4), (2, 2, 2, 2, 0, 1)]):
        w = client(labels, key=key, epochs=epochs, batch_size=2, rate=0.1)
        found = recover_labels(told(w, "parameter-aware"), "bias-corrected", 6)
        assert found.tolist() == sorted(labels)


@pytest.mark.parametrize("epochs", [1, 5, 20])
def test_uneven_labels_are_counted_without_the_step_size(epochs):
    """Of even ones little but noise is left, whose size would have to be known."""
    for key, labels in enumerate([(3, 3, 3, 3, 0, 0), (2, 2, 2, 2, 0, 1)]):
        w = client(labels, key=key, epochs=epochs, batch_size=2, rate=0.1)
        p = ThreatModel("rate-unknown").without(Fact.LABELS).reveal(w, w.observe(0))
        assert recover_labels(p, "bias-corrected", 6).tolist() == sorted(labels)
        assert "step size" in label_note(p, "bias-corrected")


@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.9}, {"weight_decay": 0.2}, {"clip": 0.2}, {"batch_size": 3}],
    ids=str,
)
def test_labels_are_counted_under_other_rules(options):
    # Clipping hides the size, as an unknown step size does.
    labels = (3, 3, 3, 3, 0, 0) if "clip" in options else (3, 0, 3, 1, 2, 4)
    w = client(labels, epochs=5, **{"batch_size": 2, "rate": 0.05} | options)
    p = told(w, "parameter-aware")
    assert p.targets is UNKNOWN
    assert recover_labels(p, "bias-corrected", 6).tolist() == sorted(labels)
    assert "bias" in label_note(p, "bias-corrected")


def test_the_mean_gradient_of_small_steps_is_the_gradient():
    w = client(epochs=3, batch_size=2, rate=1e-4, weight_decay=0.1)
    p = told(w)
    found = mean_gradient(p, p.require(Fact.LOCAL_SCHEDULE))
    expected = w.task.gradient(w.batch.inputs, w.batch.targets)
    assert not found.scaled
    gap = norm(subtract(found.values, expected))
    assert float(gap) < 0.02 * float(norm(expected))
    before, after = (
        t.parameters()["3.bias"] for t in (found.tasks[0], found.tasks[-1])
    )
    torch.testing.assert_close(after - before, p.observed["3.bias"])


@pytest.mark.parametrize(
    ("options", "threat", "words"),
    [
        ({"optimiser": "adam"}, "labels-known", "divides every entry"),
        ({"weight_decay": 0.1}, "rate-unknown", "unknown step size"),
    ],
)
def test_labels_that_cannot_be_counted_are_refused(options, threat, words):
    w = client(epochs=2, batch_size=2, rate=0.01, **options)
    with pytest.raises(InvalidInput, match=words):
        recover_labels(told(w, threat), "bias-corrected", 4)


def test_an_attack_without_labels_counts_them():
    w = world()
    p = ThreatModel("labels-known").without(Fact.LABELS).reveal(w, w.observe(0))
    for name in ("surrogate-model", "unrolled", "fedavg-epochs"):
        found = exhume.attack(name, iterations=3)(p)
        assert found.targets.tolist() == sorted(LABELS)
        assert any("were inferred" in note for note in found.notes)


def test_attacks_on_gradients_still_refuse_several_steps():
    with pytest.raises(Unsuited):
        exhume.attack("analytic-linear")(told(world()))
