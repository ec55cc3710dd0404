"""The report: every number in its own place, offline, the same bytes every time."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from exhume.audit.report import page as pages
from exhume.audit.report.export import write_report
from exhume.audit.report.gallery import gallery
from exhume.audit.report.page import _threat
from exhume.audit.report.plots import BOUND_LABEL, error_plots
from exhume.audit.report.results import labels, scenarios
from exhume.audit.report.tables import result_rows
from exhume.audit.report.verdict import findings, verdict
from exhume.audit.settings import AuditSettings
from exhume.problem.knowledge import Fact
from exhume.report import browser
from exhume.report.page import citations, methods
from exhume.report.pictures import SERIES, limits, line, png
from exhume.report.words import median, number, several
from exhume.runs.records import TrialResult
from exhume.runs.settings import to_toml
from report_pages import (
    BASELINES,
    CLIPPING,
    NOISE,
    SETTINGS,
    bound,
    rows_of,
    spec,
    trial,
    written,
)


def sweep() -> list[TrialResult]:
    """Two attacks and both chance levels, undefended and under three defenses."""
    errors = {"gauss-newton": 1e-9, "dlg": 1e-4, "prior-mean": 0.04}
    errors["public-centres"] = 0.06
    results = []
    for seed, (attack, mse) in itertools.product(range(2), errors.items()):
        for index, stack in enumerate([(), NOISE, *CLIPPING]):
            weaker = attack in BASELINES or index > 1
            change = {"defenses": stack, "seed": seed}
            trace = tuple((0, i, 0.1 * i, 10.0**-i) for i in range(5))
            level = mse if weaker else mse * 30**index
            more = {} if attack in BASELINES else {"trace": trace}
            results.append(trial(attack, level, **change, **more))
        if attack == "dlg":
            results += [bound(1e-8, seed=seed), bound(defenses=(), seed=seed)]
    return results


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The page of the whole sweep, and its text."""
    return written(tmp_path_factory.mktemp("sweep"), sweep())


def distinct() -> list[TrialResult]:
    """One attack, one bound and one failure with a different value in every field."""
    attack = trial(
        "gauss-newton",
        0.0101,
        defenses=NOISE,
        seed=7,
        scores={"mse": [0.0101], "psnr": [20.2], "ssim": [0.33], "label-accuracy": [1]},
        objective=0.0404,
        objective_at_truth=0.0505,
        adaptive=True,
        notes=("A note of the attack.",),
        true_labels=[61],
        guessed_labels=[62],
        cost={"cpu_seconds": 7.1, "wall_seconds": 8.2, "evaluations": 903},
        seconds=9.4,
        facts={"parameters": 1234.0, "gradient_norm": 0.0606, "relative_noise": 0.0707},
        released_in_clear=("fc.bias",),
        trace=((0, 0, 0.0, 2.0), (0, 1, 7.1, 0.0404)),
        versions={"exhume": "0.8.8", "torch": "2.9.9"},
    )
    failed = TrialResult(
        spec=spec("dlg", NOISE, 7), status="failed", reason="It burst at step 3."
    )
    floor = bound(0.00808, seed=7, error=0.00909, details={"trace_bound": 0.0111})
    return [attack, failed, floor]


def test_every_field_stands_at_its_own_place(tmp_path):
    page, _ = written(tmp_path, distinct())
    row = next(r for r in page.table("Defense") if "gauss-newton" in r["Attack"])
    assert row["Attack"] == "gauss-newton adaptive"
    shown = {k: row[k] for k in ("n", "MSE", "PSNR", "SSIM", "Label right")}
    assert shown == {
        "n": "1",
        "MSE": "0.0101",
        "PSNR": "20.2 dB",
        "SSIM": "0.33",
        "Label right": "1.00",
    }
    assert (row["Objective"], row["at the truth"]) == ("0.0404", "0.0505")
    assert (row["CPU s"], row["Gradients"]) == ("7.1", "903")
    assert row["How it ended, and flags"].startswith("The objective stopped decreas")
    assert "single-seed" in row["How it ended, and flags"]
    cost = page.table("Attack or bound")[0]
    assert list(cost.values()) == [
        "gauss-newton",
        "1",
        "7.1",
        "7.1",
        "8.2",
        "9.4",
        "903",
    ]


