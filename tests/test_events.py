"""Events: one kind of example each, with its checks, distance, picture and record."""

import re
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from audit_lab.ragged import Ragged
from exhume import Batch, EventSpec, NotApplicable, audit, score
from exhume.audit import AuditSettings
from exhume.audit.flags import find_flags
from exhume.audit.report.gallery import gallery
from exhume.audit.report.plots import error_plots, legend
from exhume.audit.report.results import drawing, event_of, scenarios
from exhume.audit.report.verdict import findings, verdict
from exhume.compare.wording import parse_error
from exhume.config import build
from exhume.errors import InvalidInput, NotImported, UnknownName, Unsuited
from exhume.keys import generator
from exhume.metrics.mse import Mse
from exhume.metrics.score import apply, match
from exhume.problem.attack import Attack
from exhume.problem.metric import Metric
from exhume.problem.reconstruction import Cost, Outcome, Reconstruction
from exhume.registry import find, names
from exhume.report.pictures import line
from exhume.trials.memorised import nearest_candidates
from plugin import write_package
from report_pages import bound, trial, written
from toys import GRAY, VECTOR, make_world, reveal


def test_events_do_not_import_torch():
    code = (
        "import sys; from exhume.problem.event import EventSpec\n"
        "EventSpec.vector(3).record(); EventSpec.image(1, 2, 2).grid\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_door_leads_to_the_same_event():
    image = EventSpec.image(1, 4, 5)
    assert image == EventSpec("image", (1, 4, 5), 0.0, 1.0)
    assert image == EventSpec.of("image", (1, 4, 5), low=0.0, high=1.0)
    assert image == find("event", "image")((1, 4, 5), 0.0, 1.0)
    assert image != EventSpec("image", (1, 4, 5))
    assert EventSpec.vector(4) == EventSpec("vector", (4,)) != EventSpec.vector(5)
    assert EventSpec.of_shape((1, 4, 5), 0.0, 1.0) == image
    assert EventSpec.of_shape((4,)) == EventSpec.vector(4)
    with pytest.raises(InvalidInput, match=r"\[2, 3, 4, 5\] does not tell.*image"):
        EventSpec.of_shape((2, 3, 4, 5))


RECORD = """
from dataclasses import dataclass
from typing import ClassVar

from exhume.problem.event import EventSpec


@dataclass(frozen=True)
class Aaa(EventSpec):
    axes: ClassVar[int] = 1
    plain: ClassVar[bool] = True
"""


def test_a_kind_of_a_package_does_not_take_the_arrays_of_others(tmp_path, monkeypatch):
    write_package(tmp_path, {("event", "aaa.py"): RECORD}, name="their_lab")
    monkeypatch.syspath_prepend(tmp_path)
    assert "aaa" in names("event")
    assert EventSpec.of("aaa", (4,)).kind == "aaa"
    assert EventSpec.of_shape((4,)) == EventSpec.vector(4)
    with pytest.raises(InvalidInput, match=r"\[28, 28\] does not tell"):
        EventSpec.of_shape((28, 28))


@dataclass(frozen=True)
class Tokens(EventSpec):
    """Sentences as rows of a vocabulary, [T, V]; a row of zeros is padding."""

    axes: ClassVar[int] = 2

    def mask(self, inputs):
        return (inputs.amax(dim=2, keepdim=True) > 0.5).expand_as(inputs)

    def unpadded(self, guess, truth, counts):
        rows = counts[:, 0]
        spec = replace(self, shape=(int(rows.sum()), self.shape[1]))
        return guess[rows], truth[rows], spec


@dataclass(frozen=True, kw_only=True)
class TokenError(Metric):
    """Share of the tokens that are wrong: it needs the rows, and the kind."""

    higher_is_better: ClassVar[bool] = False

    def __call__(self, guess, truth, spec):
        assert isinstance(spec, Tokens)
        assert guess.shape[1:] == spec.shape
        return (guess.argmax(2) != truth.argmax(2)).double().mean(1)


def test_a_metric_sees_the_rows_of_a_padded_example():
    spec = Tokens((4, 5), 0.0, 1.0)
    words = torch.tensor([[1, 3, 0, 0], [2, 2, 4, 0]])
    truth = torch.nn.functional.one_hot(words, 5).float()
    truth[0, 2:] = truth[1, 3:] = 0
    guess = truth.clone()
    guess[0, 2:, 3] = 9  # what an estimate holds at the padding does not matter
    guess[1, 0] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    found = apply(TokenError(), guess, truth, spec)
    assert found.tolist() == pytest.approx([0, 1 / 3])
    mask = spec.mask(truth)
    squares = ((guess - truth) ** 2 * mask).sum((1, 2)) / mask.sum((1, 2))
    torch.testing.assert_close(apply(Mse(), guess, truth, spec), squares.double())


def test_records_of_files_are_written_as_ever():
    assert EventSpec.image(1, 4, 5).record() == {
        "kind": "image", "shape": [1, 4, 5], "range": [0.0, 1.0]
    }  # fmt: skip
    assert EventSpec.vector(3).record() == {
        "kind": "vector", "shape": [3], "range": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"shape": [3]}, "event is given by its name and options"),
        ({"kind": "vectr", "shape": [3]}, "did you mean 'vector'"),
        ({"kind": "vector"}, "shape: Field required"),
        ({"kind": "vector", "shape": "wide"}, "shape: Input should be"),
        ({"kind": "vector", "shape": [3], "range": 5}, "is 5; give two numbers"),
        ({"kind": "vector", "shape": [3], "range": [0, 1e999]}, "two finite numbers"),
        ({"kind": "vector", "shape": [3], "range": [1, 0]}, "range .* is empty"),
        ({"kind": "vector", "shape": [3], "colour": "red"}, "no option 'colour'"),
    ],
)
def test_a_wrong_record_is_one_sentence(record, message):
    with pytest.raises((InvalidInput, UnknownName), match=message):
        EventSpec.from_record(record)


