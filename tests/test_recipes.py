"""Recipes: files, what is reduced, curves at equal loss, a run from end to end."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from exhume.audit.settings import AuditSettings, Checked, expand
from exhume.cli import app
from exhume.compare import CompareSettings
from exhume.compare.calibration import Settled, Step
from exhume.compare.family import families
from exhume.compare.findings import Comparison
from exhume.compare.frontier import Floor, Frontier, Strongest
from exhume.compare.frontier import Point as CalibratedPoint
from exhume.config import validate
from exhume.errors import InvalidInput, UnknownName
from exhume.recipes import load, names, run
from exhume.recipes.agreement import Curve, Point, gain_at_equal_loss, rows
from exhume.recipes.book import folder, placed, reduced
from exhume.recipes.curves import attack_settings, training_specs
from exhume.recipes.page import cells
from exhume.recipes.recipe import Gain, Series, differences, merged
from exhume.recipes.run import _budget_rows
from exhume.runs.store import Store

DIGITS = "optimal-defenses-digits-pruning"
#: a recipe of seconds: smaller than the reduced version of any that ships
TINY = """
title = "Two strengths on digits"
reproduces = "nothing; a test"
bibtex = "@misc{none}"
agreement = "there is nothing to agree with"
budget = "seconds"
source = "made up, by eye"
data = { name = "digits" }

[audit]
batch_size = 2
seeds = 1
model = { name = "mlp", hidden = [8], activation = "tanh" }
attacks = [{ name = "inverting-gradients", iterations = 4 }]
threat = "defense-unknown"
prior = "none"

[training]
examples = 32
public_examples = 8
batch_size = 4
clients = 2
steps = 6
optimiser = "adam"
learning_rate = 1e-2

[[series]]
name = "magnitude pruning"
defense = [{ name = "pruning", ratio = [0.1, 0.5, 0.9] }]
published = [[0.2, 1.0], [0.4, 2.0]]

[[series]]
name = "clipped noise"
defense = [
  { name = "coordinate-clipping", max_abs = 1 },
  { name = "gaussian-noise", std = [0.001, 0.01, 1.0] },
]
training = [
  { name = "coordinate-clipping", max_abs = 0.5 },
  { name = "gaussian-noise", std = [0.001, 0.01, 1.0] },
]
published = [[0.4, 1.0], [0.8, 2.0]]

[reduced]
strengths = 2
training = { steps = 3 }
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return str(path)


@pytest.fixture(params=names())
def name(request):
    return request.param


def sourced(recipe):
    """Give the data a path that need not exist: settings are checked without it."""
    return placed(recipe, "somewhere" if recipe.place else None)


def versions(name):
    full = load(name)
    return [full, reduced(full)[0]]


def test_recipes_are_found_where_the_issue_asks_for_them():
    assert folder() == Path(__file__).parents[1] / "recipes"
    assert DIGITS in names()
    assert len(names()) >= 8


def test_every_setting_of_every_recipe_is_known(name):
    for recipe in versions(name):
        source = sourced(recipe)
        if recipe.compare:
            given = {**recipe.compare, "title": recipe.title, "data": source}
            settings = validate(CompareSettings, given, what=name)
            checked = Checked()
            found = families(settings, checked)
            checked.report()
            assert len(found) == len(settings.defenses)
            shared = {
                n: getattr(settings, n)
                for n in ("data", "model", "attacks", "bounds", "threat", "prior")
            }
            assert expand(AuditSettings(**shared))
        else:
            settings = attack_settings(recipe, name, {"data": source})
            specs = expand(settings)
            stacks = 1 + sum(len(s.strengths) for s in recipe.series)
            assert len({str(spec.defenses) for spec in specs}) == stacks
            trained = training_specs(recipe, settings, source)
            assert len(trained) == stacks
            for listed in trained.values():
                assert len(listed) == recipe.training.seeds


def test_every_recipe_says_what_it_is(name):
    recipe = load(name)
    told = (recipe.reproduces, recipe.agreement, recipe.budget, recipe.source)
    assert all(len(text) > 20 for text in told)
    assert "2411.03746" in recipe.reproduces
    assert recipe.bibtex.startswith("@misc{chen2024optimal")
    assert recipe.corrections
    assert "path" not in recipe.data
    less = reduced(recipe)[1]
    assert less
    assert recipe.budget.startswith("full: ")