def test_bounds_failures_and_facts_stand_at_their_places(tmp_path):
    page, _ = written(tmp_path, distinct())
    floor = next(
        dict(zip((" ".join(c.split()) for c in t[0]), t[1], strict=True))
        for t in page.tables
        if "Bound" in t[0]
    )
    assert floor["What is bounded"] == "mean squared error ≥"
    assert floor["Value"] == "0.00808"
    assert floor["± s.e."] == "0.0091"
    assert (
        "0.0101 (gauss-newton), 1.2 × the bound"
        in floor["Smallest mean error of an attack"]
    )
    why = floor["Holds if, or why not"]
    assert "The data follow the fitted prior." in why
    assert "Van Trees 1968; trace bound: 0.0111" in " ".join(why.split())
    failure = next(t[1] for t in page.tables if t[0][-1] == "Reason")
    assert failure[0] == "dlg"
    assert failure[2:] == ["7", "It burst at step 3."]
    facts = next(t for t in page.tables if "relative noise" in t[0])
    row = dict(zip(facts[0], facts[1], strict=True))
    assert (row["gradient norm"], row["relative noise"]) == ("0.0606", "0.0707")
    cost, pictures = page.sections["cost"], page.sections["pictures"]
    assert "fc.bias" in cost
    assert "exhume 0.8.8, torch 2.9.9" in cost
    assert "1\u202f234 parameters" in page.sections["setting"]
    assert "20.2 dB" in pictures
    assert "label 61" in pictures
    assert "label 62 ≠ 61" in pictures
    assert "A note of the attack." in page.values("title")


def test_setting_and_threat_model_are_in_words(tmp_path):
    page, _ = written(tmp_path, distinct())
    text = " ".join(page.sections["setting"].split())
    for part in ("Licence of the data", "lenet-zhu", "evaluation mode", "float32"):
        assert part in text
    assert "labels-known" in text
    assert "✓the labels of the batch (sorted, not their order) – known" in text
    assert "✗BatchNorm statistics of the client's batch – unknown" in text


def test_json_holds_what_the_trials_gave(tmp_path):
    results = distinct()
    written(tmp_path, results)
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert stored["settings"]["title"] == SETTINGS.title
    found = {record["id"]: record for record in stored["results"]}
    assert len(found) == len(results)
    for result in results:
        record = found[result.spec.id]
        assert record["scores"] == result.scores
        assert record["cost"] == result.cost
        assert record["facts"] == result.facts
        assert record["objective_at_truth"] == result.objective_at_truth
        assert record["spec"]["attack"] == result.spec.attack
        assert record["trace"] == [list(row) for row in result.trace]
        assert record["reason"] == result.reason
    flagged = found[results[0].spec.id]["flags"]
    assert "single-seed" in {flag["kind"] for flag in flagged}


def test_csv_has_one_row_per_example(tmp_path):
    scores = {"mse": [0.01, None, 0.03], "psnr": [20.0, None, 15.2]}
    three = trial("dlg", 0.01, size=3, scores=scores, objective=0.125)
    written(tmp_path, [three, *distinct()])
    rows = rows_of(tmp_path)
    assert len(rows) == 3 + 3
    mine = [r for r in rows if r["id"] == three.spec.id]
    assert [r["example"] for r in mine] == ["0", "1", "2"]
    assert [r["mse"] for r in mine] == ["0.01", "", "0.03"]
    assert [r["psnr"] for r in mine] == ["20.0", "", "15.2"]
    assert {r["objective"] for r in mine} == {"0.125"}
    attack = next(r for r in rows if r["seed"] == "7" and r["status"] == "done")
    assert (attack["strength_option"], attack["strength"]) == ("std", "0.125")
    assert (attack["true_label"], attack["guessed_label"]) == ("61", "62")
    assert (attack["cpu_seconds"], attack["trial_seconds"]) == ("7.1", "9.4")
    assert next(r for r in rows if r["bound"])["bound_mse"] == "0.00808"
    assert next(r for r in rows if r["status"] == "failed")["example"] == ""


def test_one_exact_picture_does_not_spoil_the_medians(tmp_path):
    scores = {"mse": [0.0, 1e-3, 1e-2], "psnr": [float("inf"), 30.0, 20.0]}
    two = {"mse": [0.0, 1e-3], "psnr": [float("inf"), 27.0]}
    page, _ = written(
        tmp_path,
        [
            trial("gauss-newton", 1e-3, size=3, scores=scores),
            trial("dlg", 1e-3, size=2, scores=two),
            trial("prior-mean", 0.04, size=3),
        ],
    )
    shown = {
        row["Attack"]: row["PSNR"]
        for t in page.tables
        if "PSNR" in t[0]
        for row in [dict(zip(t[0], cells, strict=True)) for cells in t[1:]]
    }
    assert shown["gauss-newton"] == "30.0 dB"
    assert shown["dlg"] == "27.0 dB"
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {"Infinity"} < {
        str(v) for r in stored["results"] for v in r["scores"]["psnr"]
    }