def test_a_record_never_imports_a_module(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for own in ("refused", "loaded"):
        with pytest.raises(NotImported, match=r"'evil\.py' is a module"):
            EventSpec.from_record({"kind": "evil.py", "shape": [3]}, own=own)


def test_pixels_are_asked_for_by_what_an_event_has():
    assert GRAY.grid == (1, 8, 8)
    assert VECTOR.grid is None
    image = GRAY.draw(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)))
    assert image.png
    assert image.width == 8


def test_an_attack_may_declare_for_which_examples_it_is():
    class OnlyVectors(Attack):
        needs = frozenset()
        events = frozenset({"vector"})

        def run(self, problem, key):
            return answer(torch.zeros(1, *problem.spec.shape), torch.tensor([0]))

    image, vector = reveal(make_world()), reveal(make_world(spec=VECTOR))
    assert OnlyVectors()(vector).inputs.shape == (1, 12)
    with pytest.raises(Unsuited, match="of kind vector, and these are of kind image"):
        OnlyVectors()(image)


def test_what_an_attack_found_becomes_examples():
    class Wild(Attack):
        needs = frozenset()

        def run(self, problem, key):
            inputs = 9 * torch.randn((2, *problem.spec.shape), generator=generator(key))
            return answer(inputs, torch.tensor([0, 1]))

    found = Wild()(reveal(make_world()), key=3)
    expected = 9 * torch.randn((2, *GRAY.shape), generator=generator(3))
    assert torch.equal(found.inputs, expected.clamp(0, 1))


def test_a_batch_asks_its_event():
    with pytest.raises(InvalidInput, match=r"expected \[B, 12\] with B ≥ 1"):
        Batch(torch.zeros(2, 11), torch.tensor([0, 1]), VECTOR)


# --- examples of unequal size: padding is made by the event and counts nowhere --------

SPEC = Ragged((2, 6))
SETTINGS = AuditSettings(title="Headline", attacks=["gauss-newton", "dlg"])


def sequences(*lengths, key=0):
    """Return padded sequences, and the same as vectors of their own."""
    plain = [torch.randn(n, generator=generator(key, "ragged", n)) for n in lengths]
    padded = torch.zeros(len(lengths), 2, 6)
    for row, values in zip(padded, plain, strict=True):
        row[0, : len(values)], row[1, : len(values)] = values, 1
    return padded, plain


def batch_of(*lengths, key=0):
    padded, _ = sequences(*lengths, key=key)
    return Batch(padded, torch.arange(len(lengths)), SPEC)


def answer(inputs, targets):
    return Reconstruction(inputs, targets, None, Outcome.CLOSED_FORM, Cost(0, 0, 0))


def test_a_batch_checks_its_padding():
    batch = batch_of(3, 6)
    assert SPEC.mask(batch.inputs).sum(dim=(1, 2)).tolist() == [3, 6]
    empty, gap, dirt = (batch.inputs.clone() for _ in range(3))
    empty[1] = 0
    gap[1, 1, 2] = 0
    dirt[0, 0, 5] = 0.5
    with pytest.raises(InvalidInput, match="example 1 is padding alone; leave it out"):
        Batch(empty, batch.targets, SPEC)
    for wrong in (gap, dirt):
        with pytest.raises(InvalidInput, match="come first, then zeros"):
            Batch(wrong, batch.targets, SPEC)
    # The range is that of the numbers, not of the zeros behind them.
    high = batch.inputs.clone()
    high[:, 0] += 5 * high[:, 1]
    Batch(high, batch.targets, replace(SPEC, low=1.0, high=9.0))
    with pytest.raises(InvalidInput, match="outside the declared range"):
        Batch(high, batch.targets, replace(SPEC, low=6.0, high=9.0))


