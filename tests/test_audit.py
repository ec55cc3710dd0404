"""Sweeps and trials: what runs, under which id, on what, and what is told of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from exhume.audit import AuditSettings, TrialSpec, run, run_trial
from exhume.audit.report.results import scenarios
from exhume.audit.report.verdict import findings
from exhume.audit.settings import (
    example_names,
    example_settings,
    expand,
)
from exhume.cli import app
from exhume.errors import InvalidInput, UnknownName
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.reconstruction import Outcome, Reconstruction, Stopwatch
from exhume.runs.settings import slug
from exhume.runs.store import Store
from exhume.trials.setting import (
    cosine,
    labels_identify_order,
    relative_noise,
)
from exhume.trials.trial import ordered_error
from exhume.trials.world import make_world

SPEC = TrialSpec(
    data={"name": "digits"},
    model={"name": "mlp", "hidden": [8], "activation": "tanh"},
    attack={"name": "prior-mean"},
    prior={"name": "gaussian"},
)
NOISE = {"name": "gaussian-noise", "std": 0.01}
TINY = AuditSettings(
    title="Tiny sweep",
    data="digits",
    model={"name": "mlp", "hidden": [8]},
    attacks=["audit_lab.guesses"],
    executor="serial",
)


# Ids


def test_ids_are_the_same_everywhere_and_for_ever():
    spec = TrialSpec(
        data={"name": "faces"},
        model={"name": "lenet-zhu"},
        defenses=({"name": "gaussian-noise", "std": 1e-3},),
        attack={"name": "dlg", "iterations": 10},
    )
    assert spec.id == GOLDEN_ID
    reordered = replace(spec, attack={"iterations": 10, "name": "dlg"})
    assert reordered.id == spec.id
    assert replace(spec, defenses=[*spec.defenses]).id == spec.id  # type: ignore[arg-type]


GOLDEN_ID = "6f6a9d62aa61d3b954de5ce99b793ea4f7f58f3d158159ed87e96e7e5066fa4a"


def test_a_setting_is_a_spec_without_its_attack():
    other_attack = replace(SPEC, attack={"name": "dlg"})
    other_seed = replace(SPEC, seed=1)
    assert len({SPEC.id, other_attack.id, other_seed.id}) == 3
    assert SPEC.setting == other_attack.setting != other_seed.setting


def test_a_spec_that_says_how_many_public_examples_is_another():
    few = replace(SPEC, public_examples=20)
    assert few.id != SPEC.id
    assert few.setting != SPEC.setting
    given = AuditSettings(attacks=["dlg"], public_examples=20)
    assert {spec.public_examples for spec in expand(given)} == {20}
    with pytest.raises(InvalidInput, match="public_examples is -1"):
        AuditSettings(public_examples=-1)


# Expansion


def test_metrics_of_an_audit_score_beside_the_registered_ones():
    named = [
        {"name": "audit_lab.within", "tolerance": 0.5},
        "audit_lab.within",
        "psnr",
    ]
    plain, asked = expand(TINY), expand(replace(TINY, metrics=named))
    assert [s.setting for s in asked] == [s.setting for s in plain]
    for with_metrics, without in zip(asked, plain, strict=True):
        assert (with_metrics.id == without.id) == (without.attack is None)
    first, second = run_trial(plain[0]), run_trial(asked[0])
    loose, usual = "audit_lab.within(tolerance=0.5)", "audit_lab.within"
    assert second.scores.keys() - first.scores.keys() == {loose, usual}
    error = np.abs(second.arrays["guess"] - second.arrays["truth"]).reshape(1, -1)
    assert second.scores[loose] == [float((error <= 0.5).mean())]
    assert second.scores[usual] == [float((error <= 0.1).mean())]
    assert first.scores.items() <= second.scores.items()


def test_a_wrong_metric_is_told_before_anything_runs():
    wrong = replace(TINY, metrics=["pnsr", {"name": "audit_lab.within", "toll": 1}])
    with pytest.raises(InvalidInput, match="did you mean 'psnr'") as told:
        expand(wrong)
    assert "has no option 'toll'; it has: tolerance" in str(told.value)


def test_a_sweep_is_the_product_of_its_lists():
    settings = replace(
        TINY,
        data=["digits", {"name": "faces"}],
        attacks=["gauss-newton", "audit_lab.guesses"],
        defenses=[
            [],
            {"name": "gaussian-noise", "std": [1e-3, 1e-2, 1e-1]},
            [
                {"name": "clipping", "max_norm": [1.0, 2.0]},
                {"name": "gaussian-noise", "std": [1e-3, 1e-2]},
            ],
        ],
        bounds=["bayesian-cramer-rao"],
        seeds=[3, 5, 3],
    )
    specs = expand(settings)
    stacks, data, seeds = 1 + 3 + 4, 2, 2
    names = Counter((s.attack or s.bound or {})["name"] for s in specs)
    assert names == dict.fromkeys(
        [
            "prior-mean",
            "public-centres",
            "nearest-public",
            "gauss-newton",
            "audit_lab.guesses",
            "bayesian-cramer-rao",
        ],
        stacks * data * seeds,
    )
    assert len({s.id for s in specs}) == len(specs)
    assert {s.seed for s in specs} == {3, 5}
    strengths = {
        (s.defenses[0]["max_norm"], s.defenses[1]["std"])
        for s in specs
        if len(s.defenses) == 2
    }
    assert strengths == {(c, n) for c in (1.0, 2.0) for n in (1e-3, 1e-2)}


def test_chance_and_bounds_come_first_then_whole_seeds():
    settings = replace(TINY, bounds=["bayesian-cramer-rao"], seeds=2)
    order = [((s.attack or s.bound or {})["name"], s.seed) for s in expand(settings)]
    assert order == [
        ("prior-mean", 0),
        ("public-centres", 0),
        ("nearest-public", 0),
        ("prior-mean", 1),
        ("public-centres", 1),
        ("nearest-public", 1),
        ("bayesian-cramer-rao", 0),
        ("bayesian-cramer-rao", 1),
        ("audit_lab.guesses", 0),
        ("audit_lab.guesses", 1),
    ]


def test_a_stored_run_has_the_chance_levels_of_its_time():
    specs = expand(TINY)
    old = [s for s in specs if s.attack != {"name": "public-centres"}]
    assert len(expand(TINY, recorded=old)) == len(old) == len(specs) - 1
    # One that was interrupted in its first trials lacks what it lacks.
    assert len(expand(TINY, recorded=old[:1])) == len(specs)


def test_repeated_choices_run_once():
    twice = replace(TINY, attacks=["prior-mean", "prior-mean", "audit_lab.guesses"])
    assert len(expand(twice)) == 4


def test_specs_hold_every_option_so_that_a_default_is_part_of_the_id():
    specs = expand(replace(TINY, attacks=["gauss-newton"]))
    attack = specs[-1].attack
    assert attack is not None
    assert attack["name"] == "gauss-newton"
    assert {"iterations", "restarts", "start"} <= attack.keys()
    written_out = expand(replace(TINY, attacks=[attack]))
    assert [s.id for s in written_out] == [s.id for s in specs]


def test_infinite_options_have_an_id_and_run():
    spec = expand(
        replace(TINY, attacks=[{"name": "audit_lab.sleeps", "seconds": math.inf}])
    )[-1]
    assert spec.attack == {"name": "audit_lab.sleeps", "seconds": "inf"}
    assert len(spec.id) == 64


def test_the_embedded_default_expands():
    settings = AuditSettings.shipped()
    specs = expand(settings)
    assert settings.data == "faces"
    assert len({s.setting for s in specs if not s.defenses}) == settings.seeds
    assert {len(s.defenses) for s in specs} == {0, 1, 2}


# What is wrong with a file


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "titel = 'x'",
            r"has no option 'titel'; did you mean 'title'\? it has: title,",
        ),
        ("seeds = [", r"audit\.toml is not valid TOML: Invalid value"),
        ("seeds = 0", r"seeds is 0; give how many \(at least 1\), or a list"),
        ("seeds = []", r"seeds is \[\]; give how many"),
        ("batch_size = 0", r"batch_size is 0; it must be at least 1"),
        ("batch_size = 'four'", r"batch_size: .*integer.*\(got 'four'\)"),
        ("mode = 'training'", r"mode: .*'eval' or 'train'.*\(got 'training'\)"),
        ("executor = 'gpu'", r"no executor is called 'gpu'; known: processes"),
        ("defenses = []", r"defenses is an empty list"),
        ("data = []", r"data is an empty list"),
    ],
)
def test_a_bad_file_gets_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "audit.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=sentence) as caught:
        AuditSettings.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attacks": ["gaus-newton"]}, "no attack is called 'gaus-newton'; did you"),
        ({"attacks": [{"iterations": 3}]}, "given by its name and options"),
        (
            {"attacks": [{"name": "gauss-newton", "iteration": 3}]},
            "attack 'gauss-newton' has no option 'iteration'; did you mean 'iterations",
        ),
        ({"data": "face"}, "no data is called 'face'; did you mean 'faces'"),
        ({"model": "mpl"}, "no model is called 'mpl'; did you mean 'mlp'"),
        ({"bounds": ["cramer"]}, "no bound is called 'cramer'"),
        ({"prior": "gausian"}, "no prior is called 'gausian'; did you mean 'gaussian'"),
        ({"threat": "labels"}, "no threat model is called 'labels'"),
        ({"loss": "crossentropy"}, "no loss is called 'crossentropy'; did you mean"),
        (
            {"defenses": [{"name": "gaussian-noise", "std": [0.1, -1.0]}]},
            "defense 'gaussian-noise': std is -1",
        ),
        ({"observation": "gradients"}, "no observation is called 'gradients'"),
    ],
)
def test_a_wrong_choice_is_told_before_anything_runs(tmp_path, changes, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        run(replace(TINY, **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_all_wrong_choices_are_told_together():
    with pytest.raises(InvalidInput) as caught:
        expand(replace(TINY, attacks=["x"], model="y", prior="z"))
    assert len(str(caught.value).splitlines()) == 3


def test_data_that_cannot_be_used_is_told_before_anything_runs(tmp_path):
    for changes, sentence in [
        ({"data": {"name": "folder", "path": str(tmp_path / "no")}}, "no"),
        ({"batch_size": 5000}, "batch_size is 5000"),
        ({"classes": 3}, "classes is 3, but the data has labels up to 9"),
        ({"prior": "batch-norm-statistics"}, "no BatchNorm layer"),
        ({"loss": "mse"}, "the loss 'mse' compares value by value"),
        (
            {"mode": "train", "model": {"name": "resnet18", "width": 4}},
            "cannot be computed",
        ),
    ]:
        with pytest.raises(InvalidInput, match=sentence):
            run(replace(TINY, **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_none_in_toml_is_null(tmp_path):
    path = tmp_path / "audit.toml"
    path.write_text(
        "prior = 'none'\nattacks = [{name = 'gauss-newton', seconds = 'none'}]"
    )
    settings = AuditSettings.read(path)
    assert settings.prior is None
    attack = expand(settings)[-1].attack
    assert attack is not None
    assert attack["seconds"] is None


# One trial


def test_attacks_and_bounds_of_a_seed_face_the_same_world():
    first = run_trial(SPEC)
    second = run_trial(replace(SPEC, attack={"name": "audit_lab.guesses"}))
    defended = run_trial(replace(SPEC, defenses=(NOISE,)))
    other = run_trial(replace(SPEC, seed=1))
    assert first.status == second.status == "done"
    assert np.array_equal(first.arrays["truth"], second.arrays["truth"])
    assert np.array_equal(first.arrays["truth"], defended.arrays["truth"])
    assert first.facts["gradient_norm"] == defended.facts["gradient_norm"]
    assert not np.array_equal(first.arrays["truth"], other.arrays["truth"])


def test_a_trial_is_a_pure_function_of_its_spec():
    spec = replace(SPEC, attack={"name": "audit_lab.guesses"}, batch_size=3)
    before = torch.get_rng_state()
    first = run_trial(spec)
    run_trial(replace(spec, seed=7))
    again = run_trial(spec)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.scores == first.scores
    assert again.arrays["guess"].tobytes() == first.arrays["guess"].tobytes()


def test_a_result_says_what_it_measured():
    spec = replace(SPEC, batch_size=2, classes=12, defenses=(NOISE,), dtype="float64")
    result = run_trial(spec)
    world = make_world(spec)
    assert result.status == "done"
    assert result.baseline
    assert result.outcome == (Outcome.CLOSED_FORM.name, Outcome.CLOSED_FORM.value)
    assert result.facts["parameters"] == 64 * 8 + 8 + 8 * 12 + 12
    assert (result.facts["dimension"], result.facts["unknowns"]) == (64, 128)
    assert result.facts["public_examples"] == 1797 - 2
    expected = 0.01 * math.sqrt(result.facts["parameters"])
    norm = result.facts["gradient_norm"]
    assert result.facts["relative_noise"] == pytest.approx(expected / norm)
    assert result.true_labels == world.batch.targets.tolist()
    assert result.arrays["truth"].shape == (2, 1, 8, 8)
    assert result.arrays["truth"].dtype == np.float32
    assert result.versions.keys() == {"exhume", "torch", "numpy", "python"}
    assert result.released_in_clear == ()
    assert result.seconds > 0
    truth, guess = result.arrays["truth"], result.arrays["guess"]
    errors = ((truth - guess) ** 2).reshape(2, -1).mean(1)
    assert result.scores["mse"] == pytest.approx(errors.tolist(), rel=1e-5)


def test_the_objective_is_evaluated_at_the_truth():
    attack = {"name": "gauss-newton", "iterations": 1, "prior": False}
    result = run_trial(replace(SPEC, attack=attack, dtype="float64"))
    assert result.objective is not None
    assert result.objective_at_truth is not None
    assert result.objective_at_truth < 1e-6 * result.objective


def test_a_bound_is_a_row():
    spec = replace(
        SPEC,
        attack=None,
        bound={"name": "bayesian-cramer-rao"},
        defenses=({"name": "gaussian-noise", "std": 0.1},),
    )
    result = run_trial(spec)
    assert result.status == "done", result.reason
    assert result.bound is not None
    assert result.bound["unknowns"] == 64
    assert result.bound["mse"] == pytest.approx(result.bound["total"] / 64)
    assert result.bound["mse"] > 0
    assert result.bound["binds"] == "EVERY_ATTACK"
    assert result.arrays["bound_map"].shape == (1, 1, 8, 8)
    world = make_world(spec)
    assert world.prior is not None
    precision = world.prior.information()
    alone = torch.linalg.inv(precision).diagonal().reshape(1, 8, 8)
    assert result.arrays["prior_map"] == pytest.approx(alone.numpy(), rel=1e-4)


def test_a_bound_that_is_no_squared_error_is_a_row_too():
    spec = replace(
        SPEC,
        attack=None,
        bound={"name": "bayes-security"},
        defenses=({"name": "clipping", "max_norm": 1.0}, {**NOISE, "std": 5.0}),
    )
    result = run_trial(spec)
    assert result.status == "done", result.reason
    assert result.bound is not None
    assert "mse" not in result.bound
    assert 0 < result.bound["value"] < 1
    assert result.arrays == {}


def test_a_trial_accounts_for_the_privacy_of_its_release():
    clipped = ({"name": "clipping", "max_norm": 1.0}, {**NOISE, "std": 2.0})
    found = run_trial(replace(SPEC, defenses=clipped)).privacy
    assert found is not None
    # The Gaussian mechanism by its definition: δ(ε) of two Gaussians 1/2 apart.
    epsilon, distance = found["epsilon"], 0.5
    first, second = (
        0.5 * math.erfc(-z / math.sqrt(2))
        for z in (
            distance / 2 - epsilon / distance,
            -distance / 2 - epsilon / distance,
        )
    )
    assert first - math.exp(epsilon) * second == pytest.approx(1e-5, rel=1e-3)
    assert (found["unit"], found["adjacency"]) == ("client", "add-or-remove")
    assert (found["delta"], found["steps"], found["reasons"]) == (1e-5, 1, [])
    bare = run_trial(replace(SPEC, defenses=(NOISE,))).privacy
    assert bare is not None
    assert bare["epsilon"] == math.inf
    assert "no clipping" in bare["reasons"][0]


def test_without_the_extra_a_trial_says_what_to_install(monkeypatch):
    from exhume.bounds import accounting

    monkeypatch.setattr(accounting, "missing_extra", lambda: True)
    clipped = ({"name": "clipping", "max_norm": 1.0}, NOISE)
    result = run_trial(replace(SPEC, defenses=clipped))
    assert result.status == "done"
    assert result.privacy is not None
    assert result.privacy["epsilon"] is None
    assert "pip install exhume[dp]" in result.privacy["reasons"][0]


def test_a_bound_that_does_not_apply_says_why():
    spec = replace(SPEC, attack=None, bound={"name": "bayesian-cramer-rao"})
    result = run_trial(spec)
    assert result.status == "not-applicable"
    assert "noise" in result.reason


def test_missing_knowledge_makes_an_attack_not_applicable():
    spec = replace(SPEC, attack={"name": "audit_lab.guesses"}, threat="parameter-aware")
    result = run_trial(spec)
    assert result.status == "not-applicable"
    assert "needs the labels" in result.reason


def test_a_trial_of_nothing_or_of_two_things_fails():
    for spec in (
        replace(SPEC, attack=None),
        replace(SPEC, bound={"name": "bayesian-cramer-rao"}),
    ):
        assert "exactly one" in run_trial(spec).reason


# Facts


def test_relative_noise_and_cosine_equal_their_definitions():
    update = {"w": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([4.0])}
    variance = {"w": torch.tensor(0.5), "b": torch.tensor([3.0])}
    assert relative_noise(variance, update) == pytest.approx(2 / 5)
    assert relative_noise({}, update) == 0
    zero = {name: torch.zeros_like(t) for name, t in update.items()}
    assert relative_noise(variance, zero) == math.inf
    other = {"w": torch.tensor([[0.0, 9.0]]), "b": torch.tensor([-1.0])}
    expected = -4 / (5 * math.sqrt(82))
    assert cosine(update, other) == pytest.approx(expected)
    assert cosine(update, zero) == 0


def answer(inputs, targets):
    cost = Stopwatch().cost()
    return Reconstruction(inputs, targets, None, Outcome.CLOSED_FORM, cost)


def test_the_ordered_error_pairs_examples_by_label():
    truth, labels = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([7, 0, 4])
    batch = Batch(truth, labels, EventSpec.vector(1))
    guess = answer(torch.tensor([[2.0], [3.5], [1.0]]), torch.tensor([0, 4, 7]))
    assert ordered_error(guess, batch) == pytest.approx(0.25 / 3)
    # Likeness would have hidden that the labels are swapped.
    swapped = answer(truth, torch.tensor([0, 7, 4]))
    assert ordered_error(swapped, batch) == pytest.approx(2 / 3)
    wrong = answer(truth, torch.tensor([7, 0, 5]))
    assert ordered_error(wrong, batch) is None
    repeated = torch.tensor([7, 7, 4])
    assert (
        ordered_error(answer(truth, repeated), replace(batch, targets=repeated)) is None
    )
    assert ordered_error(answer(truth[:2], labels[:2]), batch) is None
    # Real targets that are given pair the examples as well.
    real = torch.tensor([[0.5, 1.0], [0.5, -1.0], [-2.0, 0.0]])
    shuffled = answer(truth.flip(0), real.flip(0))
    assert ordered_error(shuffled, replace(batch, targets=real)) == 0


def test_one_example_needs_no_label_to_be_paired():
    truth, label = torch.tensor([[1.0, 2.0]]), torch.tensor([3])
    wrong = answer(truth + 1, torch.tensor([5]))
    batch = Batch(truth, label, EventSpec.vector(2))
    assert ordered_error(wrong, batch) == 1.0


def test_labels_identify_order_only_if_they_differ():
    assert labels_identify_order(torch.tensor([1, 2]))
    assert not labels_identify_order(torch.tensor([1, 1]))
    assert labels_identify_order(torch.tensor([[0.1, 0.2], [0.1, 0.3]]))


# A whole run


def test_a_run_leaves_settings_results_and_report_and_resumes(tmp_path):
    told = []

    def tell(phase, done, total, what, seconds_left):
        assert phase == "attacking"
        told.append((done, total, what, seconds_left))

    first = run(TINY, out=tmp_path / "run", progress=tell)
    assert [t[:2] for t in told] == [(done, 4) for done in range(5)]
    assert told[0][2:] == ("", None)
    assert told[1][2] == "prior-mean, no defense, seed 0"
    assert told[-1][3] == 0
    assert first.report == tmp_path / "run" / "report.html"
    assert first.report.is_file()
    assert [r.spec.id for r in first.results] == [s.id for s in expand(TINY)]

    again = run(tmp_path / "run" / "audit.toml", out=tmp_path / "run", progress=tell)
    assert told[5:] == [(4, 4, "", None)]
    assert [r.seconds for r in again.results] == [r.seconds for r in first.results]


def test_a_failed_trial_is_tried_again_on_resume(tmp_path):
    settings = replace(TINY, attacks=["audit_lab.raises", "audit_lab.guesses"])
    for runs in (1, 2):
        result = run(settings, out=tmp_path)
        ended = [r.status for r in result.results]
        assert ended == ["done", "done", "done", "failed", "done"]
        with Store(tmp_path / "results.sqlite") as store:
            failed = result.results[3].spec.id
            assert store.runs().pop(failed) == runs
            assert sum(store.runs().values()) == 4 + runs


def test_what_a_guess_might_explain_gets_a_placebo(tmp_path):
    settings = replace(TINY, attacks=["audit_lab.halfway"], seeds=8)
    done = run(settings, out=tmp_path)
    placebos = [r for r in done.results if r.spec.placebo]
    assert {r.spec.attack["name"] for r in placebos if r.spec.attack} == {
        "audit_lab.halfway"
    }
    assert len(placebos) == 8
    (scenario,) = scenarios(settings, done.results)
    (found,) = findings(scenario)
    assert (found.attack, found.level) == ("audit_lab.halfway", "leak")
    assert found.gain is not None
    assert found.gain.recovered == 0
    assert len(found.gain.placebos) == 8
    page = done.report.read_text(encoding="utf-8")
    assert "No placebo was run" not in page
    # A page that is written again from the folder says the same.
    written = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert written.exit_code == 0, written.output
    assert done.report.read_text(encoding="utf-8") == page
    told = []
    run(settings, out=tmp_path, progress=lambda *given: told.append(given))
    assert {(done, total) for _, done, total, *_ in told} == {(32, 32), (8, 8)}


def test_the_default_folder_is_named_after_the_title(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(TINY).folder.as_posix() == "runs/tiny-sweep"
    assert slug("Café, B = 4!") == "cafe-b-4"
    assert slug("…") == "audit"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(InvalidInput, match="cannot be made"):
        run(TINY, out=tmp_path / "file" / "run")


@pytest.mark.parametrize("threat", ["eavesdropper", "parameter-aware"])
def test_chance_levels_have_the_public_data_whatever_the_threat(threat):
    for name in ("prior-mean", "public-centres"):
        told = run_trial(replace(SPEC, attack={"name": name}, threat=threat))
        assert told.status == "done"
        if name == "prior-mean":  # the other uses labels, where they are known
            informed = run_trial(replace(SPEC, attack={"name": name}))
            assert told.scores["mse"] == informed.scores["mse"]


@pytest.mark.parametrize("name", example_names())
def test_an_audit_that_comes_with_exhume_can_run(name):
    specs = expand(example_settings(name))
    assert any(s.attack and s.attack["name"] != "prior-mean" for s in specs)
    with pytest.raises(UnknownName, match=name):
        example_settings(f"{name}x")


def test_the_reader_of_private_scales_is_added_unless_the_audit_names_it():
    private = {"name": "optimal-gradient-noise", "std": 0.1, "scale_source": "private"}
    bare = replace(TINY, defenses=[private], attacks=["prior-mean"])
    own = {"name": "covariance-aware", "evaluations": 7}
    for settings, expected in ((bare, 20_000), (replace(bare, attacks=[own]), 7)):
        attacks = [spec.attack for spec in expand(settings) if spec.attack]
        found = [a for a in attacks if a["name"] == "covariance-aware"]
        assert [a["evaluations"] for a in found] == [expected]