def test_labels_are_summed_up_by_the_share_that_is_right():
    scores = {"mse": [0.1, 0.2, 0.3, 0.8], "label-accuracy": [1.0, 1.0, 0.0, 1.0]}
    result = trial("dlg", 0.1, size=4, scores=scores)
    (scenario,) = scenarios(SETTINGS, [result])
    (row,) = result_rows(scenario, {}, list(scores))
    assert [entry.text for entry in row.scores] == ["0.25", "0.75"]


def test_same_results_in_any_order_give_the_same_bytes(tmp_path):
    results = sweep()
    shuffled = random.Random(0).sample(results, len(results))
    for name, given in (("a", results), ("b", shuffled)):
        write_report(SETTINGS, given, tmp_path / name)
    for file in ("report.html", "results.json", "results.csv"):
        first, second = ((tmp_path / n / file).read_bytes() for n in "ab")
        assert first == second, file
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "report.html",
        "results.csv",
        "results.json",
    ]


def test_nothing_is_fetched_from_anywhere(swept):
    page, html = swept
    assert "default-src 'none'" in html
    for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
        for value in page.values(name):
            assert value.startswith(("#", "data:image/png;base64,")), value
    without_text = re.sub(r"<pre>.*?</pre>", "", html, flags=re.DOTALL)
    assert not re.search(r"https?:|//www|@import|url\((?!#)", without_text)
    targets = [h[1:] for h in page.values("href") if h.startswith("#")]
    ids = page.values("id")
    assert set(targets) <= set(ids)
    assert len(ids) == len(set(ids))


def test_text_from_outside_is_escaped(tmp_path):
    evil = "<script>alert(1)</script> & $x$ </title>"
    failed = TrialResult(spec=spec("dlg"), status="failed", reason=evil)
    settings = AuditSettings(title=evil, attacks=["dlg"])
    page, html = written(tmp_path, [failed, trial("dlg", 0.01, seed=1)], settings)
    assert "<script>alert" not in html
    assert evil in page.sections["cost"]


def test_every_picture_is_described(swept):
    page, _ = swept
    pictures = [v for t, n, v in page.attributes if (t, n) == ("img", "alt")]
    assert len(pictures) == page.values("class").count("picture") > 0
    assert all(pictures)
    figures = [v for t, n, v in page.attributes if (t, n) == ("figure", "aria-label")]
    assert any("Gaussian noise" in label for label in figures)


def test_plots_show_attacks_bound_and_chance(swept):
    page, html = swept
    assert page.values("class").count("plot") == 2 + 2  # families, attacks with a trace
    assert BOUND_LABEL in html
    scenario = scenarios(SETTINGS, sweep())[0]
    drawn = {plot.title: plot for plot in error_plots(scenario, "p")}
    noise = next(p for title, p in drawn.items() if "noise" in title).svg
    clipping = next(p for title, p in drawn.items() if "clipping" in title).svg
    assert noise.count("stroke-dasharray") == clipping.count("stroke-dasharray") + 1
    for svg in drawn.values():
        for index in range(len(scenario.contenders)):
            assert f"var(--series-{index})" in svg.svg
        assert not re.search(r"#0[123]00?0?\d\d", svg.svg)
    assert "var(--series-2)" not in noise


def test_an_upper_limit_is_the_stronger_the_smaller():
    scenario = scenarios(SETTINGS, sweep())[0]
    found = [d.strength[1] for d in scenario.defenses if "clipping" in d.family]
    assert found == [10.0, 0.1]
    assert scenario.defenses[0].is_none
    assert scenario.attacks == ("gauss-newton", "dlg", "prior-mean", "public-centres")