def test_what_stands_in_the_padding_moves_no_distance():
    truth, plain = sequences(3, 6, 4)
    guess, others = sequences(6, 6, 6, key=1)
    expected = [[(o[: len(x)] - x).square().sum() for x in plain] for o in others]
    cost = SPEC.distance(guess, truth)
    torch.testing.assert_close(cost, torch.tensor(expected).double())
    far = guess.clone()
    far[:, 1] = 1e3
    torch.testing.assert_close(SPEC.distance(far, truth), cost)
    # The longest is matched by what it shares with nobody else.
    shuffled = torch.stack([truth[1], truth[2], truth[0]])
    shuffled[:, 0] += 100 * (shuffled[:, 1] == 0)
    assert match(shuffled, truth, SPEC).tolist() == [2, 0, 1]


@pytest.mark.parametrize("bounded", [False, True])
def test_scores_are_those_of_the_examples_without_padding(bounded):
    truth, plain = sequences(3, 6, 4)
    guess, others = sequences(6, 6, 6, key=1)
    ends = (-9.0, 9.0) if bounded else (None, None)
    batch = Batch(truth, torch.arange(3), replace(SPEC, low=ends[0], high=ends[1]))
    found = score(answer(guess, batch.targets), batch)
    for name in names("metric"):
        metric = build("metric", name)
        if metric.compares != "inputs":
            continue
        for i, j in enumerate(found.assignment):
            spec = EventSpec.vector(len(plain[i]), *ends)
            one = metric(others[j][None, : len(plain[i])], plain[i][None], spec)
            if isinstance(one, NotApplicable):
                assert name in found.not_applicable
            else:
                assert found[name][i] == pytest.approx(float(one))
    assert "mse" in found.values
    assert ("psnr" in found.values) == bounded
    assert "ssim" in found.not_applicable


def test_memorised_sequences_are_sought_without_their_padding():
    batch, public = batch_of(3, 6, 4), batch_of(5, 4, 6, key=2)
    centre = public.mean()
    held = public.spec.mask(public.inputs)[:, 0]
    assert float(centre[0, 5]) == pytest.approx(float(public.inputs[2, 0, 5]))
    assert float(centre[0, 4]) == pytest.approx(
        float(public.inputs[held[:, 4], 0, 4].mean())
    )
    # Candidates up to contrast, with rubbish behind their end.
    guess = centre + 3 * (batch.inputs.double() - centre)
    guess[:, 0] += 50 * (batch.inputs[:, 1] == 0)
    mask = batch.spec.mask(batch.inputs)
    found, index = nearest_candidates(batch.inputs.double(), guess, centre, mask)
    assert index.tolist() == [0, 1, 2]
    assert found.tolist() == pytest.approx([1.0] * 3)
    blind, _ = nearest_candidates(batch.inputs.double(), guess, centre)
    assert float(blind.min()) < 0.9


def test_an_audit_of_padded_examples_shows_and_ranks_them(tmp_path):
    settings = AuditSettings(
        title="Sequences",
        data="audit_lab.sequences",
        model={"name": "mlp", "hidden": [16], "activation": "tanh"},
        loss="mse",
        attacks=[{"name": "gauss-newton", "iterations": 20}],
        bounds=["bayesian-cramer-rao"],
        defenses=[{"name": "gaussian-noise", "std": 1e-3}],
        seeds=1,
        batch_size=2,
        executor="serial",
        out=str(tmp_path / "run"),
    )
    done = audit.run(settings)
    noisy = [r for r in done.results if r.spec.defenses]
    results = {(r.spec.attack or r.spec.bound)["name"]: r for r in noisy}
    found, bound = results["gauss-newton"], results["bayesian-cramer-rao"]
    # Examples of unequal size have no centre.
    centres = [r for r in done.results if r.spec.attack == {"name": "public-centres"}]
    assert {r.status for r in centres} == {"not-applicable"}
    others = [r for r in done.results if r.spec.attack and r not in centres]
    assert {r.status for r in others} == {"done"}
    assert found.event == {
        "kind": "audit_lab.ragged", "shape": [2, 6], "range": None
    }  # fmt: skip
    truth, guess = (torch.from_numpy(found.arrays[n]) for n in ("truth", "guess"))
    held = truth[:, 1] > 0
    assert found.facts["unknowns"] == int(held.sum()) < truth[:, 0].numel()
    squares = (guess - truth)[:, 0].square()
    errors = [float(row[h].mean()) for row, h in zip(squares, held, strict=True)]
    assert found.scores["mse"] == pytest.approx(errors)
    assert bound.status == "not-applicable"
    assert "some numbers of these examples are padding" in bound.reason
    page = done.report.read_text(encoding="utf-8")
    drawn = SPEC.draw(guess[0].numpy(), truth[0].numpy()).svg
    assert drawn in page
    assert drawn.count(",") == 2 * int(held[0].sum())
    text = re.sub(r"<(style|script|svg).*?</\1>", "", page, flags=re.DOTALL)
    assert "ixel" not in text
    assert "mage" not in text.replace("SSIM compares images", "")


