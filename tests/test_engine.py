"""The optimisation engine and its presets, on problems of seconds."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from engine_worlds import make_problem, make_world, tree
from exhume.attacks.dlg import DeepLeakage
from exhume.attacks.engine.discrepancy import (
    make_discrepancy,
)
from exhume.attacks.engine.objective import mean_total_variation
from exhume.attacks.gradinversion import GradInversion
from exhume.attacks.idlg import ImprovedDeepLeakage
from exhume.attacks.inverting_gradients import InvertingGradients
from exhume.attacks.relaxations.identity import InUnits
from exhume.attacks.unknowns import Unknowns
from exhume.config import build
from exhume.defenses.clipping import Clipping
from exhume.defenses.pruning import Pruning
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN
from exhume.problem.law import Law
from exhume.problem.mechanism import Mechanism
from exhume.problem.reconstruction import Outcome
from exhume.problem.relaxation import Units
from exhume.problem.task import Task
from exhume.problem.tree import Tree, norm, scale
from exhume.problem.world import World

PRESETS = ("dlg", "idlg", "inverting-gradients", "gradinversion")
#: the published priors push the minimum away from the truth; these leave them out
PURE = {
    "inverting-gradients": {"total_variation": 0.0},
    "gradinversion": {
        "total_variation": 0.0,
        "euclidean_norm": 0.0,
        "batch_norm": 0.0,
    },
}


# --- the objective is the one of the inverse problem ---------------------------------


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_truth_is_the_minimum_of_every_preset(name, mode):
    world = make_world(
        EventSpec.image(3, 6, 6),
        (0, 2),
        mode=mode,
        batch_norm=True,
        dtype=torch.float64,
    )
    problem = make_problem(world, "statistics-known")
    attack = build("attack", {"name": name, **PURE.get(name, {})})
    at_truth = attack.objective(problem, world.batch.inputs, world.batch.targets)
    assert at_truth == pytest.approx(0.0, abs=1e-12)
    for seed in range(5):
        other = torch.rand(world.batch.inputs.shape, generator=generator(seed)).double()
        assert attack.objective(problem, other, world.batch.targets) > 1e-4


def clip(update: Tree) -> Tree:
    return scale((0.1 / norm(update)).clamp_max(1.0), update)


@pytest.mark.parametrize("name", PRESETS)
def test_known_clipping_and_mask_are_part_of_the_objective(name):
    world = make_world(dtype=torch.float64)
    problem = make_problem(world)
    assert float(norm(problem.observed)) > 0.2  # so that the clip bites
    keep = {
        n: torch.rand(t.shape, generator=generator(0, n)) > 0.5
        for n, t in problem.observed.items()
    }
    law = Law(maps=(clip,), mask=keep)
    adaptive = replace(problem, observed=law.mean(problem.observed), law=law)
    unaware = replace(adaptive, law=UNKNOWN)
    attack = build("attack", {"name": name, **PURE.get(name, {})})
    truth = (world.batch.inputs, world.batch.targets)
    assert attack.objective(adaptive, *truth) == pytest.approx(0.0, abs=1e-12)
    assert attack.objective(unaware, *truth) > 1e-4
    quick = build("attack", {"name": name, "iterations": 1, "restarts": 1})
    assert quick(adaptive).adaptive
    assert not quick(unaware).adaptive


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    "defense", [Clipping(max_norm=0.1), Pruning(ratio=0.6)], ids=["clipping", "pruning"]
)
def test_who_knows_the_defense_sees_a_zero_at_the_truth(name, defense):
    world = make_world(dtype=torch.float64)
    world = replace(world, mechanism=Mechanism(Gradient(), (defense,)))
    attack = build("attack", {"name": name, **PURE.get(name, {})})
    truth = (world.batch.inputs, world.batch.targets)
    known = attack.objective(make_problem(world), *truth)
    assert known == pytest.approx(0.0, abs=1e-12)
    if (name, type(defense)) != ("inverting-gradients", Clipping):
        # A cosine does not notice a change of length; everything else does.
        assert attack.objective(make_problem(world, "defense-unknown"), *truth) > 1e-4


def test_void_coordinates_count_nowhere_even_if_noise_was_added_to_them():
    update = tree([1.0, 2.0, 3.0])
    mask = {"t0": torch.tensor([True, False, True])}
    law = Law(mask=mask, variance={"t0": torch.tensor(0.25)})
    noisy = tree([1.5, 99.0, 3.0])
    distance = make_discrepancy("euclidean", noisy, law, torch.float64)
    assert float(distance(update)) == pytest.approx(0.5 * 0.5**2 / 0.25)
    cosine = make_discrepancy("cosine", noisy, law, torch.float64)
    u, v = np.array([1.0, 3.0]), np.array([1.5, 3.0])
    expected = 1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    assert float(cosine(update)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["dlg", "gradinversion"])
def test_known_noise_makes_the_objective_the_likelihood(name):
    world = make_world(dtype=torch.float64)
    problem = make_problem(world)
    std = 0.01
    noise = {
        n: std * torch.randn(t.shape, generator=generator(0, n)).double()
        for n, t in problem.observed.items()
    }
    observed = {n: t + noise[n] for n, t in problem.observed.items()}
    law = Law(variance={n: torch.tensor(std**2) for n in observed})
    noisy = replace(problem, observed=observed, law=law)
    options = {**PURE.get(name, {}), **({} if name == "dlg" else {"gradient": 1.0})}
    attack = build("attack", {"name": name, **options})
    value = attack.objective(noisy, world.batch.inputs, world.batch.targets)
    assert value == pytest.approx(0.5 * float(norm(noise)) ** 2 / std**2, rel=1e-6)


def test_noise_in_one_tensor_is_weighed_down():
    world = make_world(dtype=torch.float64)
    problem = make_problem(world)
    name = next(iter(problem.observed))
    noise = torch.randn(problem.observed[name].shape, generator=generator(3)).double()
    observed = {**problem.observed, name: problem.observed[name] + noise}
    law = Law(variance={name: torch.tensor(1.0)})
    attack = DeepLeakage(relaxation="box", iterations=12)
    errors = []
    for known in (law, UNKNOWN):
        answer = attack(replace(problem, observed=observed, law=known))
        errors.append(float((answer.inputs - world.batch.inputs).square().mean()))
    assert errors[0] < 0.3 * errors[1]


def test_total_variation_of_a_constant_is_zero_and_linear_in_its_weight():
    world = make_world(EventSpec.image(3, 6, 6), (0, 1))
    problem = make_problem(world)
    (prior,), _ = mean_total_variation(problem, 0.2)
    (double,), _ = mean_total_variation(problem, 0.4)
    assert float(prior.energy(torch.full((2, 3, 6, 6), 0.7))) == 0.0
    x = world.batch.inputs
    assert float(double.energy(x)) == pytest.approx(2 * float(prior.energy(x)))
    # The published definition: mean over entries in units of a quarter of the range.
    z = (x - 0.5) / 0.25
    jumps = z.diff(dim=-1).abs().sum() + z.diff(dim=-2).abs().sum()
    assert float(prior.energy(x)) == pytest.approx(
        0.2 * float(jumps) / z.numel(), rel=0.02
    )
    assert mean_total_variation(problem, 0.0) == ((), ())


# --- what comes back -----------------------------------------------------------------

SMALL = {
    "dlg": {"iterations": 4},
    "idlg": {"iterations": 4},
    "inverting-gradients": {"iterations": 40},
    "gradinversion": {"iterations": 30, "restarts": 3},
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("relaxation", ["identity", "projection", "box"])
def test_reported_objective_is_the_one_of_the_returned_point(name, relaxation):
    world = make_world(EventSpec.image(1, 6, 6), (0, 2))
    problem = make_problem(world)
    attack = build(
        "attack",
        {"name": name, "relaxation": relaxation, **SMALL[name]},
    )
    answer = attack(problem, 5)
    again = attack.objective(problem, answer.inputs, answer.targets)
    assert answer.objective == again
    assert 0 <= float(answer.inputs.min()) <= float(answer.inputs.max()) <= 1
    if name == "inverting-gradients" and relaxation != "identity":
        assert answer.objective == pytest.approx(
            min(p.objective for p in answer.trace), rel=1e-4
        )


@pytest.mark.parametrize("name", PRESETS)
def test_trace_starts_with_the_objective_of_the_explicit_start(name):
    world = make_world(EventSpec.image(1, 6, 6), (0, 2))
    problem = make_problem(world)
    attack = build("attack", {"name": name, **SMALL[name]})
    x0 = torch.rand(2, 1, 6, 6, generator=generator(8))
    answer = attack.run_from(problem, 0, x0)
    first = attack.objective(problem, x0, world.batch.targets)
    assert answer.trace[0].objective == pytest.approx(first, rel=1e-5)
    assert answer.trace[0].iteration == 0
    with pytest.raises(InvalidInput, match="start has shape"):
        attack.run_from(problem, 0, x0[:1])


@pytest.mark.parametrize("seed", range(3))
def test_joint_labels_are_the_optimised_ones(seed):
    world = make_world(EventSpec.vector(6), (2,), dtype=torch.float64)
    problem = make_problem(world, "eavesdropper")
    assert problem.targets is UNKNOWN
    attack = DeepLeakage(iterations=12, restarts=2)
    answer = attack(problem, seed)
    assert answer.targets.dtype == torch.int64
    assert answer.targets.tolist() == [2]
    assert attack.objective(problem, answer.inputs, answer.targets) == answer.objective
    assert any("optimised" in note for note in answer.notes)


def test_free_targets_answer_with_their_current_value():
    units = InUnits(EventSpec.vector(2), Units())
    z, free = torch.zeros(1, 2), torch.tensor([[0.0, 3.0, 1.0]], requires_grad=True)
    sought = Unknowns(units, units.spec, outputs=3)
    assert torch.allclose(sought.candidate([z, free]).targets, free.softmax(-1))
    with torch.no_grad():
        free.copy_(torch.tensor([[5.0, 3.0, 1.0]]))
    assert sought.answer([z, free]).targets.tolist() == [0]
    real = Unknowns(units, units.spec, outputs=1, classes=False)
    point = [torch.zeros(2, 2), torch.tensor([[1.5], [2.5]])]
    assert real.candidate(point).targets.tolist() == [1.5, 2.5]


def test_idlg_reads_the_label_and_recovers_a_gray_image():
    world = make_world(dtype=torch.float64)
    problem = make_problem(world, "eavesdropper")
    answer = ImprovedDeepLeakage(iterations=30)(problem)
    assert answer.targets.tolist() == [2]
    assert float((answer.inputs - world.batch.inputs).square().mean()) < 1e-4
    assert any("inferred" in note for note in answer.notes)


def test_inverting_gradients_beats_the_centre_of_the_range():
    world = make_world(EventSpec.image(1, 8, 8))
    problem = make_problem(world)
    answer = InvertingGradients(iterations=600, total_variation=1e-4)(problem)
    error = float((answer.inputs - world.batch.inputs).square().mean())
    assert error < 0.1 * float((0.5 - world.batch.inputs).square().mean())


def test_gradinversion_beats_the_centre_of_the_range():
    world = make_world(EventSpec.image(1, 6, 6), batch_norm=True)
    problem = make_problem(world, "statistics-known")
    answer = GradInversion(iterations=200, restarts=2)(problem)
    error = float((answer.inputs - world.batch.inputs).square().mean())
    assert error < 0.3 * float((0.5 - world.batch.inputs).square().mean())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    "spec",
    [EventSpec.image(1, 5, 6), EventSpec.image(3, 6, 5), EventSpec.vector(7)],
    ids=["gray", "colour", "vector"],
)
@pytest.mark.parametrize("labels", ["hard", "soft", "unknown"])
def test_every_kind_of_data_label_and_precision(name, spec, labels):
    soft = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.0, 0.5, 0.5, 0.0]])
    for dtype, mode in ((torch.float64, "train"), (torch.float32, "eval")):
        world = make_world(
            spec,
            (1, 3),
            dtype=dtype,
            mode=mode,
            targets=soft.to(dtype) if labels == "soft" else None,
            batch_norm=True,
        )
        threat = "eavesdropper" if labels == "unknown" else "labels-known"
        attack = build("attack", {"name": name, "iterations": 2, "restarts": 2})
        answer = attack(make_problem(world, threat))
        assert answer.inputs.shape == world.batch.inputs.shape
        assert answer.inputs.dtype == dtype
        assert bool(torch.isfinite(answer.inputs).all())
        assert len(answer.targets) == 2
        said = any("Total variation is left out" in note for note in answer.notes)
        expects = name in ("inverting-gradients", "gradinversion")
        assert said == (expects and spec.kind == "vector")


def test_regression_targets_are_optimised_as_numbers():
    spec = EventSpec.vector(4)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-1, 1, generator=generator(4))
    inputs = torch.rand(1, 4, generator=generator(5)).double()
    batch = Batch(inputs, torch.tensor([0.3], dtype=torch.float64), spec)
    world = World(Task(net, loss="mse"), batch, Mechanism(Gradient()))
    answer = DeepLeakage(iterations=60, restarts=3)(make_problem(world, "eavesdropper"))
    assert answer.targets.shape == (1,)
    assert float(answer.targets) == pytest.approx(0.3, abs=1e-3)
    assert torch.allclose(answer.inputs, inputs, atol=1e-3)


# --- budgets, outcomes, randomness ---------------------------------------------------


def test_restarts_are_chosen_by_the_smallest_objective():
    problem = make_problem(make_world())
    objectives = []
    for restarts in (1, 4):
        attack = InvertingGradients(iterations=30, restarts=restarts)
        answer = attack(problem, 3)
        objectives.append(answer.objective)
        last = {p.restart: p.objective for p in answer.trace}
        assert len(last) == restarts
        lowest = min(p.objective for p in answer.trace)
        assert answer.objective == pytest.approx(lowest, rel=1e-3)
    assert objectives[1] <= objectives[0]


def test_time_budget_ends_a_run():
    problem = make_problem(make_world())
    attack = InvertingGradients(iterations=10**6, seconds=0.5, restarts=2)
    answer = attack(problem)
    assert answer.outcome is Outcome.TIME_LIMIT
    assert 0.4 < answer.cost.cpu_seconds < 1.5
    assert {p.restart for p in answer.trace} == {0, 1}


def test_standstill_after_the_last_decay_ends_a_run():
    problem = make_problem(make_world())
    patient = InvertingGradients(iterations=400, patience=5, stall=0.5)
    answer = patient(problem)
    assert answer.outcome is Outcome.CONVERGED
    last = answer.trace[-1].iteration
    assert 350 <= last < 400  # the last decay is at 7/8 of the run


def test_a_standstill_ends_the_seeds_of_a_group():
    problem = make_problem(make_world())
    options = {"iterations": 80, "restarts": 2, "patience": 3}
    answer = GradInversion(stall=0.5, **options)(problem)
    assert answer.outcome is Outcome.CONVERGED
    assert {p.restart for p in answer.trace} == {0, 1}
    # The cosine counts as settled after 7/8 of the run.
    assert 70 < max(p.iteration for p in answer.trace) < 80


def test_an_exact_fit_needs_no_further_restart():
    world = make_world(dtype=torch.float64)
    attack = DeepLeakage(iterations=50, restarts=4)
    answer = attack.run_from(make_problem(world), 0, world.batch.inputs)
    assert answer.outcome is Outcome.TOLERANCE
    assert {p.restart for p in answer.trace} == {0}


def test_exact_fit_ends_a_run_by_tolerance():
    world = make_world(dtype=torch.float64)
    problem = make_problem(world)
    answer = DeepLeakage(iterations=50).run_from(problem, 0, world.batch.inputs)
    assert answer.outcome is Outcome.TOLERANCE
    assert answer.cost.evaluations <= 5


def test_divergence_is_told_and_the_best_point_comes_back():
    problem = make_problem(make_world())
    wild = DeepLeakage(iterations=3, line_search=False, step_size=1e6)
    answer = wild(problem, 1)
    assert answer.outcome is Outcome.DIVERGED
    assert bool(torch.isfinite(answer.inputs).all())
    assert answer.objective is not None
    assert math.isfinite(answer.objective)


def test_trace_is_thin_and_ends_with_the_last_iterate():
    problem = make_problem(make_world())
    answer = InvertingGradients(iterations=600, patience=600)(problem)
    iterations = [p.iteration for p in answer.trace]
    assert len(iterations) <= 251
    assert iterations[0] == 0
    assert iterations[-1] == 600
    assert answer.cost.evaluations == 602  # steps, last iterate, returned point


def test_same_key_same_bits_even_after_pickling_and_no_global_randomness():
    problem = make_problem(make_world(EventSpec.image(1, 4, 4), (0, 1)), "eavesdropper")
    before = torch.random.get_rng_state()
    for name in PRESETS:
        attack = build("attack", {"name": name, **SMALL[name]})
        one, two = attack(problem, 7), attack(pickle.loads(pickle.dumps(problem)), 7)
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.targets, two.targets)
        assert one.objective == two.objective
        assert not torch.equal(one.inputs, attack(problem, 8).inputs)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    ("option", "value"),
    [("iterations", 0), ("restarts", -1), ("seconds", 0.0), ("step_size", -1.0)],
)
def test_options_out_of_range_are_refused(name, option, value):
    with pytest.raises(InvalidInput, match=option):
        build("attack", {"name": name, option: value})


def test_unknown_options_and_kinds_are_refused():
    with pytest.raises(InvalidInput, match="start"):
        build("attack", {"name": "dlg", "start": "zeros"})
    with pytest.raises(InvalidInput, match="noise"):
        build("attack", {"name": "gradinversion", "noise": -0.1})


def test_a_group_agrees_more_than_independent_seeds():
    problem = make_problem(make_world(EventSpec.image(1, 6, 6)))
    options = {"iterations": 60, "restarts": 3, "noise": 0.0}
    spreads = []
    for weight in (0.0, 100.0):
        design = GradInversion(group=weight, **options).design(problem)
        assert (design.group is None) == (weight == 0)
        spreads.append(_final_spread(problem, design))
    assert spreads[1] < 0.5 * spreads[0]


def _final_spread(problem, design) -> float:
    from exhume.attacks.engine import driver
    from exhume.problem.reconstruction import Stopwatch

    watch, task = Stopwatch(), design.objective.task
    sought = Unknowns.of(task, problem.spec, design.relaxation, problem.targets)
    runs = [
        driver._begin(problem, design, sought, 0, i, None, watch)[0] for i in range(3)
    ]
    driver._race(runs, design, math.inf, watch)
    final = torch.stack([run.inputs() for run in runs])
    return float((final - final.mean(dim=0)).square().mean())


def test_gradinversion_prefers_exact_statistics_and_says_if_there_are_none():
    world = make_world(EventSpec.image(1, 6, 6), batch_norm=True, mode="train")
    exact = make_problem(world, "statistics-known")
    running = make_problem(world, "labels-known")
    attack = GradInversion(
        gradient=1e-12, total_variation=0.0, euclidean_norm=0.0, batch_norm=1.0
    )
    truth = (world.batch.inputs, world.batch.targets)
    assert attack.objective(exact, *truth) == pytest.approx(0.0, abs=1e-9)
    assert attack.objective(running, *truth) > 1e-3
    plain = make_problem(make_world())
    notes = GradInversion(iterations=1, restarts=1)(plain).notes
    assert any("BatchNorm" in note for note in notes)