def test_published_numbers_are_marked_as_approximate(name):
    recipe = load(name)
    read_off = any(s.published for s in recipe.series) or any(
        gain.published for gain in recipe.gains
    )
    assert read_off == ("by eye" in recipe.source)
    curves = [Curve(s.name, s.option, (), tuple(s.published)) for s in recipe.series]
    for row in rows(curves, Point(None, 1.0, 1.0)) if curves else ():
        assert cells(row)[2].startswith("≈") == (row.published is not None)


def test_published_gain_of_pruning_is_about_two():
    standard, optimal = load("optimal-defenses-cifar10-pruning").series
    gain = gain_at_equal_loss(standard.published, optimal.published)
    assert gain == pytest.approx(2.0, abs=0.4)


def test_listing_needs_no_torch():
    code = (
        "import sys; from exhume.cli import app; app(['recipe', 'list'], "
        "standalone_mode=False); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in names())
    assert "$EXHUME_CIFAR10" in done.stdout
    assert "embedded" in done.stdout


def test_data_that_are_not_there_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("EXHUME_CIFAR10", raising=False)
    recipe = load("optimal-defenses-cifar10-pruning")
    with pytest.raises(InvalidInput, match=r"--data PATH.*EXHUME_CIFAR10"):
        placed(recipe, None)
    monkeypatch.setenv("EXHUME_CIFAR10", str(tmp_path))
    assert placed(recipe, None)["path"] == str(tmp_path)
    assert placed(recipe, "x.npz")["path"] == str(Path("x.npz").resolve())
    with pytest.raises(InvalidInput, match="come with exhume"):
        placed(load(DIGITS), "x")
    with pytest.raises(InvalidInput, match=r"lacks test_batch\.bin"):
        run("optimal-defenses-cifar10-pruning", out=tmp_path / "out")


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(UnknownName, match=f"did you mean '{DIGITS}'"):
        load(DIGITS[:-1])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("steps = 6", "stepz = 6", r"\[training\].*stepz.*did you mean 'steps'"),
        ("batch_size = 4", "batch_size = 5", "multiple of the 2 clients"),
        ("strengths = 2", "strengths = 4", "has 3, so expected 2 to 3"),
        ("[reduced]", "[reduced]\nattacks = 1", "reduced.* has no attacks"),
        ("ratio = [0.1, 0.5, 0.9]", "ratio = 0.1", "has 0 lists of numbers"),
        ("[[0.2, 1.0], [0.4, 2.0]]", "[[0.2, 0.0]]", "a positive loss"),
        ("seeds = 1", "defenses = []", "gives defenses.*elsewhere"),
        (
            'max_abs = 0.5 },\n  { name = "gaussian-noise", std = [0.001, 0.01, 1.0]',
            'max_abs = 0.5 },\n  { name = "gaussian-noise", std = [0.001]',
            "attacks 3 strengths and trains 1",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(tmp_path, old, new, told):
    assert old in TINY
    path = tmp_path / "wrong.toml"
    path.write_text(TINY.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InvalidInput, match=told):
        load(str(path))


def test_a_recipe_has_curves_or_a_comparison_and_gains_of_its_families(tmp_path):
    recipe = load(DIGITS)
    with pytest.raises(InvalidInput, match="it has both"):
        replace(recipe, compare={"defenses": []})
    with pytest.raises(InvalidInput, match="it has neither"):
        replace(recipe, series=[])
    matched = load("optimal-defenses-utility-matched-noise")
    wrong = replace(matched.gains[0], family=9)
    with pytest.raises(InvalidInput, match="family 9 over 1, but there are 4"):
        replace(matched, gains=[wrong])


def test_reduced_settings_merge_and_are_told():
    full = {"seeds": 4, "model": {"name": "x", "width": 8}, "attacks": [{"name": "a"}]}
    less = merged(full, {"model": {"width": 2}, "attacks": [{"iterations": 5}]})
    assert less == {
        "seeds": 4,
        "model": {"name": "x", "width": 2},
        "attacks": [{"name": "a", "iterations": 5}],
    }
    told = differences(full, less)
    assert told == ["model width: 8 → 2", "attacks of a iterations: None → 5"]
    assert differences(full, full) == []


def test_thinning_keeps_the_ends_of_a_series(tiny):
    recipe, told = reduced(load(tiny))
    assert [s.strengths for s in recipe.series] == [[0.1, 0.9], [0.001, 1.0]]
    assert [len(s.trained) for s in recipe.series] == [2, 2]
    assert "training, steps: 6 → 3" in told
    assert "strengths of magnitude pruning: [0.1, 0.5, 0.9] → [0.1, 0.9]" in told
    assert len(told) == 3


def test_series_pair_what_is_attacked_with_what_is_trained(tiny):
    noise = load(tiny).series[1]
    assert noise.option == "std"
    for strength, attacked, trained in zip(
        noise.strengths, noise.attacked, noise.trained, strict=True
    ):
        assert attacked[1] == trained[1] == {"name": "gaussian-noise", "std": strength}
        assert (attacked[0]["max_abs"], trained[0]["max_abs"]) == (1, 0.5)


def power(scale, exponent, losses):
    return [(scale * loss**exponent, loss) for loss in losses]


@given(
    scale=st.floats(0.1, 10),
    exponent=st.floats(-2, 2),
    low=st.floats(0.1, 1),
    shift=st.floats(1.0, 2.5),
)
def test_gain_is_the_factor_between_parallel_curves(scale, exponent, low, shift):
    # Power laws are straight on both logarithms, so nothing is lost by interpolation.
    first = power(1.0, exponent, [low, 2 * low, 3 * low])
    second = power(scale, exponent, [shift * low, 4 * low, 5 * low])
    gain = gain_at_equal_loss(first, second)
    assert gain == pytest.approx(scale, rel=1e-9)
    assert gain_at_equal_loss(second, first) == pytest.approx(1 / scale, rel=1e-9)


def test_gain_averages_only_over_losses_that_both_reach():
    first = [(1.0, 0.01), (1.0, 1.0)]
    # ratios 1 and 4 at the ends of the shared range, straight between: mean 2
    second = [(1.0, 0.1), (4.0, 1.0), (400.0, 100.0)]
    assert gain_at_equal_loss(first, second) == pytest.approx(2, rel=1e-9)
    assert gain_at_equal_loss(first, [(1.0, 2.0), (1.0, 3.0)]) is None
    assert gain_at_equal_loss(first, [(1.0, 0.1)]) is None


def test_points_that_failed_are_told_and_not_averaged():
    ours = (
        Point(0.1, 0.2, 1.0),
        Point(0.2, 0.3, math.inf),
        Point(0.3, None, 2.0, reason="no attack finished"),
        Point(0.4, 0.4, 3.0),
    )
    curve = Curve("a", "ratio", ours, ())
    assert curve.measured == [(0.2, 1.0), (0.4, 3.0)]
    table = {row.quantity: row for row in rows([curve, curve], Point(None, 0.1, 1.0))}
    assert table["a: largest error"].ours == 0.4
    assert table["a: largest error"].note == "not read off"
    assert table["a: largest error"].ratio is None
    assert table["error of a over a, at equal loss"].ours == pytest.approx(1)


def test_a_recipe_runs_resumes_and_writes_what_it_found(tiny, tmp_path):
    out = tmp_path / "out"
    phases = []

    def tell(phase, done, total, what, seconds_left):
        phases.append((phase, done, total))

    done = run(tiny, out=out, executor="serial", progress=tell)
    assert {phase for phase, *_ in phases} == {"attacking", "training"}
    assert [len(curve.ours) for curve in done.curves] == [2, 2]
    table = {row.quantity: row for row in done.rows}
    row = table["error of clipped noise over magnitude pruning, at equal loss"]
    assert row.published == pytest.approx(2)
    with Store(out / "attacks" / "results.sqlite") as store:
        chance = {
            r.spec.attack["name"]: fmean(r.scores["mse"])
            for r in store.results()
            if r.baseline and not r.spec.defenses
        }
    guess = table["guessing without the update: error"].ours
    assert guess == pytest.approx(chance["prior-mean"], rel=1e-5)
    errors = [p.error for p in done.curves[0].ours]
    assert table["magnitude pruning: largest error"].ours == max(errors)
    assert table["magnitude pruning: largest error"].ratio == max(errors) / 0.4
    # noise of 1000 times the strength costs more of the training
    weak, strong = done.curves[1].ours
    assert weak.loss < strong.loss
    record = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    assert record["published_values"] == "approximate"
    assert record["reduced"] == list(done.less)
    assert [r["ours"] for r in record["rows"]] == [r.ours for r in done.rows]
    page = done.report.read_text(encoding="utf-8")
    assert "training, steps: 6 → 3" in page
    assert "≈ 0.4" in page
    for file in ("curves.png", "attacks/report.html", "attacks/results.sqlite"):
        assert (out / file).stat().st_size > 0

    phases.clear()
    again = run(tiny, out=out, executor="serial", progress=tell)
    assert again.rows == done.rows
    # told once per phase, with nothing left to do
    assert [(p, d == t) for p, d, t in phases] == [
        ("attacking", True),
        ("training", True),
    ]


def attacked(strength, loss, error):
    found = Strongest("gauss-newton", error, (error, error), {}, False, 2)
    ends, floor = (loss, loss), Floor("", None, reason="there is no noise")
    return CalibratedPoint(strength, strength, loss, ends, found, floor)


def settled_at(loss):
    return Settled(0.03, Step(0.5, 0.5, (loss,)), within=True)


def test_gains_at_equal_utility_are_those_at_the_budget():
    noise = {"name": "gaussian-noise", "std": {"weakest": 0.01, "strongest": 3.0}}
    settings = CompareSettings(defenses=[noise] * 4, budgets=[0.03], tolerance=0.01)
    (family,) = families(replace(settings, defenses=[noise]), Checked())
    # 0.038 is within the tolerance; the budget is half of the way to it.
    low, high = attacked(0.2, 0.022, 0.01), attacked(0.5, 0.038, 0.04)
    near = attacked(0.5, 0.034, 0.02)
    never = Settled(0.03, None, within=False, reason="even its weakest costs more")
    frontiers = (
        Frontier(family, (settled_at(0.038),), (low, high)),
        Frontier(family, (settled_at(0.034),), (near,)),
        Frontier(family, (never,), (high,)),
        Frontier(family, (settled_at(0.03),), (replace(near, loss=0.03),)),
    )
    folder = Path("none")
    comparison = Comparison(folder, settings, near, frontiers, {}, None, folder)
    gains = [Gain(family=1, over=4), Gain(family=2, over=3)]
    _, *listed = _budget_rows(comparison, gains)
    told = [row.quantity.split(": ")[-1] for row in listed[:4]]
    assert told == [
        "error (gauss-newton, interpolated)",
        "error (gauss-newton, measured at 3.4 %)",
        "error (even its weakest costs more)",
        "error (gauss-newton)",
    ]
    assert [row.ours for row in listed] == [
        pytest.approx(0.02),  # 0.01 and 0.04, halfway in the logarithm; not 0.04
        0.02,
        None,
        0.02,
        pytest.approx(1.0),
        None,
    ]


def test_the_mean_over_parts_is_trained_with(tiny):
    recipe = load(tiny)
    settings = attack_settings(recipe, "tiny", {"data": {"name": "digits"}})
    specs = training_specs(recipe, settings, {"name": "digits"})
    for listed in specs.values():
        for spec in listed:
            assert spec.defenses[-1]["name"] == "secure-aggregation"
            assert spec.defenses[-1]["clients"] == 2
            assert (spec.batch_size, spec.examples, spec.schedule) == (
                4,
                32,
                "constant",
            )


def test_the_command_line_prints_ours_beside_theirs(tiny, tmp_path):
    out = tmp_path / "out"
    command = ["recipe", "run", tiny, "--out", str(out), "--executor", "serial"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "ours / published" in done.output
    assert "training, steps: 6" in done.output
    assert "Published values are approximate: made up, by eye" in done.output
    assert str(out / "recipe.md") in done.output
    missing = CliRunner().invoke(app, ["recipe", "run", "nothing"])
    assert missing.exit_code == 2
    assert "no recipe is called 'nothing'" in missing.output


def test_a_series_needs_one_strength():
    both = {"name": "pruning", "ratio": [0.1], "seeds": [1, 2]}
    with pytest.raises(InvalidInput, match="has 2 lists of numbers"):
        Series(name="a", defense=[both])
