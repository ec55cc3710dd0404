"""Each flag is raised where it should be, and nowhere else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from exhume.audit import TrialResult, TrialSpec
from exhume.audit.flags import find_flags

SPEC = TrialSpec(data={"name": "faces"}, model={"name": "mlp"})
NOISE = ({"name": "gaussian-noise", "std": 0.1},)
CHANCE = 0.05


def trial(attack="gauss-newton", mse=1e-3, *, seed=0, defenses=(), **fields):
    """An attack that leaves nothing to flag but its seed."""
    facts = {"gradient_norm": 1.0, "prior_fit": 1.0, "ordered_mse": mse}
    given = {
        "adaptive": True,
        "outcome": ("CONVERGED", "."),
        "objective": 1.0,
        "objective_at_truth": 2.0,
        "trace": ((0, 0, 0.0, 9.0), (0, 5, 1.0, 1.0)),
        "facts": facts | fields.pop("facts", {}),
        **fields,
    }
    threat = given.pop("threat", "labels-known")
    return TrialResult(
        spec=replace(
            SPEC,
            attack={"name": attack},
            seed=seed,
            defenses=tuple(defenses),
            threat=threat,
        ),
        status="done",
        scores={"mse": [mse]},
        **given,
    )


def baseline(mse=CHANCE, **given):
    return trial(
        "prior-mean", mse, baseline=True, outcome=("CLOSED_FORM", "."), **given
    )


def bound(mse, *, seed=0, defenses=NOISE, error=0.0, **record):
    return TrialResult(
        spec=replace(SPEC, bound={"name": "b"}, seed=seed, defenses=tuple(defenses)),
        status="done",
        bound={"name": "b", "mse": mse, "mse_standard_error": error, **record},
    )


def kinds(results, of):
    return {f.kind for f in find_flags(results).get(of.spec.id, ())} - {"single-seed"}


def flag(results, of, kind):
    return next(f for f in find_flags(results)[of.spec.id] if f.kind == kind)


def test_a_clean_result_has_no_flag():
    results = [trial(seed=s) for s in range(3)] + [baseline(seed=s) for s in range(3)]
    assert find_flags(results) == {}


def test_under_optimised():
    bad = trial(mse=0.02, objective=1.0, objective_at_truth=0.9)
    assert kinds([bad, baseline()], bad) == {"under-optimised"}
    # Within the tolerance, or with a right answer, there is nothing to complain of.
    close = trial(mse=0.02, objective=1.0, objective_at_truth=0.995)
    assert kinds([close, baseline()], close) == set()
    right = trial(mse=1e-5, objective=1e-6, objective_at_truth=1e-9)
    assert kinds([right, baseline()], right) == set()


def test_under_optimised_under_noise_is_seen_beside_the_noise_of_many_coordinates():
    # Of 3e6 noisy coordinates a likelihood of 1.5e6 is the same for every candidate;
    # an attack that never left its start missed a fall of ten thousand nats.
    start = ((0, 0, 0.0, 1.51e6),)
    stuck = trial(mse=0.02, objective=1.51e6, objective_at_truth=1.5e6, trace=start)
    assert kinds([stuck, baseline()], stuck) == {"under-optimised"}
    best = trial(mse=0.02, objective=1.499e6, objective_at_truth=1.5e6, trace=start)
    assert kinds([best, baseline()], best) == set()


def test_an_objective_of_rounding_alone_is_not_under_optimised():
    # The truth has exactly zero; what the answer has left is rounding.
    start = ((0, 0, 0.0, 7e30),)
    bad = trial(mse=0.02, objective=1.7, objective_at_truth=0.0, trace=start)
    assert kinds([bad, baseline()], bad) == {"not-identifiable"}


@pytest.mark.parametrize("answer", [math.inf, math.nan])
def test_a_diverged_objective_is_under_optimised(answer):
    bad = trial(mse=0.02, objective=answer, objective_at_truth=0.9)
    assert kinds([bad, baseline()], bad) == {"under-optimised"}


def test_negative_objectives_are_compared_rightly():
    bad = trial(mse=0.02, objective=-1.0, objective_at_truth=-2.0)
    good = trial(mse=0.02, objective=-2.0, objective_at_truth=-1.0)
    assert kinds([bad, baseline()], bad) == {"under-optimised"}
    assert kinds([good, baseline()], good) == set()


def test_not_identifiable():
    bad = trial(mse=0.02, objective=1e-8, objective_at_truth=1e-8)
    assert kinds([bad, baseline()], bad) == {"not-identifiable"}
    right = trial(mse=1e-4, objective=1e-8, objective_at_truth=1e-8)
    assert kinds([right, baseline()], right) == set()
    far = trial(mse=0.02, objective=1e-3, objective_at_truth=1e-3)
    assert kinds([far, baseline()], far) == set()


def test_chance_is_a_warning_undefended_and_a_note_defended():
    bare = trial(mse=CHANCE)
    assert flag([bare, baseline()], bare, "chance").severity == "warning"
    defended = trial(mse=CHANCE, defenses=NOISE)
    results = [defended, baseline(defenses=NOISE)]
    assert flag(results, defended, "chance").severity == "note"
    # The chance level of another seed does not count.
    assert kinds([bare, baseline(mse=0.01, seed=1), baseline(mse=1.0)], bare) == set()


def test_non_adaptive_names_who_ignores_the_defense():
    ignores = trial(defenses=NOISE, adaptive=False)
    assert "does not use it" in flag([ignores], ignores, "non-adaptive").sentence
    blind = trial(defenses=NOISE, adaptive=False, threat="defense-unknown")
    assert "hides the defense" in flag([blind], blind, "non-adaptive").sentence
    bare, chance = trial(adaptive=False), baseline(defenses=NOISE, adaptive=False)
    assert kinds([bare], bare) == kinds([chance], chance) == set()


def test_gradient_near_zero():
    bad = trial(facts={"gradient_norm": 1e-5})
    assert kinds([bad], bad) == {"gradient-near-zero"}


def test_masking():
    closed = trial("analytic-linear", 1e-8, outcome=("CLOSED_FORM", "."))
    iterated = trial("dlg", 0.01)
    assert kinds([closed, iterated], iterated) == {"masking"}
    assert kinds([closed, iterated], closed) == set()
    # One good iterated attack is enough to show the leak.
    good = trial("gauss-newton", 1e-8)
    assert kinds([closed, iterated, good], iterated) == set()


def test_private_scale_leak():
    reads = trial("covariance-aware", 0.001, defenses=NOISE)
    other = trial("gauss-newton", 0.01, defenses=NOISE)
    assert kinds([reads, other], reads) == {"private-scale-leak"}
    assert kinds([reads, other], other) == {"private-scale-leak"}
    assert kinds([reads], reads) == set()
    close = trial("gauss-newton", 0.0015, defenses=NOISE)
    assert kinds([reads, other, close], reads) == set()


def test_leaks_more():
    bare, defended = trial(mse=0.04), trial(mse=0.01, defenses=NOISE)
    assert kinds([bare, defended], defended) == {"leaks-more"}
    assert kinds([bare, defended], bare) == set()
    exact = [trial(mse=1e-18), trial(mse=1e-20, defenses=NOISE)]
    assert kinds(exact, exact[1]) == set()
    # Only seeds that both have are compared.
    assert kinds([trial(mse=0.04, seed=1), defended], defended) == set()


def test_single_seed_and_time_limit():
    one = trial(outcome=("TIME_LIMIT", "."))
    assert {f.kind for f in find_flags([one])[one.spec.id]} == {
        "single-seed",
        "time-limited",
    }


def attacked(errors, **given):
    return [trial(mse=e, seed=s, defenses=NOISE, **given) for s, e in enumerate(errors)]


def floors(value, count, **given):
    return [bound(value, seed=s, **given) for s in range(count)]


BELOW = [0.008, 0.009, 0.0085, 0.0088, 0.0082, 0.0091]


def test_a_mean_error_below_a_bound_is_an_alarm():
    attacks = attacked(BELOW)
    results = attacks + floors(0.01, 6)
    found = [flag(results, a, "below-bound") for a in attacks]
    assert {f.severity for f in found} == {"alarm"}
    assert "over 6 seeds" in found[0].sentence
    assert "0.0086" in found[0].sentence


@pytest.mark.parametrize("binds", ["UNBIASED_ATTACKS", "NO_PRIOR", "NOBODY"])
def test_a_bound_that_does_not_bind_every_attack_is_never_an_alarm(binds):
    attacks = attacked(BELOW)
    weaker = attacks + floors(0.01, 6, binds=binds)
    assert kinds(weaker, attacks[0]) == set()
    assert "below-bound" in kinds(
        attacks + floors(0.01, 6, binds="EVERY_ATTACK"), attacks[0]
    )


def test_a_probability_is_not_compared_with_an_error():
    attacks = attacked(BELOW)
    risks = [
        replace(b, bound={"name": "r", "quantity": "q", "value": 1.0, "binds": "X"})
        for b in floors(0.01, 6)
    ]
    everyone = [
        replace(b, bound={**(b.bound or {}), "binds": "EVERY_ATTACK"}) for b in risks
    ]
    assert kinds(attacks + risks, attacks[0]) == set()
    assert kinds(attacks + everyone, attacks[0]) == set()


def test_an_attacker_who_is_told_more_than_the_release_may_be_below_the_bound():
    attacks = [
        replace(a, spec=replace(a.spec, threat="statistics-known"))
        for a in attacked(BELOW)
    ]
    results = attacks + floors(0.01, 6)
    assert all("below-bound" not in kinds(results, a) for a in attacks)


def test_below_a_bound_whose_prior_does_not_fit_is_a_note():
    attacks = attacked(BELOW, facts={"prior_fit": 1.3})
    found = flag(attacks + floors(0.01, 6), attacks[0], "below-bound")
    assert found.severity == "note"
    assert "does not fit (its check gives 1.3 instead of 1)" in found.sentence
    unchecked = [
        replace(a, facts={"ordered_mse": e})
        for a, e in zip(attacks, BELOW, strict=True)
    ]
    found = flag(unchecked + floors(0.01, 6), unchecked[0], "below-bound")
    assert found.severity == "note"
    assert "not checked" in found.sentence


@pytest.mark.parametrize(
    ("errors", "value", "error"),
    [
        ([0.002], 0.01, 0.0),  # one error is a draw, not a mean
        ([0.008, 0.009], 0.01, 0.0),  # two say little: Student's t, not 3 σ
        ([0.001, 0.02, 0.002, 0.015, 0.004], 0.01, 0.0),  # scatter
        (BELOW, 0.01, 0.005),  # the bound itself is uncertain
        (BELOW, 0.005, 0.0),  # above
    ],
)
def test_an_insignificant_difference_is_no_alarm(errors, value, error):
    attacks = attacked(errors)
    results = attacks + floors(value, len(errors), error=error)
    assert kinds(results, attacks[0]) == set()


def test_batches_without_known_order_are_not_compared_with_a_bound():
    attacks = [
        replace(a, facts={"prior_fit": 1.0, "gradient_norm": 1.0})
        for a in attacked(BELOW)
    ]
    assert kinds(attacks + floors(0.01, 6), attacks[0]) == set()


def test_a_bound_of_another_setting_does_not_count():
    attacks = attacked(BELOW)
    other = floors(0.01, 6, defenses=({"name": "gaussian-noise", "std": 0.2},))
    assert kinds(attacks + other, attacks[0]) == set()


def test_metrics_that_score_an_attack_do_not_take_its_bound_away():
    scored = ({"name": "my_lab.hit_rate"},)
    attacks = [
        replace(a, spec=replace(a.spec, metrics=scored)) for a in attacked(BELOW)
    ]
    assert "below-bound" in kinds(attacks + floors(0.01, 6), attacks[0])


def test_unfinished_trials_have_no_flags():
    failed = replace(trial(mse=CHANCE), status="failed", scores={})
    absent = replace(bound(0.1), status="not-applicable", bound=None)
    assert find_flags([failed, absent, baseline()]) == {}


@pytest.mark.parametrize(
    ("facts", "raised"),
    [
        ({"training_loss": 0.3}, True),
        ({"training_loss": 1e-8}, False),
        ({"stationarity": 0.8}, True),
        ({"stationarity": 0.02}, False),
        ({}, False),
    ],
    ids=str,
)
def test_weights_that_were_hardly_trained(facts, raised):
    own = trial("kkt", facts=facts)
    assert ("not-trained" in kinds([own], own)) is raised
    assert kinds([chance := baseline(facts=facts)], chance) == set()
