"""Equal utility: calibration, caching, resuming, frontiers, advice and the report."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import fields, replace
from statistics import fmean

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import exhume
from exhume.audit.report.results import scenarios
from exhume.audit.settings import AuditSettings, Checked
from exhume.cli import app
from exhume.compare import CompareSettings, load, run
from exhume.compare.advice import advise
from exhume.compare.calibration import (
    FIRST_ROUND,
    Settled,
    Step,
    mean_interval,
    next_position,
    rounds,
    settle,
)
from exhume.compare.collect import _point
from exhume.compare.family import Family, families
from exhume.compare.frontier import (
    Floor,
    Frontier,
    Point,
    Strongest,
    error_interval,
    rivals,
    strongest,
)
from exhume.compare.leaderboard import boards
from exhume.compare.places import (
    at_budget,
    at_point,
    between_seeds,
    crossing,
    interpolate,
    places,
)
from exhume.compare.remarks import Ranked, cautions, dropped
from exhume.compare.report.export import to_json
from exhume.compare.report.page import page, summary
from exhume.compare.wording import (
    mse_of_psnr,
    parse_error,
    parse_loss,
    shown,
    told_loss,
)
from exhume.config import build, describe
from exhume.errors import InvalidInput
from exhume.problem.law import Law
from exhume.problem.mechanism import Mechanism
from exhume.problem.tree import flatten
from exhume.report.words import number
from exhume.runs.executor import Job
from exhume.runs.records import TrialResult, TrialSpec
from exhume.runs.store import Store
from exhume.trials.one_step import (
    first_order_loss,
    inner,
    isotropic_equivalent,
    noise_along,
    u1_u2,
)
from exhume.trials.training import accuracy, falling_rate, mean_loss, train
from exhume.trials.trial import run_trial
from exhume.trials.utility import UtilityResult, UtilitySpec, UtilityStore, measure

NOISE = {"name": "gaussian-noise", "std": {"weakest": 0.01, "strongest": 3.0}}
CLIP = {"name": "clipping", "max_norm": {"weakest": 10, "strongest": 1.0}}
TINY = CompareSettings(
    title="Tiny",
    model={"name": "mlp", "hidden": [16], "activation": "tanh"},
    defenses=[NOISE, CLIP],
    budgets=[0.1, 0.2],
    tolerance=0.03,
    training_seeds=2,
    steps=80,
    learning_rate=0.02,
    held_out=300,
    evaluations=9,
    attacks=["analytic-linear"],
    seeds=2,
    executor="serial",
)


QUICK = replace(
    TINY,
    defenses=[NOISE],
    budgets=[0.2],
    steps=20,
    seeds=1,
    training_seeds=1,
    bounds=[],
    prior=None,
)


def family(given=NOISE) -> Family:
    checked = Checked()
    (found,) = families(replace(TINY, defenses=[given]), checked)
    checked.report()
    return found


def walk(curve, budgets, tolerance=0.01, most=12, kind=None) -> list[Step]:
    """Search a synthetic curve: position → utility loss."""
    kind = kind or family()
    steps: list[Step] = []
    while asked := rounds(steps, budgets, tolerance, most):
        for strength in dict.fromkeys(kind.strength(p) for p in asked):
            p = kind.position(strength)
            assert strength not in {s.strength for s in steps}
            steps.append(Step(p, strength, (curve(p),)))
    return steps


# Families


def test_strengths_are_even_on_their_scale_and_short_to_write():
    log = family()
    assert [log.strength(p) for p in (0, 0.5, 1)] == [0.01, 0.173, 3.0]
    rest = family(
        {
            "name": "pruning",
            "ratio": {"weakest": 0.5, "strongest": 0.995, "scale": "remainder"},
        }
    )
    assert [rest.strength(p) for p in (0, 0.5, 1)] == [0.5, 0.95, 0.995]
    assert rest.told(0.9771) == "ratio 97.71 %"
    assert rest.label == "magnitude pruning"
    assert rest.at(0.7)[0]["ratio"] == 0.7
    linear = family(
        {"name": "gaussian-noise", "std": {"weakest": 0, "strongest": 1} | LINEAR}
    )
    assert linear.strength(0.25) == 0.25
    for kind in (log, rest, linear):
        for p in (0.0, 0.3, 1.0):
            assert kind.position(kind.strength(p)) == pytest.approx(p, abs=0.01)


LINEAR = {"scale": "linear"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "gaussian-noise", "std": 1.0}, "has 0 ranges"),
        ({"name": "gaussian-noise", "std": {"weakest": 1}}, "not two numbers"),
        ({"name": "gaussian-noise", "std": {"weakest": 0, "strongest": 1}}, "not fit"),
        ({"name": "gaussian-noise", "std": {"weakest": 1, "strongest": 1}}, "differ"),
        (
            {
                "name": "gaussian-noise",
                "std": {"weakest": 1, "strongest": 2, "scale": "cubic"},
            },
            "the scale is 'cubic'",
        ),
        ({"name": "gausian-noise", "std": {"weakest": 1, "strongest": 2}}, "did you"),
        ({"name": "gaussian-noise", "std": {"weakest": 1, "strongest": -2}}, "not fit"),
    ],
)
def test_a_wrong_family_is_refused_before_anything_runs(tmp_path, given, message):
    with pytest.raises(InvalidInput, match=message):
        run(replace(TINY, defenses=[given]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_families_are_told_apart():
    with pytest.raises(InvalidInput, match="'Gaussian noise' is given twice"):
        run(replace(TINY, defenses=[NOISE, NOISE]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"budgets": []},
        {"budgets": [0.1, 0.1]},
        {"budgets": [-0.1, 0.1]},
        {"defenses": []},
        {"steps": 0},
        {"tolerance": 0.0},
        {"training_seeds": 0},
        {"evaluations": 1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        replace(TINY, **wrong)


# Calibration


@pytest.mark.parametrize("steep", [1, 4, 12])
@pytest.mark.parametrize("budget", [0.02, 0.1, 0.6])
def test_the_search_finds_the_root_of_a_monotone_curve(steep, budget):
    def curve(p: float) -> float:
        return p**steep

    steps = walk(curve, [budget], tolerance=1e-2, most=40)
    found = settle(steps, budget, 1e-2)
    assert found.within
    assert found.step is not None
    assert abs(curve(found.step.position) - budget) <= 1e-2
    root = budget ** (1 / steep)
    slope = steep * root ** (steep - 1)
    assert abs(found.step.position - root) <= 2 * 1e-2 / slope + 0.01
    assert len(steps) <= 16


def test_budgets_share_what_was_measured():
    budgets = [0.1, 0.2, 0.5]
    together = walk(lambda p: p**3, budgets)
    alone = [walk(lambda p: p**3, [budget]) for budget in budgets]
    assert len(together) < sum(map(len, alone))
    assert all(settle(together, b, 0.01).within for b in budgets)


def test_a_bracket_with_a_diverged_end_is_halved():
    low, high = Step(0.2, 1.0, (0.0,)), Step(0.6, 2.0, (math.inf,))
    assert next_position(low, high, 0.1) == pytest.approx(0.4)
    flat = Step(0.6, 2.0, (1e6,))
    assert next_position(low, flat, 0.1) == pytest.approx(0.2 + 0.2 * 0.4)


def test_a_search_that_cannot_end_stops_at_its_limit():
    steps = walk(lambda p: 0.0 if p < 0.5 else 1.0, [0.5], tolerance=0.01, most=7)
    assert len(steps) == 7
    found = settle(steps, 0.5, 0.01)
    assert not found.within
    assert found.step is not None
    assert found.step.loss == 0.0
    assert "tolerance" in found.reason


def test_budgets_out_of_reach_are_said_to_be():
    never = settle(walk(lambda p: 0.04 * p, [0.1]), 0.1, 0.01)
    assert (never.within, never.reason) == (False, "the budget is not reached")
    assert never.step is not None
    assert never.step.position == 1.0
    always = settle(walk(lambda p: 0.5 + p, [0.1]), 0.1, 0.01)
    assert (always.step, always.within) == (None, False)
    assert len(walk(lambda p: 0.5 + p, [0.1])) == len(FIRST_ROUND)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 4))
    hits = [low <= 0 <= high for low, high in map(mean_interval, draws.tolist())]
    assert abs(fmean(hits) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)
    assert mean_interval([1.0]) == (-math.inf, math.inf)


# Utility

SPEC = UtilitySpec(
    data={"name": "digits"},
    model={"name": "mlp", "hidden": [16], "activation": "tanh"},
    loss="cross-entropy",
    mode="eval",
    dtype="float32",
    classes=0,
    observation={"name": "gradient"},
    batch_size=4,
    defenses=(),
    seed=0,
    kind="training",
    steps=150,
    optimiser="adam",
    learning_rate=0.02,
    held_out=300,
    public_examples=100,
    recalibrate=0,
)
STRONG = ({"name": "gaussian-noise", "std": 1.0},)


def test_training_learns_and_noise_costs():
    plain, noisy = measure(SPEC), measure(replace(SPEC, defenses=STRONG))
    assert plain.status == noisy.status == "done"
    assert plain.values["accuracy"] > 0.8
    assert plain.values["accuracy"] - noisy.values["accuracy"] > 0.2
    assert plain.values["loss"] < noisy.values["loss"]


def test_a_measurement_is_a_pure_function_of_its_spec():
    noisy = replace(SPEC, defenses=STRONG, steps=20)
    assert measure(noisy).values == measure(noisy).values
    other = replace(noisy, seed=1)
    assert measure(other).values != measure(noisy).values
    assert len({SPEC.id, noisy.id, other.id}) == 3


def test_recalibration_is_read():
    random = ({"name": "pruning", "kind": "random", "ratio": 0.9},)
    once = replace(SPEC, defenses=random, steps=30)
    again = replace(once, recalibrate=10)
    assert measure(once).status == measure(again).status == "done"


@pytest.mark.parametrize("name", ["pruning", "dropout", "gaussian-noise"])
def test_every_step_of_a_training_has_a_mask_of_its_own(monkeypatch, name):
    options = {"std": 0.1} if name == "gaussian-noise" else {"ratio": 0.5}
    if name == "pruning":
        options["kind"] = "random"
    spec = replace(SPEC, defenses=({"name": name, **options},), steps=20)
    drawn = measure(spec).values
    monkeypatch.setattr(exhume.Mechanism, "redraw", lambda self, plans, key: plans)
    assert (measure(spec).values == drawn) == (name == "gaussian-noise")


def moved_by(ratio, steps, per_tensor=False) -> torch.Tensor:
    """Train by sgd through random pruning; return where a weight moved."""
    net = torch.nn.Linear(40, 5).double()
    x = torch.randn(30, 40, generator=torch.Generator().manual_seed(2)).double()
    batch = exhume.Batch(x, torch.arange(30) % 5, exhume.EventSpec.vector(40))
    options = {"ratio": ratio, "kind": "random", "per_tensor": per_tensor}
    defense = exhume.defense("pruning", **options)
    trained = train(
        exhume.Task(net),
        exhume.Mechanism(exhume.observations.Gradient(), [defense]),
        batch,
        None,
        steps=steps,
        batch_size=4,
        optimiser="sgd",
        learning_rate=0.1,
        recalibrate=0,
        key=0,
    )
    before = flatten({n: p.detach() for n, p in net.named_parameters()})
    return flatten(trained.parameters()).detach() != before


@pytest.mark.parametrize("per_tensor", [False, True])
def test_random_masks_cover_the_model_in_time_and_are_nested_in_the_ratio(per_tensor):
    one, many = moved_by(0.9, 1, per_tensor), moved_by(0.9, 20, per_tensor)
    assert int(one.sum()) in (20, 21)  # of 205
    missed = 1 - float(many.double().mean())
    assert abs(missed - 0.9**20) < 5 * (0.9**20 / 205) ** 0.5
    weaker = moved_by(0.5, 1, per_tensor)
    assert bool(weaker[one].all())


def test_what_goes_wrong_becomes_a_sentence():
    few = measure(replace(SPEC, held_out=5000))
    assert few.status == "failed"
    assert "leave 0 to train on" in few.reason


def test_training_is_the_optimiser_on_the_released_values():
    torch_task = exhume.Task(torch.nn.Linear(3, 2))
    x = torch.linspace(-1, 1, 30).reshape(10, 3)
    batch = exhume.Batch(x, torch.arange(10) % 2, exhume.EventSpec.vector(3))
    mechanism = exhume.Mechanism(exhume.observations.Gradient())
    trained = train(
        torch_task,
        mechanism,
        batch,
        None,
        steps=1,
        batch_size=10,
        optimiser="sgd",
        learning_rate=0.5,
        recalibrate=0,
        key=0,
    )
    gradient = torch_task.gradient(batch.inputs, batch.targets)
    for name, weight in torch_task.parameters().items():
        expected = weight.detach() - 0.5 * gradient[name]
        torch.testing.assert_close(trained.parameters()[name].detach(), expected)
    assert falling_rate(0.5, 0, 4) == 0.5
    assert falling_rate(0.5, 3, 4) == 0.125
    right = trained.predict(x, trained.parameters()).argmax(1) == batch.targets
    assert accuracy(trained, batch) == pytest.approx(float(right.double().mean()))
    value = trained.loss_value(x, batch.targets, trained.parameters())
    assert mean_loss(trained, batch) == pytest.approx(value.item(), rel=1e-6)
    with torch.no_grad():
        trained.parameters()["bias"].fill_(math.nan)
    assert accuracy(trained, batch) == 0.0
    assert mean_loss(trained, batch) == math.inf


def test_diverged_training_ends_early_and_counts_as_all_lost():
    huge = replace(SPEC, defenses=({"name": "gaussian-noise", "std": 1e38},))
    found = measure(replace(huge, optimiser="sgd", learning_rate=1e3))
    assert found.values == {"accuracy": 0.0, "loss": math.inf}


def test_momentum_and_a_constant_rate_are_those_of_the_textbook():
    # Sutskever et al. (2013): m ← 0.9 m + g, θ ← θ − η (g + 0.9 m)
    task = exhume.Task(torch.nn.Linear(3, 2).double(), loss="cross-entropy")
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, generator=g, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0])
    batch = exhume.Batch(x, y, exhume.EventSpec.vector(3))
    trained = train(
        task,
        exhume.Mechanism(exhume.observations.Gradient()),
        batch,
        None,
        steps=3,
        batch_size=2,
        optimiser="nesterov",
        learning_rate=0.1,
        recalibrate=0,
        key=0,
        schedule="constant",
        order="fixed",
    )
    weight, bias = (p.detach().clone() for p in task.parameters().values())
    moments = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for rows in ([0, 1], [2, 3], [0, 1]):
        leaves = [weight.requires_grad_(), bias.requires_grad_()]
        logits = x[rows] @ leaves[0].T + leaves[1]
        value = torch.nn.functional.cross_entropy(logits, y[rows])
        slopes = torch.autograd.grad(value, leaves)
        moments = [0.9 * m + s for m, s in zip(moments, slopes, strict=True)]
        steps = [s + 0.9 * m for m, s in zip(moments, slopes, strict=True)]
        weight, bias = (
            (p - 0.1 * s).detach() for p, s in zip(leaves, steps, strict=True)
        )
    found = list(trained.parameters().values())
    torch.testing.assert_close(found[0].detach(), weight)
    torch.testing.assert_close(found[1].detach(), bias)


def test_the_loss_in_train_mode_is_that_of_the_parts_asked_for():
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2)).double()
    task = exhume.Task(net, loss="cross-entropy", mode="train")
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(6, 2, generator=g, dtype=torch.float64), torch.arange(6) % 2
    batch = exhume.Batch(x, y, exhume.EventSpec.vector(2))
    halves = [mean_loss(task, batch.select(torch.arange(i, i + 3))) for i in (0, 3)]
    assert mean_loss(task, batch, 3) == pytest.approx(sum(halves) / 2, rel=1e-12)
    assert mean_loss(task, batch) != pytest.approx(sum(halves) / 2, rel=1e-3)


def test_a_measurement_trains_on_as_many_examples_as_asked():
    few = measure(replace(SPEC, examples=10_000))
    assert few.status == "failed"
    assert "fewer than the 10000 that are asked for" in few.reason


# One step


def one_step(*defenses):
    task = exhume.Task(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh()))
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    spec = exhume.EventSpec.vector(6)
    batches = [
        exhume.Batch(x[i : i + 2], torch.tensor([0, i % 4]), spec) for i in (0, 2, 4)
    ]
    mechanism = exhume.Mechanism(exhume.observations.Gradient(), defenses)
    return u1_u2(task, mechanism, batches, batches[0], 0), task, batches


def test_u2_of_isotropic_noise_is_its_std():
    (u1, u2), *_ = one_step(exhume.defense("gaussian-noise", std=0.3))
    assert u1 == pytest.approx(0.0, abs=1e-6)
    assert u2 == pytest.approx(0.3, rel=1e-6)


def test_u1_of_pruning_is_the_energy_that_it_removes():
    (u1, u2), task, batches = one_step(exhume.defense("pruning", ratio=0.5))
    kept, whole = 0.0, 0.0
    for batch in batches:
        g = flatten(task.gradient(batch.inputs, batch.targets)).double().square()
        kept += float(g.sort(descending=True).values[: (len(g) + 1) // 2].sum())
        whole += float(g.sum())
    assert u1 == pytest.approx(1 - kept / whole, rel=1e-6)
    assert u2 == pytest.approx(0.0, abs=1e-6)
    assert first_order_loss([3.0], [4.0]) == 0.25
    assert isotropic_equivalent([4.0], [1.0]) == 2.0


def test_u1_of_random_pruning_is_the_ratio_and_its_masks_count_in_u2():
    defense = exhume.defense("pruning", ratio=0.5, kind="random")
    (u1, u2), task, batches = one_step(defense)
    g2 = [
        flatten(task.gradient(b.inputs, b.targets)).double().square() for b in batches
    ]
    # ⟨g, O⟩ = Σ m_j g_j², with half of the m_j one, drawn without replacement.
    whole = sum(float(t.sum()) for t in g2)
    n = len(g2[0])
    exact = sum(0.25 * n / (n - 1) * float((t - t.mean()).square().sum()) for t in g2)
    deviation = math.sqrt(exact) / whole
    assert abs(u1 - 0.5) < 4 * deviation / math.sqrt(8)
    assert u2 == pytest.approx(math.sqrt(exact / whole), rel=0.5)


def test_unbiased_rounding_costs_second_order_utility_alone():
    rounding = exhume.defense("quantisation", kind="stochastic", bits=2)
    (u1, u2), *_ = one_step(rounding)
    assert abs(u1) < 0.2
    assert u2 > 0.01


def test_noise_along_a_gradient_is_the_quadratic_form():
    from exhume.problem.covariance import LowRank

    g = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3.0])}
    variance = {"a": torch.tensor([0.5, 0.25]), "b": torch.tensor(2.0)}
    assert noise_along(g, Law(variance=variance)) == pytest.approx(0.5 + 1 + 18)
    assert inner(g, g) == pytest.approx(14.0)
    factor = torch.tensor([[1.0], [1.0], [0.5]], dtype=torch.float64)
    own = {n: v.double().expand(g[n].shape) for n, v in variance.items()}
    covariance = LowRank.of(own, factor)
    law = Law().plus_noise({}, covariance=covariance)
    flat = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    expected = 19.5 + float(flat @ factor @ factor.T @ flat)
    assert noise_along(g, law) == pytest.approx(expected)


# Frontiers and advice


def point(strength, loss, error, floor=None, chance=False) -> Point:
    kind = family()
    position = 0.0 if strength is None else kind.position(strength)
    found = Strongest(
        "gauss-newton",
        error,
        (error / 2, error * 2),
        {"gauss-newton": error},
        chance,
        5,
    )
    reason = "" if floor else "there is no noise"
    bound = Floor("b", floor, 0.0, reason)
    return Point(strength, position, loss, (loss, loss), found, bound, in_order=found)


NOBODY = point(None, 0.0, 1e-9)
LOW, HIGH = point(0.1, 0.01, 0.01, 0.004), point(1.0, 0.1, 0.04, 0.02)
FRONTIER = Frontier(family(), (), (LOW, HIGH))


def measured(strength, loss, errors) -> Point:
    """Return a point with the errors of its seeds."""
    found = strongest({"gauss-newton": list(map(float, errors))}, frozenset())
    return replace(point(strength, loss, 1.0), strongest=found)


def ask(min_error, max_loss, frontiers=(FRONTIER,), undefended=NOBODY, chance=0.06):
    return advise(
        undefended,
        frontiers,
        min_error=min_error,
        max_loss=max_loss,
        utility="accuracy",
        tolerance=0.005,
        chance=chance,
    )


def test_interpolation_is_geometric_and_stays_inside():
    assert interpolate(0.01, 0.04, 0.5) == pytest.approx(0.02)
    assert interpolate(0.01, 0.04, 0.0) == pytest.approx(0.01)
    assert interpolate(0.0, 0.04, 0.5) == 0.0
    half = [p for p in places(FRONTIER, 0.055) if len(p.points) == 2]
    assert [p.loss for p in half] == [pytest.approx(0.055)]
    assert half[0].error == pytest.approx(0.02)
    assert half[0].floor == pytest.approx(math.sqrt(0.004 * 0.02))


def test_nothing_is_said_beyond_what_was_measured():
    assert places(FRONTIER, 0.005) == []
    assert max(p.loss for p in places(FRONTIER, 0.5)) == 0.1
    assert crossing(FRONTIER, 0.05, 1.0) is None
    found = crossing(FRONTIER, 0.001, 1.0)
    assert found is not None
    assert found.loss == 0.01


def test_advice_is_the_least_loss_that_reaches_the_error():
    found = ask(0.02, 0.09)
    assert found.place is not None
    assert found.place.error == pytest.approx(0.02)
    assert found.place.loss == pytest.approx(0.055)
    assert found.stack == ({**FRONTIER.family.at(0.316)[0]},)
    text = str(found)
    assert "use Gaussian noise, std 0.316" in text
    # A number between two bounds is not one.
    assert "bounds interpolate to 0.00894, which itself bounds nothing;" in text
    assert "no attack goes below" not in text
    assert "5.5 % of accuracy lost" in text
    assert "interpolated between std 0.1 and std 1" in text
    assert "which includes errors below what you ask" in text


def test_advice_at_a_measured_point_is_not_called_interpolated():
    text = str(ask(0.01, 0.02))
    assert "use Gaussian noise, std 0.1 (" in text
    assert (
        "on data that follow the prior no attack goes below 0.004 on average;" in text
    )
    assert "interpolated" not in text


def test_advice_says_that_no_defense_does_and_what_comes_nearest():
    none = ask(0.03, 0.05)
    assert (none.holds, none.stack) == (False, ())
    text = str(none)
    assert "no defense tried does" in text
    assert "strongest attack reaches 0.0185" in text
    assert "It takes at least 8.1 % of accuracy" in text
    assert "No defense can: guessing" in str(ask(0.07, 0.5))
    small = str(ask(0.03, 0.001))
    assert "Nothing was measured at so small a loss; the least was 1.0 %" in small


def test_advice_says_that_no_defense_is_needed():
    found = ask(0.005, 0.01, undefended=point(None, 0.0, 0.01))
    assert found.holds
    assert found.stack == ()
    assert "no defense is needed" in str(found)


def test_equal_losses_are_broken_by_the_error_and_others_are_named():
    better = Frontier(family(CLIP), (), (point(2.0, 0.012, 0.03), point(1, 0.1, 0.03)))
    found = ask(0.01, 0.1, (FRONTIER, better))
    assert found.family == "clipping"
    assert "of 0.5 %: Gaussian noise (std 0.1, 1.0 % lost)." in str(found)
    assert "There is no bound because there is no noise." in str(found)


@pytest.mark.parametrize("spread", [0.1, 0.5])
@pytest.mark.parametrize("seeds", [3, 8])
def test_the_interval_of_the_family_that_looks_best_covers_its_error(spread, seeds):
    """Twelve families with one true error: the luckiest is recommended."""
    random = np.random.default_rng(seeds)
    logs = 0.7 * random.normal(size=(1000, 1, seeds))
    logs = logs + 0.7 * random.normal(size=(1000, 12, seeds))
    errors = 0.05 * np.exp(spread * logs - 0.98 * spread**2 / 2)
    best = [rows[rows.mean(1).argmax()].tolist() for rows in errors]
    ends = [error_interval(row, tests=12) for row in best]
    assert fmean(low <= 0.05 <= high for low, high in ends) >= 0.93
    if spread < 0.2:  # the skew of the others makes up for the choice
        alone = [error_interval(row) for row in best]
        assert fmean(low <= 0.05 <= high for low, high in alone) < 0.93
    sure = [
        not rivals([(str(i), row) for i, row in enumerate(sorted(rows.tolist()))][::-1])
        for rows in errors[:200]
    ]
    assert fmean(sure) <= 0.1


def test_advice_says_how_sure_it_is_that_the_first_is_the_best():
    seeds = (0.05, 0.052, 0.048, 0.051)
    best = Frontier(family(), (), (measured(0.1, 0.02, seeds),))
    worse = measured(1.0, 0.02, [e - 0.01 for e in seeds])
    close = measured(1.0, 0.02, [0.03, 0.07, 0.04, 0.055])
    clear = ask(0.01, 0.1, (best, Frontier(family(CLIP), (), (worse,))))
    assert "It keeps more error than the 1 of equal cost (95 % sure)." in str(clear)
    level = ask(0.01, 0.1, (best, Frontier(family(CLIP), (), (close,))))
    assert level.rivals == ("clipping",)
    assert "Of equal cost, clipping may keep as much" in str(level)
    assert "for all 2 families at once" in str(level)
    assert level.interval == error_interval(seeds, tests=2)


@pytest.mark.parametrize(("error", "loss"), [(0.0, 0.1), (-1, 0.1), (0.1, -0.1)])
def test_questions_without_sense_are_refused(error, loss):
    with pytest.raises(InvalidInput, match="expected an error"):
        ask(error, loss)


def test_the_strongest_attack_has_the_smallest_mean_error():
    errors = {"weak": [0.5, 0.6], "odd": [0.1, 0.9], "guess": [0.4, 0.4]}
    found = strongest(errors, frozenset({"guess"}))
    assert found is not None
    assert (found.attack, found.chance, found.seeds) == ("guess", True, 2)
    assert found.error == pytest.approx(0.4)
    assert found.errors["odd"] == pytest.approx(0.5)
    assert found.interval == (pytest.approx(0.4), pytest.approx(0.4))
    assert strongest({}, frozenset()) is None
    assert error_interval([0.1]) == (0.0, math.inf)
    assert error_interval([0.1, 0.9])[0] == 0.0


def test_the_interval_of_skewed_errors_covers_nearly_as_often():
    draws = np.random.default_rng(0).lognormal(sigma=0.5, size=(4000, 6))
    truth = math.exp(0.125)
    ends = [error_interval(row) for row in draws.tolist()]
    share = fmean(low <= truth <= high for low, high in ends)
    assert 0.9 < share < 0.94


def ranked(found: Point, label="Gaussian noise") -> Ranked:
    return Ranked(label, found, at_point(found), FRONTIER)


def test_errors_below_the_bound_are_explained():
    inside, outside = point(0.1, 0.1, 0.02, 0.03), point(0.2, 0.1, 0.01, 0.03)
    above = point(0.3, 0.1, 0.04, 0.03)
    near, far = cautions([ranked(p) for p in (above, inside, outside)])
    assert near.startswith("Below its bound, but the interval includes it: Gaussian")
    assert far.startswith("Below its bound by more than the interval: Gaussian")
    assert cautions([ranked(above)]) == []


def test_only_errors_in_order_are_compared_with_a_bound():
    above, below = point(0.1, 0.1, 0.04, 0.03), point(0.1, 0.1, 0.02, 0.03)
    assert above.strongest is not None
    # The best assignment may fall below a bound on the error in order.
    assert cautions([ranked(replace(below, in_order=above.strongest))]) == []
    unknown = replace(below, in_order=None)
    (told,) = cautions([ranked(unknown)])
    assert told.startswith("Not to be compared with its bound: the error of Gaussian")
    # That of another attack says nothing about the strongest one.
    other = replace(above.strongest, errors={"guess": 0.04})
    (same,) = cautions([ranked(replace(below, in_order=other))])
    assert same == told


# Ranking at the budget


def bracketed(low, high, budget, chosen) -> Frontier:
    """Return a frontier of two points, one of them calibrated for a budget."""
    step = Step(chosen.position, chosen.strength or 0.0, (chosen.loss,))
    settled = Settled(budget, step, within=True)
    return Frontier(family(), (settled,), (low, high))


def test_the_error_is_that_at_the_budget_where_two_points_bracket_it():
    place = at_budget(bracketed(LOW, HIGH, 0.055, LOW), 0.055)
    assert place is not None
    assert place.interpolated
    assert (place.loss, place.error) == (pytest.approx(0.055), pytest.approx(0.02))
    assert place.floor == pytest.approx(math.sqrt(0.004 * 0.02))
    outside = at_budget(bracketed(LOW, HIGH, 0.105, HIGH), 0.105)
    assert outside is not None
    assert (outside.loss, outside.error, outside.points) == (0.1, 0.04, (HIGH,))
    exact = at_budget(bracketed(LOW, HIGH, 0.01, LOW), 0.01)
    assert exact is not None
    assert (exact.interpolated, exact.error) == (False, 0.01)
    nobody = replace(FRONTIER, settled=(Settled(0.055, None, within=False),))
    assert at_budget(nobody, 0.055) is None


def test_errors_per_seed_have_the_interpolated_error_as_their_mean():
    first, second = [0.01, 0.03, 0.02], [0.1, 0.05, 0.3]
    for share in (0.0, 0.3, 1.0):
        found = between_seeds(first, second, share)
        error = interpolate(fmean(first), fmean(second), share)
        assert fmean(found) == pytest.approx(error)
    assert between_seeds(first, second, 0.0) == pytest.approx(first)
    assert between_seeds(first, second, 1.0) == pytest.approx(second)
    # To first order that is the error of a seed, had it been the mean.
    step, start = 1e-6, interpolate(fmean(first), fmean(second), 0.3)
    moved = interpolate(fmean(first) * (1 + step), fmean(second), 0.3)
    value = between_seeds([fmean(first) * (1 + step)], [fmean(second)], 0.3)[0]
    assert value - start == pytest.approx(moved - start, rel=1e-4)
    assert between_seeds([0.0, 0.0], [0.1, 0.2], 0.5) == (0.0, 0.0)
    assert between_seeds([], [], 0.5) == ()


def test_a_point_near_the_budget_is_ranked_where_it_would_be_at_the_budget(finished):
    one = point(0.1, 0.02, 0.03), point(1, 0.05, 0.032)
    two = point(0.1, 0.02, 0.01), point(1, 0.032, 0.04)
    frontiers = (
        replace(bracketed(*one, 0.03, one[0]), family=family(CLIP)),
        bracketed(*two, 0.03, two[1]),
    )
    settings = replace(finished.settings, budgets=[0.03], tolerance=0.01)
    comparison = replace(finished, settings=settings, frontiers=frontiers)
    (board,) = boards(comparison)
    # As measured the steep one leads by 0.04 to 0.03, but at a larger loss.
    assert [row.measured for row in board.rows] == ["0.04", "0.03"]
    assert board.rows[0].interpolated
    at = 0.01 * 4 ** (0.01 / 0.012)
    assert board.rows[0].error == number(at)
    assert board.rows[0].loss == "3.2 %"
    record = json.loads(to_json(comparison))
    place = record["frontiers"][1]["at_budgets"][0]["place"]
    assert place["error"] == pytest.approx(at)
    assert place["between"] == [0.02, 0.032]
    assert (place["interpolated"], place["floor_is_bound"]) == (True, False)


def test_a_bound_between_two_points_is_not_called_a_bound(finished):
    near = bracketed(LOW, HIGH, 0.055, LOW)
    settings = replace(finished.settings, budgets=[0.055], tolerance=0.05)
    comparison = replace(finished, settings=settings, frontiers=(near,))
    (board,) = boards(comparison)
    assert board.rows[0].between == "≈ 0.00894, not a bound"
    assert board.rows[0].bound.startswith("0.004 ±")
    assert "≈ 0.00894, not a bound" in page(comparison)
    # 0.005 was measured there, more than twice as much is said at the budget.
    assert LOW.strongest is not None
    wide = replace(LOW, strongest=replace(LOW.strongest, error=0.005))
    far = replace(near, points=(wide, HIGH))
    (board,) = boards(replace(comparison, frontiers=(far,)))
    assert any("more than a factor of 2" in told for told in board.remarks)


def test_rivals_are_those_whose_difference_seed_by_seed_includes_nothing():
    common = [0.1, 0.5, 0.9, 0.3]
    best = [c + gap for c, gap in zip(common, (0.02, 0.021, 0.019, 0.02), strict=True)]
    noisy = [0.12, 0.2, 1.4, 0.05]
    # Their intervals overlap by far; the difference is clear all the same.
    assert error_interval(common)[1] > fmean(best)
    assert rivals([("best", best), ("other", common)]) == ()
    assert rivals([("best", best), ("other", noisy)]) == ("other",)
    assert rivals([("best", best), ("twin", best)]) == ("twin",)
    assert rivals([("best", best), ("nothing finished", ())]) == ("nothing finished",)
    assert rivals([("best", [0.2]), ("one seed", [0.1])]) == ("one seed",)
    assert rivals([]) == ()


def test_rivals_are_named_as_often_as_the_level_says():
    rng = np.random.default_rng(1)
    common = rng.normal(size=(4000, 1))
    pairs = common + 0.1 * rng.normal(size=(4000, 2 * 5)).reshape(2, 4000, 5)
    named = [
        bool(rivals([("a", a), ("b", b)])) for a, b in zip(*pairs.tolist(), strict=True)
    ]
    assert abs(fmean(named) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


# Public data


def test_defenses_see_as_many_public_examples_under_attack_as_in_training(
    finished, monkeypatch
):
    with Store(finished.folder / "attacks" / "results.sqlite", create=False) as store:
        spec = next(r.spec for r in store.results() if r.spec.defenses)
    assert spec.public_examples == TINY.public_examples
    seen = []
    calibrate = Mechanism.calibrate

    def watched(self, task, public, key):
        seen.append(public)
        return calibrate(self, task, public, key)

    monkeypatch.setattr(Mechanism, "calibrate", watched)
    noisy = {"name": "optimal-gradient-noise", "std": 0.1}
    fresh = replace(spec, defenses=(noisy,), attack={"name": "prior-mean"}, bound=None)
    few, other = run_trial(fresh), run_trial(replace(fresh, public_examples=30))
    assert few.status == other.status == "done"
    assert [len(public) for public in seen] == [TINY.public_examples, 30]
    # The prior, and so the guess, is that of all the others.
    assert few.facts["public_examples"] > 5 * TINY.public_examples
    assert few.scores == other.scores
    again = run_trial(replace(fresh, seed=1, public_examples=30))
    assert again.status == "done"
    assert not torch.equal(seen[-1].inputs, seen[-2].inputs)


# Trials that failed


def trial(attack, seed, status, mse=None, ordered=None, size=1) -> TrialResult:
    spec = TrialSpec(
        data={"name": "digits"},
        model={"name": "mlp"},
        attack={"name": attack},
        seed=seed,
        batch_size=size,
    )
    return TrialResult(
        spec=spec,
        status=status,
        reason="" if status == "done" else "it broke.",
        baseline=attack == "prior-mean",
        scores={} if mse is None else {"mse": [mse] * size},
        facts={} if ordered is None else {"ordered_mse": ordered},
    )


def collected(*results: TrialResult) -> Point:
    settings = AuditSettings(attacks=["gauss-newton"], data={"name": "digits"})
    (scenario,) = scenarios(settings, results)
    return _point(scenario, (), None, 0.0, 0.0, (0.0, 0.0))


GUESSES = tuple(trial("prior-mean", seed, "done", 0.5) for seed in (0, 1))


def test_an_attack_that_is_exact_on_some_examples_is_no_harmless_one():
    """Worse than guessing on average, and yet it has two of three examples."""
    mixed = [
        replace(trial("gauss-newton", s, "done"), scores={"mse": [0.0, 9.0, 0.0]})
        for s in (0, 1)
    ]
    guesses = [
        replace(trial("prior-mean", s, "done"), scores={"mse": [0.3, 0.6, 0.9]})
        for s in (0, 1)
    ]
    found = collected(*guesses, *mixed)
    assert found.strongest is not None
    assert found.strongest.attack == "gauss-newton"
    assert found.strongest.error == pytest.approx(0.2)
    assert found.strongest.guesses == pytest.approx((0.6,))


def test_a_guess_stands_in_for_what_does_not_apply_but_not_for_what_failed():
    first = trial("gauss-newton", 0, "done", 0.1)
    declined = collected(*GUESSES, first, trial("gauss-newton", 1, "not-applicable"))
    assert declined.strongest is not None
    assert declined.strongest.per_seed == (0.1, 0.5)
    assert declined.dropped == {}
    broken = collected(*GUESSES, first, trial("gauss-newton", 1, "failed"))
    assert broken.strongest is not None
    assert broken.strongest.attack == "prior-mean"
    assert set(broken.strongest.errors) == {"prior-mean"}
    assert broken.dropped == {"gauss-newton": "it broke."}
    told = cautions([ranked(broken, "pruning")])[-1]
    assert told.startswith(
        "Left out for pruning: gauss-newton, of which a trial failed"
    )
    assert "(it broke)" in told
    assert dropped("pruning", [declined]) == []


def test_errors_in_order_are_collected_for_larger_batches():
    guesses = [trial("prior-mean", s, "done", 0.5, 0.5, size=2) for s in (0, 1)]
    paired = [trial("gauss-newton", s, "done", 0.1, 0.2, size=2) for s in (0, 1)]
    found = collected(*guesses, *paired)
    assert found.strongest is not None
    assert found.in_order is not None
    assert (found.strongest.error, found.in_order.error) == (0.1, 0.2)
    mixed = [paired[0], trial("gauss-newton", 1, "done", 0.1, None, size=2)]
    unknown = collected(*guesses, *mixed)
    assert unknown.in_order is not None
    assert set(unknown.in_order.errors) == {"prior-mean"}
    single = collected(*GUESSES)
    assert single.in_order == single.strongest


def test_units_are_read_and_written():
    assert parse_loss("3%") == parse_loss("0.03") == 0.03
    assert parse_error("20dB") == pytest.approx(0.01) == mse_of_psnr(20)
    assert parse_error("0.02") == 0.02
    assert told_loss("accuracy", 0.031) == "3.1 % of accuracy"
    assert shown("loss", 0.25) == "0.25"
    for read in (parse_loss, parse_error):
        with pytest.raises(InvalidInput, match="'lots'"):
            read("lots")


# Whole comparisons


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(TINY, out=tmp_path_factory.mktemp("compare") / "run")


def test_equal_utility_is_equal_within_the_tolerance(finished):
    listed = boards(finished)
    assert any(board.rows for board in listed)
    for budget in TINY.budgets:
        for frontier in finished.frontiers:
            found = frontier.at(budget)
            if found is not None:
                assert abs(found.loss - budget) <= TINY.tolerance


def test_the_loss_is_that_of_training_seed_by_seed(finished):
    frontier = finished.frontiers[0]
    chosen = next(p for p in frontier.points if p.loss > 0)
    with UtilityStore(finished.folder / "utility.sqlite", create=False) as store:
        values = {
            (str(r.spec.defenses), r.spec.seed): r.values for r in store.results()
        }
    stack = str(frontier.family.at(chosen.strength))
    lost = [
        values["()", seed]["accuracy"] - values[stack, seed]["accuracy"]
        for seed in TINY.training_seed_list
    ]
    assert chosen.loss == pytest.approx(fmean(lost))


def test_families_within_the_intervals_are_called_level(finished):
    twins = (
        finished.frontiers[0],
        replace(finished.frontiers[0], family=family(CLIP)),
    )
    comparison = replace(finished, frontiers=twins)
    (board,) = [b for b in boards(comparison) if b.budget == 0.1]
    assert board.rivals == ("clipping",)
    told = next(s for s in summary(comparison) if board.title in s)
    assert "of the differences, clipping may be as good" in told


def test_a_family_that_cannot_lose_the_budget_is_told(finished):
    assert finished.frontiers[1].at(0.2) is None
    told = [r for board in boards(finished) for r in board.remarks]
    assert any(r.startswith("Clipping never costs as much: at most") for r in told)


def test_a_second_run_measures_nothing(finished, monkeypatch):
    def forbidden(spec):
        raise AssertionError(spec)

    monkeypatch.setattr("exhume.trials.utility.MEASURE", Job(forbidden, UtilityResult))
    monkeypatch.setattr("exhume.trials.trial.run_trial", forbidden)
    again = run(TINY, out=finished.folder)
    assert again.frontiers == finished.frontiers
    assert again.undefended == finished.undefended
    assert load(finished.folder).frontiers == finished.frontiers


def test_a_folder_keeps_every_option_whatever_the_defaults_become(finished):
    kept = CompareSettings.read(finished.folder / "compare.toml")
    text = tomllib.loads((finished.folder / "compare.toml").read_text("utf-8"))
    assert set(text) == {field.name for field in fields(CompareSettings)}
    listed = [("defense", d) for d in kept.defenses]
    listed += [("attack", a) for a in kept.attacks]
    listed += [("bound", b) for b in kept.bounds]
    listed += [(kind, getattr(kept, kind)) for kind in ("data", "model", "prior")]
    for kind, options in listed:
        plain = {
            name: value["weakest"] if isinstance(value, dict) else value
            for name, value in options.items()
        }
        assert set(plain) == {"name", *describe(build(kind, plain))}


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, tmp_path_factory):
    def stop(phase, done, total, what, seconds_left):
        calls.append(what)
        if len(calls) == 4:
            raise KeyboardInterrupt

    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(QUICK, out=tmp_path, progress=stop)
    with pytest.raises(InvalidInput, match="has not finished"):
        load(tmp_path)
    with UtilityStore(tmp_path / "utility.sqlite") as store:
        kept = store.ids()
    assert len(kept) == 3
    done = run(QUICK, out=tmp_path)
    with UtilityStore(tmp_path / "utility.sqlite") as store:
        assert set(store.runs().values()) == {1}
    whole = run(QUICK, out=tmp_path_factory.mktemp("whole"))
    assert done.frontiers == whole.frontiers


def test_a_broken_defense_does_not_end_the_others(tmp_path):
    bad = {**CLIP, "only": ["no-such-*"]}
    settings = replace(QUICK, defenses=[NOISE, bad], utility="u2")
    done = run(settings, out=tmp_path)
    assert done.frontiers[0].points
    assert "matches no tensor" in done.frontiers[1].failure
    (board,) = boards(done)
    assert any("could not be measured" in sentence for sentence in board.remarks)


def test_one_step_utilities_calibrate_without_training(tmp_path):
    settings = replace(QUICK, utility="u2", tolerance=0.002, evaluations=20)
    done = run(settings, out=tmp_path)
    for budget in settings.budgets:
        found = done.frontiers[0].at(budget)
        assert found is not None
        assert found.strength == pytest.approx(budget, abs=0.003)


# Report and command line


def test_the_report_holds_every_part(finished):
    page = finished.report.read_text("utf-8")
    for part in ("frontiers", "boards", "advice", "setting", "reading", "repeat"):
        assert f'id="{part}"' in page
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    record = json.loads((finished.folder / "comparison.json").read_text("utf-8"))
    assert [f["family"] for f in record["frontiers"]] == ["Gaussian noise", "clipping"]
    for frontier, row in zip(
        record["frontiers"], record["leaderboards"][0]["rows"], strict=False
    ):
        assert frontier["points"][0]["privacy"]["steps"] == 1
        assert row["epsilon"] in page
    (noise, clipping) = (f["points"][0]["privacy"] for f in record["frontiers"])
    # Noise on an update whose sensitivity nobody limits promises nothing.
    assert noise["epsilon"] == clipping["epsilon"] == "Infinity"
    before = page
    assert load(finished.folder).report.read_text("utf-8") == before
    assert (finished.folder / "attacks" / "report.html").is_file()


def test_the_command_line_answers(finished, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shell = CliRunner()
    (tmp_path / "own.toml").write_text(
        (finished.folder / "compare.toml").read_text("utf-8"), "utf-8"
    )
    arguments = ["compare", "own.toml", "--out", str(finished.folder)]
    done = shell.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "10.0 % of accuracy lost" in done.output
    assert "Gaussian noise" in done.output
    assert "ε, one release" in done.output
    error = finished.frontiers[0].points[-1].strongest.error
    arguments = ["advise", "--max-loss", "30%", str(finished.folder), "--min-error"]
    asked = shell.invoke(app, [*arguments, str(error / 2)])
    assert asked.exit_code == 0, asked.output
    assert "use " in asked.output
    assert "defenses = [" in asked.output
    refused = shell.invoke(app, [*arguments, "5"])
    assert refused.exit_code == 1
    assert "no defense tried does" in refused.output
    nowhere = shell.invoke(app, [*arguments[:-2], str(tmp_path), "--min-error", "1"])
    assert nowhere.exit_code == 2
    assert "holds no comparison" in nowhere.output


def test_the_embedded_default_is_complete():
    settings = CompareSettings.shipped()
    checked = Checked()
    found = families(settings, checked)
    checked.report()
    assert len(found) == len(settings.defenses)
    assert settings.executor == "processes"
