"""The change of the weights after fine-tuning, and the attacks on it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import exhume
from exhume import NotApplicable
from exhume.attacks.engine.candidates import (
    candidate_scores,
    correlations,
    merge_duplicates,
)
from exhume.attacks.engine.tangent_notes import agreement, tangent_notes
from exhume.errors import InvalidInput, Unsuited
from exhume.keys import generator
from exhume.observations.fine_tuning import FineTuning, flow_rate
from exhume.observations.gradient import Gradient
from exhume.observations.update import Update
from exhume.problem.batch import Batch
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.mechanism import Mechanism
from exhume.problem.observation import Candidate
from exhume.problem.reconstruction import Outcome
from exhume.problem.task import Task
from exhume.problem.threat import ThreatModel
from exhume.problem.world import World
from toys import GRAY, make_world, reveal, seeded, smooth


def noise(shape, key: int) -> torch.Tensor:
    local = generator(key, "fine-tuning", "noise")
    return torch.randn(shape, generator=local, dtype=torch.float64)


# --- candidates ----------------------------------------------------------------------


def test_correlations_are_those_of_numpy():
    a, b = smooth(GRAY, 3, 1).double(), smooth(GRAY, 4, 2).double()
    expected = np.corrcoef(a.flatten(1), b.flatten(1))[:3, 3:]
    torch.testing.assert_close(correlations(a, b), torch.from_numpy(expected))
    flat = torch.full((1, *GRAY.shape), 0.3, dtype=torch.float64)
    assert correlations(flat, b).tolist() == [[0.0] * 4]


def test_the_score_is_the_energy_of_a_candidate():
    features, weights = noise((3, 2, 50), 1), noise((3, 2), 2)
    blocks = features @ features.mT
    sums = torch.einsum("ic,icp->ip", weights, features)
    torch.testing.assert_close(
        candidate_scores(weights, blocks), sums.square().sum(dim=1)
    )


def test_copies_merge_and_strangers_do_not():
    own = smooth(GRAY, 3, 1).double()
    inputs = torch.cat([own, own[:1] + 0.01 * noise((1, *GRAY.shape), 3), own[1:2]])
    scores = torch.tensor([1.0, 5.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    found = merge_duplicates(inputs, scores)
    assert found.members == ((1, 4), (3, 0), (2,))
    assert found.scores.tolist() == [6.0, 4.0, 0.5]
    torch.testing.assert_close(found.inputs[0], own[1])
    torch.testing.assert_close(found.inputs[1], 0.75 * inputs[3] + 0.25 * inputs[0])
    nothing = merge_duplicates(inputs, 0 * scores)
    assert bool(torch.isfinite(nothing.inputs).all())


def test_a_common_centre_is_no_likeness():
    common = 10 * noise(GRAY.shape, 4)
    inputs = common + noise((2, *GRAY.shape), 5)
    scores = torch.ones(2, dtype=torch.float64)
    assert len(merge_duplicates(inputs, scores).members) == 1
    assert len(merge_duplicates(inputs, scores, centre=common).members) == 2


# --- the observation -----------------------------------------------------------------

LABELS = torch.tensor([0, 1, 1, 0])


def wide(width: int = 150, outputs: int = 1, key: int = 0, **options) -> Task:
    model = exhume.model("tangent-mlp", hidden=(width,), **options)
    return Task(model.build(GRAY, outputs, key).double(), loss="mse")


def digits() -> Batch:
    """Return two of each of two classes: images that nobody would call smooth."""
    whole = exhume.dataset("relabelled", classes=[[0], [1]]).load().to(torch.float64)
    rows = [(whole.targets == c).nonzero().flatten()[:2] for c in (0, 1)]
    return whole.select(torch.cat(rows)[[0, 2, 3, 1]])


def changed(
    observation, task: Task | None = None, *, hidden_labels=False, std=0.0
) -> tuple[Problem, Batch]:
    own = digits()
    threat = ThreatModel("labels-known")
    if hidden_labels:
        threat = threat.without(Fact.LABELS)
    noise = (exhume.defense("gaussian-noise", std=std),) if std else ()
    world = World(task or wide(), own, Mechanism(observation, noise))
    return threat.reveal(world, world.observe(0)), own


def hits(found: torch.Tensor, own: Batch) -> int:
    best = correlations(own.inputs, found.double()).max(dim=1).values
    return int((best > 0.95).sum())


def test_the_step_follows_the_flow_of_a_linear_model():
    """The mean squared error over B examples of a linear model has curvature 2XᵀX/B."""
    net = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False)), 1).double()
    own = digits().inputs
    rows = own.flatten(1)
    largest = torch.linalg.eigvalsh(rows.T @ rows)[-1]
    expected = len(rows) / (2 * float(largest))
    assert flow_rate(Task(net, loss="mse"), own) == pytest.approx(expected, rel=1e-6)


def test_a_training_ends_at_its_target_and_near_the_kernel_regression():
    task, own = wide(1000), digits()
    candidate = Candidate(own.inputs, own.targets)
    change = FineTuning(target_loss=1e-4).forward(task, candidate)
    limit = FineTuning(linearised=True).forward(task, candidate)
    flat = [torch.cat([t.flatten() for t in c.values()]) for c in (change, limit)]
    assert float(torch.cosine_similarity(*flat, dim=0)) > 0.9
    end = {n: p.detach() + change[n] for n, p in task.parameters().items()}
    signs = 2 * own.targets - 1
    torch.testing.assert_close(
        task.predict(own.inputs, end)[:, 0], signs.double(), atol=0.05, rtol=0
    )


def test_a_target_out_of_reach_is_said():
    observation = FineTuning(target_loss=1e-12, iterations=3)
    with pytest.raises(InvalidInput, match="ended after 3 steps at a loss of"):
        observation.forward(wide(), Candidate(digits().inputs, LABELS))


@pytest.mark.parametrize(
    "options",
    [
        {"target_loss": -1.0},
        {"ridge": math.inf},
        {"iterations": 0},
        {"rate": 0.0},
        {"momentum": 1.0},
    ],
    ids=str,
)
def test_bad_options_are_refused(options):
    (name,) = options
    with pytest.raises(InvalidInput, match=f"{name} is"):
        FineTuning(**options)


def test_coupled_examples_have_no_tangent_features():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 1)).double()
    task = Task(net, loss="mse", mode="train")
    observation = FineTuning(linearised=True)
    with pytest.raises(InvalidInput, match="couples the examples"):
        observation.forward(task, Candidate(digits().inputs, LABELS))


# --- the attacks ---------------------------------------------------------------------

QUICK = {"iterations": 500, "polish": 100}


@pytest.mark.parametrize("name", ["tangent-kernel", "subspace"])
def test_an_exact_change_shows_every_image(name):
    problem, own = changed(FineTuning(linearised=True), hidden_labels=True)
    options = QUICK if name == "tangent-kernel" else {"options": QUICK}
    attack = exhume.attack(name, **options)
    answer = attack(problem, key=1)
    assert attack.objective(problem, own.inputs, own.targets) < 1e-9
    assert answer.objective is not None
    assert answer.objective < 1e-6
    assert hits(answer.inputs, own) == len(own)
    # Nobody gave the labels: they are told by the network that was trained.
    nearest = correlations(own.inputs, answer.inputs.double()).argmax(dim=1)
    wanted = 2 * own.targets.double() - 1
    assert torch.equal(answer.targets[nearest].double().flatten().sign(), wanted)


def test_other_images_explain_less():
    problem, own = changed(FineTuning(linearised=True))
    attack = exhume.attack("tangent-kernel")
    mixed = own.inputs.clone()
    mixed[0] = 1 - mixed[0]
    assert attack.objective(problem, mixed, own.targets) > 1e-3


def test_a_real_training_of_a_wide_network_shows_images_too():
    """Features move, so both ends count, and the truth does not explain everything."""
    problem, own = changed(FineTuning(target_loss=1e-2), wide(300))
    attack = exhume.attack("tangent-kernel", iterations=300, polish=50, rounds=0)
    assert attack.objective(problem, own.inputs, own.targets) > 1e-9
    assert hits(attack(problem, key=0).inputs, own) >= 3


def test_known_noise_is_no_part_of_the_fit():
    clean, own = changed(FineTuning(linearised=True))
    size = float(torch.cat([t.flatten() for t in clean.observed.values()]).std())
    noisy, _ = changed(FineTuning(linearised=True), std=0.3 * size)
    attack = exhume.attack("tangent-kernel", **QUICK)
    # Noise of share 0.3² per entry is what no images explain.
    at_truth = attack.objective(noisy, own.inputs, own.targets)
    assert at_truth == pytest.approx(0.09 / 1.09, rel=0.15)
    found = attack(noisy, key=0)
    assert found.objective is not None
    assert found.objective < 1.5 * at_truth
    assert hits(found.inputs, own) >= 2


@pytest.mark.parametrize("observation", [Gradient(), Update(rate=0.1)])
def test_a_gradient_and_one_step_are_exact_combinations(observation):
    problem, own = changed(observation, wide(60))
    attack = exhume.attack(
        "tangent-kernel", iterations=300, polish=50, newton=60, rounds=1
    )
    assert attack.objective(problem, own.inputs, own.targets) < 1e-9
    assert hits(attack(problem, key=0).inputs, own) == len(own)


def test_weight_decay_is_taken_out_of_an_update():
    update = Update(epochs=3, batch_size=4, rate=1e-4, weight_decay=10.0)
    problem, own = changed(update, wide(100))
    plain, _ = changed(Update(epochs=3, batch_size=4, rate=1e-4), wide(100))
    attack = exhume.attack("tangent-kernel", points=(0.0,))
    with_decay = attack.objective(problem, own.inputs, own.targets)
    without = attack.objective(plain, own.inputs, own.targets)
    assert with_decay == pytest.approx(without, abs=1e-3)


def test_the_span_tells_what_weight_decay_did_if_nobody_says_the_step_size():
    update = Update(epochs=3, batch_size=4, rate=1e-3, weight_decay=10.0)
    known, own = changed(update, wide(100))
    hidden = replace(known, learning_rate=UNKNOWN)
    attack = exhume.attack("subspace", options={**QUICK, "points": (0.0,)})
    for problem in (known, hidden):
        assert hits(attack(problem, key=0).inputs, own) == len(own)


def test_no_bound_and_the_reason_whatever_the_prior():
    world = World(wide(), digits(), Mechanism(FineTuning()))
    for name in ("bayesian-cramer-rao", "bayesian-trace"):
        answer = exhume.bound(name)(world, None, 0)
        assert isinstance(answer, NotApplicable)
        assert "trained to the end" in answer.reason


def test_what_an_explanation_is_worth_is_said():
    one, other = noise((3, *GRAY.shape), 1), noise((3, *GRAY.shape), 2)
    middle = torch.zeros(GRAY.shape, dtype=torch.float64)
    assert agreement([(1.0, one)], middle) is None
    assert agreement([(1.0, one), (5.0, other)], middle) is None
    assert agreement([(1.0, one), (1.5, one[[2, 0, 1]])], middle) == pytest.approx(1)
    apart = agreement([(1.0, one), (1.0, other)], middle)
    assert apart is not None
    assert apart < 0.5
    scores = torch.tensor([1.0, 1e-5])
    good = " ".join(tangent_notes(0.01, scores, 50.0, 0.95))
    assert "1 of 2 candidates" in good
    assert "may" not in good
    bad = " ".join(tangent_notes(0.95, scores, 2.5, apart))
    for words in ("may be anything", "few", "proves little"):
        assert words in bad
    assert "restarts = 3" in " ".join(tangent_notes(0.01, scores, 50.0, None))


def test_a_change_of_nothing_shows_nothing():
    problem, own = changed(FineTuning(linearised=True))
    empty = {n: torch.zeros_like(t) for n, t in problem.observed.items()}
    still = replace(problem, observed=empty)
    for name in ("tangent-kernel", "subspace"):
        answer = exhume.attack(name)(still, key=0)
        assert answer.outcome is Outcome.NOT_APPLICABLE
        assert answer.inputs.shape == own.inputs.shape


def test_a_convolution_hides_the_span():
    net = seeded(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 1)), 3
    ).double()
    problem, _ = changed(FineTuning(linearised=True), Task(net, loss="mse"))
    answer = exhume.attack("subspace")(problem, key=0)
    assert answer.outcome is Outcome.NOT_APPLICABLE
    assert "convolution" in " ".join(answer.notes)


def test_features_of_a_gradient_are_at_its_weights():
    problem = reveal(make_world(GRAY))
    with pytest.raises(InvalidInput, match="leave points empty"):
        exhume.attack("tangent-kernel", points=(0.0, 1.0))(problem, key=0)


def test_attacks_on_gradients_do_not_suit_a_training_to_the_end():
    problem, _ = changed(FineTuning(linearised=True))
    with pytest.raises(Unsuited, match="after a training to the end"):
        exhume.attack("gauss-newton")(problem, key=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tangent-kernel", {"candidates": 0}),
        ("tangent-kernel", {"points": (math.nan,)}),
        ("tangent-kernel", {"box": -1.0}),
        ("tangent-kernel", {"seconds": 0.0}),
        ("subspace", {"rank": -1}),
        ("subspace", {"inner": "subspace"}),
        ("subspace", {"options": {"iterations": 0}}),
    ],
    ids=str,
)
def test_bad_options_of_the_attacks_are_refused(name, options):
    with pytest.raises(InvalidInput):
        exhume.attack(name, **options)


def test_unknown_batch_size_is_asked_for():
    problem, _ = changed(FineTuning(linearised=True))
    threat = ThreatModel("labels-known").without(Fact.BATCH_SIZE)
    with pytest.raises(exhume.errors.ExhumeError, match="number of examples"):
        exhume.attack("tangent-kernel")(problem.restricted(threat.known), key=0)