# --- the headline: attacks are ranked by the error that the event names ---------------


def ranked(attack, mse, wrong, **changes):
    """A trial whose data are ranked by another error than the squared one."""
    record = {"kind": "vector", "shape": [9], "range": None}
    scores = {"mse": [mse], "share-wrong": [wrong]}
    event = {"event": record, "headline": "share-wrong"}
    return trial(attack, mse, shape=(9,), **{"scores": scores, **event, **changes})


def test_the_headline_ranks_attacks_in_words_pictures_and_flags(tmp_path):
    results = [
        ranked("dlg", 0.01, 0.9),
        ranked("gauss-newton", 0.5, 0.125),
        ranked("prior-mean", 0.3, 0.75),
        replace(bound(0.02, defenses=()), headline="share-wrong"),
    ]
    (scenario,) = scenarios(SETTINGS, results)
    assert scenario.headline == "share-wrong"
    (found,) = findings(scenario)
    assert (found.attack, found.error, found.level) == ("gauss-newton", 0.125, "unsure")
    assert verdict(scenario, [found], {}).startswith(
        "Without a defense, gauss-newton comes nearer than guessing (a share wrong of "
        "0.125), which one seed cannot tell from chance: run more (guessing, "
        "prior-mean: a share wrong of 0.75)."
    )
    (row,) = gallery(scenario, 99).panels[0].rows
    best = {p.alt.split(": ")[1].split(",")[0]: p.best for p in row.guesses}
    assert best == {"gauss-newton": True, "dlg": False, "prior-mean": False}
    assert row.guesses[0].captions == ("share wrong 0.125",)
    flags = find_flags(results)
    chance = [i for i, found in flags.items() if any(f.kind == "chance" for f in found)]
    assert chance == [results[0].spec.id]
    _, text = written(tmp_path, results)
    head = text[text.index('<table class="results">') :]
    columns = re.findall(r"<button[^>]*>([^<]*)</button></th>", head)
    assert columns[3:5] == ["share wrong", "MSE"]


def test_no_bound_is_held_against_another_error_than_the_squared_one():
    other = [ranked("dlg", 0.01, 0.9), replace(bound(0.5, defenses=()), headline="x")]
    plain = [trial("dlg", 0.01, shape=(9,)), bound(0.5, defenses=())]
    kinds = {}
    for name, results in (("other", other), ("plain", plain)):
        (scenario,) = scenarios(SETTINGS, results)
        kinds[name] = [item.kind for item in legend(scenario)]
        (plot,) = error_plots(scenario, "p")
        assert ("share wrong of an example" in plot.svg) == (name == "other")
    assert kinds == {"other": ["curve"], "plain": ["curve", "bound"]}


def test_advice_reads_decibels_as_a_squared_error_alone():
    assert parse_error("17dB") == pytest.approx(10**-1.7)
    assert parse_error("40", "share-wrong") == 40
    with pytest.raises(InvalidInput, match="give a mean share wrong such"):
        parse_error("17dB", "share-wrong")


def test_results_of_earlier_versions_are_ranked_by_the_squared_error():
    old = trial("dlg", 0.01)
    assert (old.event, old.headline) == (None, "mse")
    assert event_of(old) == EventSpec("image", (1, 6, 6))
    assert event_of(trial("dlg", 0.01, shape=(9,))) == EventSpec.vector(9)
    assert event_of(trial("dlg", 0.01, shape=(2, 3, 4, 5))) is None
    # A module that is gone, or was never imported here, still gives lines.
    lost = ranked("dlg", 0.01, 0.9, event={"kind": "gone.away", "shape": [9]})
    truth = np.arange(9.0)
    assert event_of(lost) is None
    assert drawing(lost)(truth, truth) == line(truth, truth)