def test_verdict_names_the_strongest_attack_and_the_chance_level():
    results = [
        trial("gauss-newton", 1e-9),
        trial("dlg", 1e-4),
        trial("prior-mean", 0.04),
        trial("gauss-newton", 0.05, defenses=NOISE),
        trial("prior-mean", 0.04, defenses=NOISE),
        trial("dlg", 0.03, defenses=CLIPPING[0]),
        trial("prior-mean", 0.04, defenses=CLIPPING[0]),
    ]
    scenario = scenarios(SETTINGS, results)[0]
    found = findings(scenario)
    assert [f.level for f in found] == ["leak", "chance", "unsure"]
    text = verdict(scenario, found, {})
    assert text.startswith(
        "Without a defense, gauss-newton recovers 1 of 1 faces (95 % interval of the "
        "share 3 to 100 %); the median example is at 90.0 dB (guessing, prior-mean: "
        "14.0 dB)."
    )
    assert "no attack is better than guessing (prior-mean; at most 98 %" in text
    assert "(dlg: 15.2 dB), an attack comes nearer than guessing, which chance" in text


def test_a_leak_of_one_example_in_ten_is_a_leak():
    """The median attack is worse than guessing; one face of ten is out."""
    results = [trial("dlg", 0.0 if seed == 3 else 0.2, seed=seed) for seed in range(10)]
    results += [trial("prior-mean", 0.04, seed=seed) for seed in range(10)]
    (scenario,) = scenarios(SETTINGS, results)
    (found,) = findings(scenario)
    assert (found.level, found.share, found.interval) == (
        "leak",
        "1 of 10",
        "0 to 45 %",
    )
    assert "dlg recovers 1 of 10 faces" in verdict(scenario, [found], {})


def test_the_attack_that_recovers_an_example_goes_before_one_that_is_a_little_nearer():
    pairs = [("dlg", [0.0, 0.3]), ("gauss-newton", [0.03, 0.03])]
    results = [
        trial(name, mse, seed=seed)
        for name, errors in [*pairs, ("prior-mean", [0.04, 0.04])]
        for seed, mse in enumerate(errors)
    ]
    (scenario,) = scenarios(SETTINGS, results)
    assert findings(scenario)[0].attack == "dlg"


def near(placebo):
    """Ten seeds of an attack that is a little nearer than a guess, and its placebo."""
    errors = [0.03 + 0.0005 * (seed % 3) for seed in range(10)]
    results = [trial("dlg", mse, seed=s) for s, mse in enumerate(errors)]
    results += [trial("prior-mean", 0.04, seed=seed) for seed in range(10)]
    if placebo is not None:
        decoys = [trial("dlg", placebo, seed=s, placebo=True) for s in range(10)]
        results += decoys
    return results


@pytest.mark.parametrize(
    ("placebo", "level", "told"),
    [
        (None, "slight", "No placebo was run for dlg"),
        (0.03, "unsure", "but as near without their release (placebo)"),
        (0.06, "slight", "comes a little nearer than a guess"),
    ],
)
def test_a_placebo_tells_a_good_guess_from_a_leak(placebo, level, told):
    (scenario,) = scenarios(SETTINGS, near(placebo))
    (found,) = findings(scenario)
    assert found.level == level
    assert told in verdict(scenario, [found], {})


def test_placebos_are_in_no_table_and_in_the_files(tmp_path):
    page, _ = written(tmp_path, near(0.06))
    (row,) = [r for r in page.table("Defense") if r["Attack"] == "dlg"]
    assert row["n"] == "10"
    assert "0.03" in row["MSE"]
    records = json.loads((tmp_path / "results.json").read_text())["results"]
    assert sum(r["spec"].get("placebo", False) for r in records) == 10
    with (tmp_path / "results.csv").open() as file:
        marks = [r["placebo"] for r in csv.DictReader(file)]
    assert sorted(set(marks)) == ["False", "True"]


def test_recognition_is_called_so():
    results = [
        trial("nearest-public", 0.0, recognises=True),
        trial("prior-mean", 0.04),
    ]
    (scenario,) = scenarios(SETTINGS, results)
    text = verdict(scenario, findings(scenario), {})
    assert "nearest-public recognises among the public examples 1 of 1 faces" in text


