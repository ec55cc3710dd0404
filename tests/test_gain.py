"""What an attack gains over guessing: planted leaks are found, guesses are not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from exhume.runs.records import TrialResult
from exhume.trials.gain import Gain, gain, recovery_ratio, seed_test
from report_pages import spec

GUESS = 0.07


def planted(share, *, examples=40, dimension=64, seed=0, garbage=5.0):
    """Exact on a share of the examples, worse than guessing on the others."""
    random = np.random.default_rng(seed)
    exact = random.permutation(examples) < round(share * examples)
    guesses = GUESS * random.chisquare(20, examples) / 20
    errors = np.where(exact, 1e-9, garbage * guesses)
    return Gain(tuple(errors), tuple(guesses), tuple(range(examples)), dimension)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_an_exact_leak_of_a_few_examples_is_a_leak(share):
    found = planted(share)
    assert found.level == "leak"
    assert found.recovered == round(share * 40)
    low, high = found.interval
    assert low <= share <= high
    assert found.kept == pytest.approx(1 - share, abs=1e-6)


def test_the_interval_is_that_of_clopper_and_pearson():
    low, high = planted(0.2).interval
    assert low == pytest.approx(stats.beta.ppf(0.025, 8, 33))
    assert high == pytest.approx(stats.beta.ppf(0.975, 9, 32))


def test_more_recovered_examples_come_first_then_the_smaller_share_that_is_kept():
    few, many = planted(0.2), planted(0.5)
    near = Gain((0.02,) * 40, (GUESS,) * 40, tuple(range(40)), 64)
    far = Gain((0.05,) * 40, (GUESS,) * 40, tuple(range(40)), 64)
    assert sorted([far, few, near, many], key=lambda g: g.order) == [
        many, few, near, far
    ]  # fmt: skip


def null(random, dimension, kind, seeds=6, batch=2):
    """An attack that reads nothing: its own draw or its own mean, of a known prior."""
    n = seeds * batch
    truth = random.normal(size=(n, dimension))
    guess = (truth**2).mean(1)
    answer = {"draw": 1.0, "mean": 0.1}[kind] * random.normal(size=(n, dimension))
    errors = ((truth - answer) ** 2).mean(1)
    return Gain(
        tuple(errors), tuple(guess), tuple(np.repeat(range(seeds), batch)), dimension
    )


@pytest.mark.parametrize("dimension", [1, 2, 5, 64])
@pytest.mark.parametrize("kind", ["draw", "mean"])
def test_what_reads_nothing_is_no_leak(dimension, kind):
    random = np.random.default_rng(dimension)
    levels = [null(random, dimension, kind).level for _ in range(400)]
    leaks = sum(level in ("leak", "slight") for level in levels)
    # 5 % of 400, and three standard deviations.
    assert leaks <= 20 + 13


def test_a_better_guess_is_told_by_its_placebo():
    random = np.random.default_rng(0)
    seeds = tuple(range(30))
    guesses = 0.07 * random.chisquare(30, 30) / 30
    errors = 0.4 * guesses * random.chisquare(60, 30) / 60
    placebos = tuple(0.4 * guesses * random.chisquare(60, 30) / 60)
    alone = Gain(tuple(errors), tuple(guesses), seeds, 64)
    beside = Gain(tuple(errors), tuple(guesses), seeds, 64, placebos)
    assert alone.level == "leak"
    assert alone.needs_placebo
    assert beside.level == "unsure"
    far = Gain(tuple(errors), tuple(guesses), seeds, 64, tuple(3 * e for e in errors))
    assert far.level == "leak"


def test_a_placebo_explains_only_what_guesses_do_not():
    """Where chance may explain the gain, the placebo is not to blame."""
    random = np.random.default_rng(2)
    errors = tuple(0.07 * np.exp(0.5 * random.normal(size=12) - 0.1))
    found = Gain(errors, (GUESS,) * 12, tuple(range(12)), 64, errors)
    assert found.level == "unsure"
    assert not found.is_guess
    near = Gain((0.03,) * 12, (GUESS,) * 12, tuple(range(12)), 64, (0.03,) * 12)
    assert (near.level, near.is_guess) == ("unsure", True)


def test_the_test_is_that_of_student_on_means_of_seeds():
    random = np.random.default_rng(1)
    errors, others = np.exp(random.normal(size=(2, 12)))
    seeds = np.repeat(range(4), 3)
    means = np.log(errors / others).reshape(4, 3).mean(1)
    own = seed_test(tuple(errors), tuple(others), tuple(seeds))
    assert own == pytest.approx(stats.ttest_1samp(means, 0, alternative="less").pvalue)


def test_one_seed_proves_nothing_short_of_recovery():
    found = Gain((0.05, 0.05), (GUESS, GUESS), (0, 0), 64)
    assert found.level == "unsure"
    assert Gain((1e-6, 0.5), (GUESS, GUESS), (0, 0), 64).level == "leak"
    assert Gain((0.08, 0.09), (GUESS, GUESS), (0, 0), 64).level == "chance"


def test_more_tests_at_once_ask_for_more_evidence():
    random = np.random.default_rng(5)
    errors = tuple(0.06 * np.exp(0.05 * random.normal(size=5)))
    one = Gain(errors, (GUESS,) * 5, tuple(range(5)), 64)
    p = seed_test(one.errors, one.guesses, one.seeds)
    assert one.level == "slight"
    many = Gain(errors, (GUESS,) * 5, tuple(range(5)), 64, tests=math.ceil(0.06 / p))
    assert many.level == "unsure"


@pytest.mark.parametrize("dimension", [1, 2, 4, 8, 16])
def test_luck_recovers_no_example_in_most_audits(dimension):
    """Draws of the prior itself: the luckiest of what reads nothing."""
    random = np.random.default_rng(0)
    truth, answer = random.normal(size=(2, 500, 40, dimension))
    ratio = ((truth - answer) ** 2).sum(2) / (truth**2).sum(2)
    lucky = (ratio <= recovery_ratio(dimension, 40)).any(1)
    assert lucky.mean() < 0.05


def test_no_estimate_is_no_gain_and_an_exact_guess_leaves_none():
    missing = Gain((math.inf,) * 4, (GUESS,) * 4, tuple(range(4)), 64)
    assert (missing.level, missing.kept) == ("chance", 1.0)
    exact = Gain((0.0,) * 4, (0.0,) * 4, tuple(range(4)), 64)
    assert (exact.level, exact.recovered) == ("chance", 0)


def result(seed, errors):
    wanted = spec("dlg", seed=seed, batch_size=len(errors))
    return TrialResult(spec=wanted, status="done", scores={"mse": errors})


def test_trials_are_paired_by_seed_with_the_best_guess_of_each_example():
    attack = [result(s, [0.01, None]) for s in (0, 1, 7)]
    guesses = [
        [result(0, [0.3, 0.2]), result(1, [0.1, 0.5])],
        [result(0, [0.2, 0.4]), result(1, [0.2, 0.2])],
    ]
    found = gain(attack, guesses)
    assert found is not None
    assert found.errors == (0.01, math.inf, 0.01, math.inf)
    assert found.guesses == (0.2, 0.2, 0.1, 0.2)
    assert found.seeds == (0, 0, 1, 1)
    assert gain(attack, []) is None
