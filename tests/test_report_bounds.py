"""Bounds in the report: whom they bind, maps, who is exposed, ε beside the floor."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from exhume.audit import AuditSettings, run
from exhume.audit.report.bounds import exposure, promises
from exhume.audit.report.gallery import bound_maps, gallery
from exhume.audit.report.plots import error_plots, legend
from exhume.audit.report.results import scenarios
from exhume.cli.tables import other_bounds, tables
from exhume.problem.bound import Binds, BoundValue, RiskValue
from exhume.runs.records import Level, binds_every_attack, level
from exhume.trials.trial import record_of, whom
from report_pages import NOISE, SETTINGS, bound, risk, rows_of, trial, written

UNBIASED = {"binds": "UNBIASED_ATTACKS"}
FINITE = {
    "epsilon": 91.0,
    "delta": 1e-5,
    "adjacency": "add-or-remove",
    "unit": "example",
    "sampling_rate": 1.0,
    "steps": 1,
    "reasons": [],
}


def only(results, settings=SETTINGS):
    (scenario,) = scenarios(settings, results)
    return scenario


def flat(text):
    return " ".join(text.split())


# --- records ------------------------------------------------------------------------


def test_records_say_whom_they_bind_and_survive_json():
    value = BoundValue("b", 8.0, 0.4, 4, 1, ("A.",), "r", Binds.NO_PRIOR)
    chance = RiskValue("r", "largest probability", 0.3, 0.1, (), "r", details={"d": 1})
    results = [replace(bound(1.0), bound=record_of(v)) for v in (value, chance)]
    for result in results:
        assert json.loads(json.dumps(result.bound)) is not None
    assert [whom(r) for r in results] == [Binds.NO_PRIOR.value, "every attack"]
    assert [binds_every_attack(r) for r in results] == [False, True]
    assert level(results[:1] * 2) == Level(2.0, 0.1 / 2**0.5)
    found = level(results[1:])
    assert found is not None
    assert (found.value, found.standard_error) == (0.3, 0.1)


def test_a_record_of_an_older_version_binds_every_attack():
    assert binds_every_attack(bound(1.0))
    assert whom(bound(1.0)) == "every attack"
    newer = bound(1.0, record={"binds": "SOMEBODY_ELSE"})
    assert not binds_every_attack(newer)
    assert whom(newer) == "SOMEBODY_ELSE"
    absent = bound()
    assert not binds_every_attack(absent)
    assert whom(absent) == ""


# --- tables, plots, files -----------------------------------------------------------


def several_bounds():
    return [
        trial("dlg", 0.02, defenses=NOISE),
        trial("prior-mean", 0.04, defenses=NOISE),
        bound(0.01),
        bound(0.03, name="cramer-rao", record=UNBIASED),
        risk(0.25),
        bound(name="bayes-security"),
    ]


def test_each_bound_stands_with_its_quantity_and_whom_it_binds(tmp_path):
    page, _ = written(tmp_path, several_bounds())
    (rows,) = (t for t in page.tables if "Bound" in t[0])
    found = {r[1].split("binds")[0].strip(): [flat(c) for c in r] for r in rows[1:]}
    assert found["bayesian-cramer-rao"][2:4] == ["mean squared error ≥", "0.01"]
    assert found["bayesian-cramer-rao"][6] == "0.02 (dlg), 2 × the bound"
    unbiased = found["cramer-rao"]
    assert unbiased[1].endswith(f"binds {Binds.UNBIASED_ATTACKS.value}")
    # The attack is below this bound, which is no news for an attack with a prior.
    assert (unbiased[3], unbiased[6]) == ("0.03", "")
    chance = found["reconstruction-robustness"]
    assert chance[2:4] == ["largest probability of success", "0.25"]
    assert chance[6] == ""
    assert found["bayes-security"][3] == "–"
    assert "No noise." in found["bayes-security"][7]


def of_two(attack, mse, ordered=None, **changes):
    """A trial of a batch of two, with its error in the order of the labels."""
    facts = {} if ordered is None else {"ordered_mse": ordered}
    return trial(attack, mse, size=2, facts=facts, defenses=NOISE, **changes)


@pytest.mark.parametrize(
    ("ordered", "ratio", "mean"),
    [
        ((0.03, 0.05), "0.04 (dlg), 4 × the bound", "0.04"),
        ((0.03, None), "– (labels do not tell the examples apart, and the", "–"),
    ],
)
def test_only_errors_in_order_stand_beside_a_bound(tmp_path, ordered, ratio, mean):
    """Matched to the truth an error of 0.005 is no contradiction to a bound of 0.01."""
    results = [of_two("dlg", 0.005, o, seed=s) for s, o in enumerate(ordered)]
    results += [bound(0.01, seed=s, size=2) for s in range(2)]
    page, _ = written(tmp_path, results)
    (rows,) = (t for t in page.tables if "Bound" in t[0])
    assert flat(rows[1][6]).startswith(ratio)
    _, table = tables(SETTINGS, results)
    (column,) = (c for c in table.columns if c.header == "mean MSE")
    assert next(iter(column.cells)) == mean


def test_only_bounds_on_the_error_of_every_attack_are_drawn():
    drawn = only(several_bounds())
    (plot,) = error_plots(drawn, "p")
    assert plot.svg.count("stroke-dasharray") == 1
    weaker = [r for r in several_bounds() if r.bound is None or "binds" in r.bound]
    assert len(weaker) == 5
    (plot,) = error_plots(only(weaker), "p")
    assert "stroke-dasharray" not in plot.svg
    assert "bound" not in {item.kind for item in legend(only(weaker))}
    infinite = [*weaker, bound(math.inf)]
    assert "stroke-dasharray" not in error_plots(only(infinite), "p")[0].svg


def test_the_terminal_shows_the_tightest_bound_and_tells_the_others():
    higher = bound(0.015, name="another-bound")
    results = [*several_bounds(), higher]
    _, table = tables(SETTINGS, results)
    (column,) = (c for c in table.columns if c.header == "MSE bound")
    assert next(iter(column.cells)) == "0.015"
    lines = other_bounds(SETTINGS, results)
    assert any(
        line.startswith("cramer-rao (Gaussian noise, std 0.125): mean squared error")
        and line.endswith(f"0.03; binds {Binds.UNBIASED_ATTACKS.value}")
        for line in lines
    )
    assert (
        "reconstruction-robustness (Gaussian noise, std 0.125): "
        "largest probability of success 0.25"
    ) in lines
    assert "no bound bayes-security (Gaussian noise, std 0.125): No noise." in lines
    assert not any(line.startswith("bayesian-cramer-rao") for line in lines)


def test_files_hold_every_kind_of_bound(tmp_path):
    written(tmp_path, [*several_bounds(), risk(math.inf, seed=1)])
    rows = {(r["bound"], r["seed"]): r for r in rows_of(tmp_path) if r["bound"]}
    first = rows["reconstruction-robustness", "0"]
    assert first["bound_quantity"] == "largest probability of success"
    assert (first["bound_value"], first["bound_mse"]) == ("0.25", "")
    assert rows["reconstruction-robustness", "1"]["bound_value"] == "inf"
    assert rows["cramer-rao", "0"]["bound_mse"] == "0.03"
    assert rows["cramer-rao", "0"]["bound_binds"] == Binds.UNBIASED_ATTACKS.value
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    stored = json.loads(text)["results"]
    values = [r["bound"]["value"] for r in stored if "value" in (r["bound"] or {})]
    assert sorted(map(str, values)) == ["0.25", "Infinity"]


# --- maps ---------------------------------------------------------------------------


def mapped(variances, *, size=1, prior=0.09, **given):
    """A bound with a map: every row of pixels has the variance of its number."""
    one = np.broadcast_to(np.float32(variances)[:, None], (len(variances), 6))
    arrays = {
        "bound_map": np.stack([one[None]] * size).astype(np.float32),
        "prior_map": np.full((1, len(variances), 6), prior, np.float32),
    }
    return bound(float(np.mean(variances)), size=size, arrays=arrays, **given)


ROWS = [1e-4, 1e-3, 4e-3, 1e-2, 4e-2, 9e-2]


def pixels(picture):
    encoded = base64.b64decode(picture.png.split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(float)


def test_a_map_is_drawn_beside_the_reconstructions_of_its_defense():
    results = [trial("dlg", 0.02, defenses=d) for d in ((), NOISE)]
    results += [mapped(ROWS), bound(defenses=())]
    shown = gallery(only(results), 100)
    assert shown.maps == (("bayesian-cramer-rao", ""),)
    bare, noisy = shown.panels[0].rows
    assert bare.floors[0].captions == ("no bound",)
    assert bare.floors[0].reason == "No noise."
    (picture,) = noisy.floors
    assert picture.captions == ("error ≥ 0.16", "0.01 to 0.3")
    image = pixels(picture)
    assert image.shape == (6, 6, 3)
    # Brightness follows the bound, from the darkest colour to the brightest.
    brightness = image.mean(axis=(1, 2))
    assert (np.diff(brightness) > 0).all()
    assert shown.pictures == 2 * 2 + 1


def test_the_legend_spans_from_the_lowest_bound_to_the_prior():
    maps = bound_maps(only([mapped(ROWS)]))
    assert maps.legend is not None
    assert maps.legend.low == pytest.approx(0.01)
    assert maps.legend.high == pytest.approx(0.3)
    assert maps.legend.ends == ("0.01", "0.3")
    assert maps.legend.guess == "0.3"
    assert maps.legend.place(np.array([0.01, 0.3**0.5 * 0.1, 0.3])) == pytest.approx(
        [0, 0.5, 1], abs=1e-6
    )
    assert len(re.findall(r"rgb\(\d+, \d+, \d+\)", maps.legend.gradient)) == 9
    loose = bound_maps(only([mapped([0.25] * 6, record=UNBIASED)]))
    assert loose.legend is not None
    assert loose.legend.ends[1] == "0.3 and more"
    assert loose.heads == (("bayesian-cramer-rao", Binds.UNBIASED_ATTACKS.value),)


def test_channels_are_averaged_and_zero_is_dark():
    colour = mapped(ROWS)
    array = np.zeros((1, 3, 6, 6), np.float32)
    array[0, 0] = 0.03
    array[0, :, 0] = 0
    arrays = {"bound_map": array}
    shown = bound_maps(only([replace(colour, arrays=arrays)]))
    assert shown.legend is not None
    assert shown.legend.prior is None
    assert shown.legend.high == pytest.approx(0.1)
    (picture,) = shown.row(only([colour]).defenses[0], 0, 0)
    assert picture is not None
    assert picture.captions[1] == "0 to 0.1"
    image = pixels(picture)
    assert (image[0] == image[0, 0]).all()
    assert image[0].mean() < image[1].mean()


def test_stores_without_maps_vectors_and_risks_have_no_column(tmp_path):
    vector = bound(0.01, arrays={"bound_map": np.ones((1, 9), np.float32)})
    for results in ([bound(0.01)], [vector], [risk(0.1)]):
        maps = bound_maps(only(results))
        assert (maps.heads, maps.legend) == ((), None)
    page, html = written(tmp_path, [trial("dlg", 0.02, defenses=NOISE), bound(0.01)])
    assert "map-legend" not in page.values("class")
    assert "no attack below" not in html


def test_the_page_shows_maps_with_their_colours(tmp_path):
    page, html = written(tmp_path, [trial("dlg", 0.02, defenses=NOISE), mapped(ROWS)])
    assert "map-legend" in page.values("class")
    assert "linear-gradient(to right, rgb(" in html
    alts = [v for t, n, v in page.attributes if (t, n) == ("img", "alt")]
    assert [a for a in alts if a.startswith("bound per pixel")] == [
        "bound per pixel: bayesian-cramer-rao, Gaussian noise, std 0.125: "
        "error ≥ 0.16, 0.01 to 0.3"
    ]


# --- who is most exposed ------------------------------------------------------------


def batch(per_example, errors, *, error=0.0, record=()):
    told = {"per_example": list(per_example), "binds": "EVERY_ATTACK", **dict(record)}
    size = len(errors["dlg"])
    return [
        bound(0.02, size=size, error=error, record=told, true_labels=list(range(size))),
        *(
            trial(
                name,
                0.01,
                size=size,
                defenses=NOISE,
                scores={"mse": list(values)},
                true_labels=list(range(size)),
            )
            for name, values in errors.items()
        ),
    ]


ERRORS = {
    "dlg": [0.03, 0.05, 0.01],
    "gauss-newton": [0.04, 0.02, None],
    "prior-mean": [0.02, 0.06, 0.06],
}


def test_the_lowest_floor_is_the_most_exposed(tmp_path):
    results = batch([0.02, 0.005, 0.01], ERRORS)
    (found,) = exposure(only(results))
    assert [r.example for r in found.rows] == [2, 3, 1]
    first, _, last = found.rows
    assert (first.label, first.floor, first.error) == ("1", "0.005", "0.02")
    assert (first.attack, first.chance, first.beaten) == ("gauss-newton", "0.06", True)
    assert (last.attack, last.beaten) == ("dlg", False)
    page, _ = written(tmp_path, results)
    (table,) = (t for t in page.tables if "Rank" in t[0])
    assert [flat(row[2]) for row in table[1:]] == ["2", "3", "1"]


def test_floors_that_differ_by_chance_alone_leave_the_order_to_the_attacks():
    results = batch([0.02, 0.0195, 0.0205], ERRORS, error=0.001)
    (found,) = exposure(only(results))
    assert [r.example for r in found.rows] == [3, 2, 1]
    weaker = batch([0.02, 0.005, 0.01], ERRORS, record=UNBIASED)
    (found,) = exposure(only(weaker))
    assert [r.example for r in found.rows] == [3, 2, 1]
    assert {r.floor for r in found.rows} == {"–"}


def test_one_example_is_not_ranked_and_large_batches_are_cut():
    assert exposure(only([trial("dlg", 0.1), bound(0.01)])) == []
    (found,) = exposure(only([trial("dlg", 0.1, size=11)]))
    assert (len(found.rows), found.left_out) == (8, 3)


# --- ε beside the floor -------------------------------------------------------------


def promised(floor, *, prior=0.09, **changes):
    account = {**FINITE, **changes}
    results = [
        trial("dlg", 0.05, defenses=NOISE, privacy=account),
        mapped([floor] * 6, prior=prior) if floor else bound(),
    ]
    (row,) = promises(only(results))
    return row


def test_epsilon_and_the_floor_stand_side_by_side(tmp_path):
    row = promised(0.03)
    assert (row.epsilon, row.floor, row.guess) == ("91", "0.03", "0.09")
    assert row.words == (
        "ε = 91 says nothing; yet on data that follow the prior no attack gets below a "
        "mean squared error of 0.03 on average, 33 % of the error without the release."
    )
    assert row.terms == (
        "δ = 1×10⁻⁵, one example added or removed, one release, no sampling"
    )
    results = [trial("dlg", 0.05, defenses=NOISE, privacy=FINITE), mapped([0.03] * 6)]
    page, _ = written(tmp_path, results)
    (table,) = (t for t in page.tables if "In words" in t[0])
    assert [flat(c) for c in table[1][1:5]] == ["91", "0.03", "0.17", "0.09"]
    assert row.words in flat(table[1][5])
    assert rows_of(tmp_path)[0]["epsilon"] == "91.0"


@pytest.mark.parametrize(
    ("changes", "epsilon", "words"),
    [
        (
            {"epsilon": math.inf, "unit": None, "reasons": ["no clipping"]},
            "∞",
            "ε = ∞ says nothing (no clipping); yet on data that follow",
        ),
        (
            {"epsilon": None, "reasons": ["needs dp-accounting"]},
            "not accounted",
            "ε is not accounted (needs dp-accounting); yet on data that follow",
        ),
        (
            {"epsilon": 0.5},
            "0.5",
            "ε = 0.5 is a strong promise; and on data that follow",
        ),
        ({"epsilon": 3.0}, "3", "ε = 3 is a moderate promise; and on data that follow"),
    ],
)
def test_what_epsilon_promises_is_in_words(changes, epsilon, words):
    row = promised(0.03, **changes)
    assert row.epsilon == epsilon
    assert row.words.startswith(words)
    assert bool(row.terms) == (epsilon in {"0.5", "3"})


def test_a_floor_of_nothing_is_not_praised():
    assert "protects nothing" in promised(1e-5).words
    assert promised(None).words.endswith(
        "and no bound says that the data cannot be read."
    )
    assert promises(only([trial("dlg", 0.1)])) == []


def test_infinite_epsilon_is_strict_json(tmp_path):
    account = {**FINITE, "epsilon": math.inf, "unit": None}
    written(tmp_path, [trial("dlg", 0.05, privacy=account)])
    text = (tmp_path / "results.json").read_text(encoding="utf-8")

    def refuse(constant):
        pytest.fail(constant)

    (stored,) = json.loads(text, parse_constant=refuse)["results"]
    assert stored["privacy"]["epsilon"] == "Infinity"


# --- one real run -------------------------------------------------------------------


def test_a_real_run_draws_the_bound_of_every_pixel(tmp_path):
    settings = AuditSettings(
        title="Maps",
        data="digits",
        model={"name": "mlp", "hidden": [8], "activation": "tanh"},
        batch_size=2,
        attacks=["audit_lab.guesses"],
        defenses=[
            [],
            [
                {"name": "clipping", "max_norm": 1.0},
                {"name": "gaussian-noise", "std": 0.3},
            ],
        ],
        bounds=[{"name": "bayesian-cramer-rao", "draws": 3}],
        executor="serial",
    )
    done = run(settings, out=tmp_path)
    (floor,) = (r for r in done.results if r.bound is not None)
    drawn = floor.arrays["bound_map"]
    assert drawn.shape == (2, 1, 8, 8)
    assert drawn.sum() == pytest.approx(floor.bound["total"], rel=0.1)
    # Noise never makes a pixel less certain than the prior alone leaves it.
    assert (drawn <= floor.arrays["prior_map"] * (1 + 1e-5)).all()
    assert (drawn > 0).all()

    scenario = only(done.results, settings)
    _, noisy = promises(scenario)
    assert float(noisy.epsilon) > 0
    assert noisy.floor == f"{floor.bound['mse']:.3g}"
    html = done.report.read_text(encoding="utf-8")
    assert html.count('alt="bound per pixel: bayesian-cramer-rao') == 2
    rows = [r for r in gallery(scenario, 100).panels[0].rows if r.floors[0].png]
    image = pixels(rows[0].floors[0])
    assert image.shape == (8, 8, 3)
    brightness = image.mean(axis=2).ravel()
    order = np.argsort(drawn[0, 0].ravel())
    assert (np.diff(brightness[order]) >= -2).all()  # colours are rounded to 8 bits