def test_verdict_doubts_a_defense_that_only_weak_attacks_faced(tmp_path):
    weak = {"objective": 5.0, "objective_at_truth": 1.0, "defenses": NOISE}
    results = [trial("dlg", 0.05, **weak), trial("prior-mean", 0.04, defenses=NOISE)]
    page, _ = written(tmp_path, results)
    assert "no evidence of protection" in page.sections[""]
    assert "under-optimised" in page.sections["flags"]


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        ([], "No trial has ended yet"),
        (
            [TrialResult(spec=spec("dlg"), status="failed", reason="No.")],
            "no attack fin",
        ),
        ([bound(1e-4)], "No attack was run"),
        ([trial("dlg", 0.01, shape=(9,))], "a guess reaches is not known"),
        ([trial("dlg", 0.0)], "a guess reaches is not known"),
        ([trial("dlg", 0.01, scores={"mse": [None]})], "no attack finished"),
        ([trial("prior-mean", 0.01)], "No attack was run"),
        (
            [trial("dlg", 0.01, size=6, shape=(3, 6, 5))],
            "what a guess reaches is not known",
        ),
        ([trial("dlg", 0.01, arrays={})], "a guess reaches is not known"),
    ],
    ids=[
        "nothing",
        "failed",
        "bound",
        "vector",
        "exact",
        "unscored",
        "baseline",
        "colour",
        "no arrays",
    ],
)
def test_every_kind_of_run_gives_a_report(tmp_path, results, sentence):
    page, _ = written(tmp_path, results)
    assert sentence in page.sections[""]


def test_vectors_are_drawn_as_lines(tmp_path):
    page, html = written(
        tmp_path, [trial("dlg", 0.01, shape=(9,), scores={"mse": [0.01]})]
    )
    assert ("svg", "class", "picture") in page.attributes
    assert html.count('class="guess"') >= 1
    assert "MSE 0.01" in page.sections["pictures"]


def test_an_interrupted_audit_says_so(tmp_path):
    from exhume.audit.settings import expand

    settings = AuditSettings.from_toml(
        'title = "x"\nattacks = ["dlg"]\nseeds = 2', what="x"
    )
    specs = expand(settings)
    failed = [TrialResult(spec=s, status="failed", reason="No.") for s in specs]
    page, _ = written(tmp_path, failed[:2], settings)
    assert f"not finished: 2 of {len(specs)} trials" in page.sections[""]
    page, _ = written(tmp_path, failed, settings)
    assert "not finished" not in page.sections[""]


def test_pictures_are_limited_but_every_number_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "MOST_PICTURES", 20)
    results = [trial("dlg", 0.01, seed=seed) for seed in range(40)]
    page, _ = written(tmp_path, results)
    assert page.values("class").count("picture") <= 20 + 3
    assert "30 further seeds" in page.sections["pictures"]
    assert len(rows_of(tmp_path)) == 40


def test_the_examples_of_a_batch_are_all_there():
    shown = gallery(scenarios(SETTINGS, [trial("dlg", 0.01, size=6)])[0], 100)
    assert [r.example for r in shown.panels[0].rows] == [0, 1, 2, 3]
    assert [r.example for r in shown.panels[0].more] == [4, 5]
    assert shown.pictures == 12


def test_only_what_beats_chance_is_framed():
    def frames(*results):
        rows = gallery(scenarios(SETTINGS, results)[0], 100).panels[0].rows
        return [guess.best for guess in rows[0].guesses if guess]

    assert frames(trial("dlg", 0.01), trial("prior-mean", 0.04)) == [True, False]
    assert frames(trial("dlg", 0.05), trial("prior-mean", 0.04)) == [False, False]


def test_cites_each_method_used_and_no_other(swept):
    text = citations(methods(sweep()))
    keys = re.findall(r"^@\w+\{([^,]+),", text, flags=re.MULTILINE)
    assert keys == sorted(set(keys))
    assert "gauss-newton" in {
        o["name"] for kind, o in methods(sweep()) if kind == "attack"
    }
    assert "Deep Leakage from Gradients" in text
    assert "GradInversion" not in text
    assert citations([("attack", {"name": "nobody-knows-this"})]) == ""
    assert text in swept[0].sections["cite"]


def test_only_the_variant_that_ran_is_cited():
    random = citations(
        [("defense", {"name": "pruning", "ratio": 0.5, "kind": "random"})]
    )
    assert "konecny2016" in random
    assert "aji2017" not in random
    full = citations([("prior", {"name": "gaussian", "covariance": "shrinkage"})])
    assert full == ""
    low = citations([("prior", {"name": "gaussian", "covariance": "low-rank"})])
    assert "tipping1999" in low


SETTINGS_OF_ALL_KINDS = [
    AuditSettings(),
    AuditSettings(title='a "quoted" \\ title\n€\x7f', seeds=[3, 5], prior=None),
    AuditSettings(
        data=["faces", {"name": "npz", "path": "a b.npz"}],
        attacks=[{"name": "dlg", "iterations": 7}, "gauss-newton"],
        defenses=[[], [{"name": "gaussian-noise", "std": [1e-4, 0.5]}], ["clipping"]],
        mode="train",
        workers=2,
    ),
]


@pytest.mark.parametrize("settings", SETTINGS_OF_ALL_KINDS)
def test_the_toml_asks_for_the_same_audit(settings):
    assert (
        AuditSettings.from_toml(to_toml(settings), what="the report's TOML") == settings
    )


def test_names_tell_apart_what_differs():
    short, long = {"name": "dlg", "iterations": 5}, {"name": "dlg", "iterations": 9}
    found = labels([short, long, {"name": "idlg", "iterations": 5}])
    assert list(found.values()) == ["dlg (iterations=5)", "dlg (iterations=9)", "idlg"]


def test_a_picture_keeps_every_pixel():
    image = np.linspace(0, 1, 3 * 4 * 5).reshape(3, 4, 5)
    address = png(image, *limits(image))
    decoded = np.asarray(Image.open(io.BytesIO(_bytes(address))))
    assert np.array_equal(
        decoded, np.rint(255 * image).astype(np.uint8).transpose(1, 2, 0)
    )
    gray = np.asarray(Image.open(io.BytesIO(_bytes(png(image[:1], 0, 1)))))
    assert gray.shape == (4, 5)


def _bytes(address: str) -> bytes:
    import base64

    return base64.b64decode(address.split(",", 1)[1])


def test_a_vector_lies_on_its_truth_where_it_is_exact():
    truth = np.array([0.0, 2.0, -1.0, 4.0])
    own, other = line(truth, truth), line(truth.copy(), truth)
    assert own.svg.count("<polyline") == 1
    assert line(truth + 1, truth).svg != other.svg
    assert other.svg == f"{own.svg}\n{own.svg.replace('truth', 'guess')}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (0.0, "0"),
        (0.04, "0.04"),
        (-1.5, "−1.5"),
        (1234.0, "1234"),
        (1.25e-10, "1.25×10⁻¹⁰"),
        (2e7, "2×10⁷"),
    ],
)
def test_numbers_in_print(value, text):
    assert number(value) == text


def test_medians_keep_to_what_is_defined():
    assert median([None, 3.0, 1.0, float("nan")]) == 2.0
    assert median([float("inf"), 5.0]) == 5.0
    assert median([None]) is None
    assert several(["a", "b", "c"]) == "a, b and c"


def test_more_attacks_than_colours_are_all_drawn():
    attacks = [f"attack.number{i}" for i in range(len(SERIES) + 2)]
    results = [trial(name, 10.0 ** -(i + 2)) for i, name in enumerate(attacks)]
    scenario = scenarios(SETTINGS, results)[0]
    (plot,) = error_plots(scenario, "p")
    assert all(name in plot.svg for name in attacks)


@pytest.mark.browser
@pytest.mark.skipif(browser.find_browser() is None, reason="no Chromium is installed")
def test_a_browser_draws_every_picture_and_plot(tmp_path):
    results = [*sweep(), trial("gauss-newton", 0.01, shape=(9,), model={"name": "mlp"})]
    report = write_report(SETTINGS, results, tmp_path)
    shown = browser.rendered(report)
    # 2 seeds × 4 defenses × (truth + 4 attacks), the vector twice; the head shows 3.
    assert shown["pictures"] == (2 * 4 * 5 + 2 + 3, 2 * 4 * 5 + 2 + 3)
    assert shown["plots"][0] == shown["plots"][1] >= 4
    browser.screenshot(report, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[0] > 2000
    ink = (pixels < 100).mean(axis=1)
    assert 0.01 < float((pixels < 100).mean()) < 0.5
    assert float((ink > 0).mean()) > 0.3


def test_no_picture_without_a_report(tmp_path):
    from exhume.errors import InvalidInput

    if browser.find_browser() is None:
        pytest.skip("no Chromium is installed")
    with pytest.raises(InvalidInput, match="there is no report"):
        browser.screenshot(tmp_path / "report.html", tmp_path / "report.png")


def test_statistics_that_do_not_exist_are_not_known():
    told = replace(SETTINGS, threat="statistics-known")
    plain = trial("dlg", 0.01)
    normed = replace(plain, facts={**plain.facts, "batch_norm_layers": 3.0})

    def known(result):
        return dict(_threat(told, [result])["facts"])[Fact.BATCH_NORM_STATISTICS.value]

    assert not known(plain)
    assert known(normed)
