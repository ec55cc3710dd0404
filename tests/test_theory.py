"""Scaling experiments: slopes, distances, defenses, resuming, page and command."""

from __future__ import annotations

import itertools
import json
import math
import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import exhume
from exhume.bounds.rates import RATES
from exhume.cli import app
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.metrics.ssim import structural_similarities
from exhume.observations.gradient import Gradient
from exhume.problem.world import World
from exhume.theory import TheorySettings, load, run
from exhume.theory.collect import Measured, collect, predicted
from exhume.theory.distance import aligned, rms_distance
from exhume.theory.findings import to_toml
from exhume.theory.measure import ARMS, measure
from exhume.theory.network import (
    RELEASED,
    batch_of,
    network,
    pictures,
    task_of,
    unit,
)
from exhume.theory.plan import place, points
from exhume.theory.point import PointResult, PointSpec, PointStore
from exhume.theory.report.plot import plot
from exhume.theory.settings import (
    Experiment,
    full_settings,
)
from exhume.theory.slopes import Slope, anchored, fit_slope, slope_of
from exhume.theory.stacks import STACKS, stack
from exhume.theory.verdict import exponent, interval, rows, summary, verdict

SPEC = PointSpec(
    row="none",
    width=300,
    dimension=6,
    batch_size=2,
    activation="quadratic-cubic",
    layer="hidden",
    bias=2.0,
    noise=0.5,
    arms=("svd",),
    seed=0,
)
TINY = TheorySettings(
    title="Tiny",
    seeds=2,
    width=300,
    dimension=5,
    arms=["svd"],
    executor="serial",
    experiments=[
        Experiment(row="none", sweep="m", values=[200, 800]),
        Experiment(row="pruning", sweep="rho", values=[0, 0.5], kind="magnitude"),
    ],
)


# Slopes


def synthetic(slope: float, noise: float, draw: int, seeds: int = 4):
    source = generator(draw, "noise")
    sizes = [10.0, 20.0, 40.0, 80.0]
    return {
        seed: [
            (q, math.exp(seed) * q**slope * math.exp(noise * float(e)))
            for q, e in zip(sizes, torch.randn(4, generator=source), strict=True)
        ]
        for seed in range(seeds)
    }


def test_the_slope_of_a_power_law_is_its_exponent():
    found = fit_slope(synthetic(-0.5, 0.0, 0))
    assert found.value == pytest.approx(-0.5)
    assert (found.low, found.high) == pytest.approx((-0.5, -0.5))
    assert found.points == 16
    # One seed: the slope of plain least squares, by an independent implementation.
    from scipy.stats import linregress

    (one,) = synthetic(0.7, 0.3, 5, seeds=1).values()
    logs = torch.tensor(one, dtype=torch.float64).log().T.numpy()
    oracle: Any = linregress(x=logs[0], y=logs[1])  # pyright: ignore
    alone = fit_slope({0: one})
    assert alone.value == pytest.approx(oracle.slope)
    assert (alone.high - alone.low) / 2 == pytest.approx(4.302653 * oracle.stderr)
    assert slope_of(one) == alone.value


def test_the_interval_covers_the_exponent_as_often_as_it_says():
    draws = 400
    hits = sum(
        f.low <= 0.5 <= f.high
        for f in (fit_slope(synthetic(0.5, 0.4, draw)) for draw in range(draws))
    )
    # Binomial with 95 %: three standard deviations of the share are 0.033.
    assert hits / draws == pytest.approx(0.95, abs=0.033)


def test_what_has_no_slope_is_said():
    with pytest.raises(InvalidInput, match="two different quantities"):
        fit_slope({0: [(2.0, 1.0)], 1: [(2.0, 3.0)]})
    with pytest.raises(InvalidInput, match="positive"):
        fit_slope({0: [(2.0, 0.0), (3.0, 1.0)]})
    two = fit_slope({0: [(1.0, 1.0), (2.0, 4.0)]})
    assert two.value == pytest.approx(2)
    assert not two.known
    assert interval(two) == "–"
    # A seed that lacks a size does not bend the slope.
    uneven = synthetic(1.0, 0.0, 0)
    uneven[3] = uneven[3][2:]
    assert fit_slope(uneven).value == pytest.approx(1.0)


def test_an_anchored_rate_touches_the_points_from_above():
    points = [(1.0, 1.0), (2.0, 3.0), (4.0, 4.0)]
    drawn = anchored(points, 0.5)
    gaps = [line / point for (_, line), (_, point) in zip(drawn, points, strict=True)]
    assert min(gaps) == pytest.approx(1)
    assert slope_of(drawn) == pytest.approx(0.5)


# Distance


def test_the_distance_takes_the_best_order_and_where_asked_the_best_signs():
    truth = torch.nn.functional.normalize(
        torch.randn(4, 6, generator=generator(0, "x"), dtype=torch.float64)
    )
    guess = truth[[2, 0, 3, 1]] * torch.tensor([1, -1, 1, -1.0]).unsqueeze(1)
    noisy = guess + 0.1 * torch.randn(4, 6, generator=generator(1, "e"))

    def direct(signed: bool) -> float:
        signs = [(1.0,) * 4] if signed else itertools.product([1.0, -1.0], repeat=4)
        return min(
            float((torch.tensor(s).unsqueeze(1) * noisy[list(p)] - truth).norm()) / 2
            for s in signs
            for p in itertools.permutations(range(4))
        )

    assert rms_distance(guess, truth, signed=False) == pytest.approx(0, abs=1e-12)
    for signed in (True, False):
        found = rms_distance(noisy, truth, signed=signed)
        assert found == pytest.approx(direct(signed))
    assert torch.equal(aligned(guess, truth, signed=False), truth)
    with pytest.raises(InvalidInput, match="finite: False"):
        rms_distance(guess * math.nan, truth)


# Points


@pytest.mark.parametrize("layer", ["hidden", "output"])
def test_natural_units_are_those_of_the_theory(layer):
    spec = replace(SPEC, layer=layer)
    batch, net = batch_of(spec), network(spec)
    assert torch.allclose(batch.inputs.norm(dim=1), torch.ones(2, dtype=torch.float64))
    released = task_of(spec).gradient(batch.inputs, batch.targets)
    assert list(released) == [RELEASED[layer]]
    weight = net.get_parameter("hidden.weight").detach()
    z = batch.inputs @ weight.T
    residual = (z**2 + z**3).mean(dim=1) + spec.bias - batch.targets.squeeze(1)
    if layer == "output":
        expected = residual @ (z**2 + z**3)
    else:
        expected = (residual.unsqueeze(1) * (2 * z + 3 * z**2)).T @ batch.inputs
    natural = released[RELEASED[layer]] / unit(layer, spec.width, 2)
    torch.testing.assert_close(natural.squeeze(0), expected)


STRENGTHS = {
    "local-aggregation": {"count": 3},
    "dp-sgd": {"clip": 30.0},
    "clipping": {"clip": 30.0},
    "dropout": {"ratio": 0.5},
    "pruning": {"ratio": 0.5},
    "secure-aggregation": {"count": 2, "batch_size": 1},
}


@pytest.mark.parametrize("row", RATES)
def test_every_row_is_measured_by_the_shipped_defense(row):
    spec = replace(SPEC, row=row, **STRENGTHS.get(row, {}))
    found = measure(spec)
    assert found.status == "done", found.reason
    assert found.notes == ()
    assert found.floor is not None
    assert 0 < found.floor < found.errors["svd"] < 1.5
    names = [d["name"] for d in map(exhume.config.describe, stack(spec))]
    assert (RATES[row].defense or "gaussian-noise") in names
    again = measure(spec)
    assert again.errors == found.errors


@pytest.mark.parametrize("row", ["none", "clipping", "dp-sgd", "secure-aggregation"])
def test_noise_has_its_size_in_natural_units(row):
    big = replace(SPEC, row=row, width=4000, noise=3.0, **STRENGTHS.get(row, {}))

    def released(spec: PointSpec) -> torch.Tensor:
        mechanism = exhume.Mechanism(Gradient(), stack(spec))
        world = World(task_of(spec), batch_of(spec), mechanism)
        return world.observe(0).values["hidden.weight"]

    quiet = replace(big, noise=1e-9)
    gap = (released(big) - released(quiet)) / unit("hidden", 4000, big.examples)
    assert float(gap.std()) == pytest.approx(3.0, rel=0.02)


def test_what_goes_wrong_is_a_failed_point_and_not_an_exception():
    crowded = measure(replace(SPEC, batch_size=7))
    assert crowded.status == "failed"
    assert "7 inputs cannot be independent in 6 dimensions" in crowded.reason
    assert "needs a clip above 0" in measure(replace(SPEC, row="clipping")).reason
    assert "no row 'noise'" in measure(replace(SPEC, row="noise")).reason
    silent = measure(replace(SPEC, noise=0.0))
    assert silent.floor is None
    assert "no noise" in silent.notes[0]
    lost = measure(replace(SPEC, layer="output", arms=("svd", "moments")))
    assert list(lost.errors) == ["moments"]
    assert lost.notes[0].startswith("svd: ")


def test_images_are_scaled_and_kept_for_the_page():
    spec = replace(
        SPEC,
        inputs="images",
        data={"name": "digits"},
        dimension=64,
        width=2000,
        floor=False,
    )
    found = measure(spec)
    assert found.status == "done", found.reason
    assert found.arrays["truth"].shape == found.arrays["svd"].shape == (2, 64)
    # A plain oracle: the same images at their own length, in [0, 1].
    truth = pictures(spec).inputs.double()
    guess = torch.from_numpy(found.arrays["svd"]).reshape(truth.shape)
    guess = guess * truth.flatten(1).norm(dim=1).reshape(2, 1, 1, 1)
    expected = structural_similarities(guess.clamp(0, 1), truth, 1.0)
    assert found.similarity == {"svd": pytest.approx(expected.tolist())}
    assert min(found.similarity["svd"]) > 0.9
    assert measure(SPEC).similarity == {}
    assert "have 64 numbers" in measure(replace(spec, dimension=60)).reason
    first = batch_of(replace(SPEC, inputs="basis")).inputs
    assert torch.equal(first, torch.eye(2, 6, dtype=torch.float64))


def test_stacks_cover_the_table():
    assert list(STACKS) == list(RATES)


# Curves


def curve_of(experiment: Experiment, errors, floors=None, norms=None):
    """Put invented results together: value → error, the same for two seeds."""
    settings = replace(TINY, experiments=[experiment])
    results = {}
    for spec in points(settings, experiment):
        (option,) = ({"m": "width", "rho": "ratio", "C": "clip"}[experiment.sweep],)
        value = getattr(spec, option)
        results[spec.id] = PointResult(
            spec=spec,
            status="done",
            errors={"svd": errors(value) * (1 + spec.seed)},
            floor=floors(value) if floors else None,
            gradient_norm=norms(value) if norms else 1.0,
        )
    (curve,) = collect(settings, results)
    return curve


def test_exponents_are_those_of_the_axis_that_grows_with_the_strength():
    mask = Experiment(row="dropout", sweep="rho", values=[0, 0.5, 0.75])
    curve = curve_of(mask, lambda rho: 0.1 / math.sqrt(1 - rho), lambda rho: 0.01)
    assert curve.upper == 0.5
    assert curve.first is not None
    assert curve.first.slope is not None
    assert curve.first.slope.value == pytest.approx(0.5)
    assert verdict(curve, curve.first) == "as the upper rate"
    clip = Experiment(row="dp-sgd", sweep="C", values=[100, 10])
    found = curve_of(clip, lambda c: 0.1 + c / 1e3, norms=lambda _: 1e3)
    assert found.upper == 1.0
    assert [at for at, _ in found.arms[0].means] == [0.01, 0.1]


def test_a_clipped_norm_that_grows_with_the_width_counts():
    wide = Experiment(row="dp-sgd", sweep="m", values=[100, 400], clip=5)
    curve = curve_of(wide, lambda _: 0.2, lambda _: 0.1, norms=lambda m: 10 * m**0.5)
    assert curve.upper == pytest.approx(0.0)
    assert curve.lower == pytest.approx(0.0)
    loose = curve_of(replace(wide, clip=1e9), lambda _: 0.2, norms=lambda m: m**0.5)
    assert loose.upper == pytest.approx(-0.5)
    assert predicted(RATES["pruning"].upper, wide, []) is None


def test_errors_that_level_off_are_drawn_and_not_fitted():
    wide = Experiment(row="none", sweep="m", values=[100, 200, 400, 800])
    curve = curve_of(wide, lambda m: min(1.0, 8 / m**0.5))
    (arm,) = curve.arms
    assert len(arm.means) == 4
    assert len(arm.fitted) == 4 - sum(e > 0.7 for _, e in arm.means) < 4
    assert arm.slope is not None
    assert arm.slope.value == pytest.approx(-0.5)
    nothing = curve_of(wide, lambda _: 1.2)
    assert nothing.arms[0].slope is None
    assert "too few" in verdict(nothing, nothing.arms[0])


def test_what_is_exact_has_no_exponent():
    wide = Experiment(row="none", sweep="m", values=[100, 200, 400])
    exact = curve_of(wide, lambda m: 0.0 if m < 400 else 1e-15)
    assert exact.arms[0].slope is None
    assert verdict(exact, exact.arms[0]) == "exact up to rounding"
    partly = curve_of(wide, lambda m: 1e-16 if m == 100 else m**-0.5)
    (arm,) = partly.arms
    assert not arm.exact
    assert arm.slope is not None
    assert arm.slope.value == pytest.approx(-0.5)
    drawn = plot(partly, "name")
    assert drawn is not None
    assert "10⁻²" in drawn.svg
    assert "10⁻⁹" not in drawn.svg


def test_errors_below_the_bound_are_found_where_it_means_something():
    wide = Experiment(row="none", sweep="m", values=[100, 400])
    curve = curve_of(wide, lambda m: 0.05 if m == 100 else 0.4, lambda _: 0.1)
    assert curve.below == (("svd", 100),)
    assert curve.compared == 2
    assert "1 error of 2 lies below" in summary([curve])[0]
    vast = curve_of(wide, lambda _: 0.05, lambda _: 2.0)
    assert (vast.below, vast.compared) == ((), 0)
    above = curve_of(wide, lambda _: 0.5, lambda m: 1 / m)
    assert "None of 2 errors" in summary([above])[0]


@pytest.mark.parametrize(
    ("slope", "told"),
    [
        (Slope(0.5, 0.4, 0.6, 9), "as the upper rate"),
        (Slope(0.2, 0.15, 0.25, 9), "better than the upper rate"),
        (Slope(0.02, -0.1, 0.1, 9), "as the lower rate"),
        (Slope(0.9, 0.8, 1.0, 9), "steeper than the upper rate"),
        (Slope(0.5, 0.21, 0.79, 9), "as the upper rate"),
        (Slope(0.5, 0.1, 0.9, 9), "the interval is too wide to tell"),
        (Slope(0.9, 0.4, 1.4, 9), "the interval is too wide to tell"),
        (Slope(0.5, -math.inf, math.inf, 2), "the interval is too wide to tell"),
        (Slope(2.0, -math.inf, math.inf, 2), "the interval is too wide to tell"),
        (Slope(-0.1, -0.6, 0.4, 9), "better than the upper rate"),
        (Slope(1.5, 0.9, 2.1, 9), "steeper than the upper rate"),
    ],
)
def test_a_verdict_compares_with_both_rates(slope, told):
    wide = Experiment(row="none", sweep="m", values=[100, 400])
    curve = replace(curve_of(wide, lambda _: 0.1), upper=0.5, lower=0.0)
    assert verdict(curve, Measured("svd", {100: {0: 9.0}}, slope)) == told


def test_an_arm_that_rises_towards_the_first_one_keeps_its_promise():
    wide = Experiment(row="none", sweep="m", values=[100, 400])
    first = curve_of(wide, lambda _: 0.4)
    rising: dict[float, dict[int, float]] = {100: {0: 0.01}, 400: {0: 0.4}}
    arm = Measured("polished", rising, Slope(2.0, 1.5, 2.5, 2))
    assert verdict(first, arm) == "steeper, from below the first attack"
    higher = replace(arm, values={100: {0: 0.01}, 400: {0: 0.9}})
    assert verdict(first, higher) == "steeper than the upper rate"


def test_exponents_in_words():
    assert [exponent(v) for v in (-0.5, 1.0, -0.001, None)] == [
        "−0.50",
        "+1.00",
        "0",
        "–",
    ]
    assert interval(Slope(0.5, 0.4, 0.6, 9)) == "+0.40 to +0.60"


# Settings


def test_settings_survive_their_toml(tmp_path):
    for settings in (TINY, TheorySettings.shipped(), full_settings("digits")):
        path = tmp_path / "again.toml"
        path.write_text(to_toml(settings), encoding="utf-8")
        assert TheorySettings.read(path) == settings


def test_the_embedded_settings_cover_the_table():
    settings = TheorySettings.shipped()
    assert {e.row for e in settings.experiments} == set(RATES)
    swept = {e.sweep for e in settings.experiments}
    assert swept == {"m", "d", "B", "sigma", "C", "rho", "K"}
    kinds = {e.kind for e in settings.experiments if e.row == "pruning"}
    assert kinds == {"random", "magnitude"}
    assert len(settings.seed_list) >= 5


def test_the_full_settings_are_figure_two_and_real_images():
    settings = full_settings()
    figure = [e for e in settings.experiments if e.inputs == "basis"]
    shown = {(e.activation, settings.option(e, "layer")) for e in figure}
    assert shown >= {
        ("quadratic-cubic", "output"),
        ("quadratic-cubic", "hidden"),
        ("tanh", "hidden"),
        ("sigmoid", "hidden"),
    }
    for one in figure:
        assert one.sweep == "d"
        assert (min(one.values), max(one.values)) == (10, 300)
        assert settings.option(one, "width") == 5000
        assert settings.option(one, "bias") == 30
    assert [e.data["name"] for e in settings.experiments if e.data] == ["faces"]
    with_digits = full_settings("folder")
    names = [e.data["name"] for e in with_digits.experiments if e.data]
    assert names == ["faces", "mnist"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": "nothing"}, "no row 'nothing'"),
        ({"sweep": "x"}, "sweep"),
        ({"values": [3]}, "two values or more"),
        ({"values": [0, 100]}, "not all in its range"),
        ({"arms": ["svg"]}, "no arm is called 'svg'"),
        ({"widht": 3}, "did you mean 'width'"),
        ({"width": 0}, "width is 0; it must be at least 1"),
        ({"noise": -1}, "noise is -1"),
        ({"bias": math.inf}, "bias is inf; it must be finite"),
        ({"ratio": 1.0}, "ratio is 1.0; it must be below 1"),
        ({"published": [[3]]}, "published has [3.0]"),
        ({"published": [[100, -1]]}, "published has [100.0, -1.0]"),
        ({"sweep": "K"}, "none has no K; sweep it under local-aggregation"),
    ],
)
def test_wrong_experiments_are_named(tmp_path, change, message):
    given = {"row": "none", "sweep": "m", "values": [100, 200], **change}
    dumped = {k: json.dumps(v).replace("Infinity", "inf") for k, v in given.items()}
    text = ", ".join(f"{k} = {v}" for k, v in dumped.items())
    path = tmp_path / "wrong.toml"
    path.write_text(f"experiments = [{{ {text} }}]", encoding="utf-8")
    with pytest.raises(InvalidInput, match="experiment 1") as caught:
        TheorySettings.read(path)
    assert message in str(caught.value)


def test_wrong_settings_are_named():
    for change, message in (
        ({"experiments": []}, "nothing to measure"),
        ({"seeds": 0}, "seeds is 0"),
        ({"arms": []}, "arms is empty"),
        ({"noise": -1.0}, "noise is -1"),
        ({"noise": math.nan}, "noise is nan"),
    ):
        with pytest.raises(InvalidInput, match=message):
            replace(TINY, **change)
    half = Experiment(row="none", sweep="d", values=[4.5, 5])
    with pytest.raises(InvalidInput, match="whole number"):
        points(TINY, half)
    clip = replace(half, row="clipping", sweep="C", values=[4, 5])
    assert place(clip, 4) == 0.25


# Runs


def test_a_run_resumes_and_repeats_nothing(tmp_path, monkeypatch):
    stopped = 3
    calls = []

    def count(phase, done, total, what, seconds_left):
        calls.append(done)
        if done == stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(TINY, out=tmp_path, progress=count)
    with PointStore(tmp_path / "points.sqlite") as store:
        first = store.runs()
    assert len(first) == stopped
    part = load(tmp_path)
    assert part.missing == 5
    assert "5 points have not ended" in part.report.read_text("utf-8")
    found = run(TINY, out=tmp_path)
    assert found.missing == 0
    with PointStore(tmp_path / "points.sqlite") as store:
        assert set(store.runs().values()) == {1}
        assert len(store.runs()) == 8
    values = [arm.values for curve in found.curves for arm in curve.arms]
    again = load(tmp_path)
    assert [a.values for c in again.curves for a in c.arms] == values
    with pytest.raises(InvalidInput, match="exhume theory makes such a folder"):
        load(tmp_path / "nowhere")


def test_the_page_holds_every_part(tmp_path):
    found = run(TINY, out=tmp_path)
    text = found.report.read_text("utf-8")
    for part in ("exponents", "plots", "rates", "setting", "reading", "repeat"):
        assert f'<section id="{part}">' in text
    assert text.count('<svg class="plot"') == 2
    assert "http" not in text.replace("http-equiv", "")
    assert "effective ratio ρ̂" in text
    for row in rows(found.curves):
        assert row.cells[3] in text
    for name, rate in RATES.items():
        assert f"<td>{name}</td>" in text
        assert rate.upper.text in text
    record = json.loads((tmp_path / "theory.json").read_text("utf-8"))
    assert [c["row"] for c in record["curves"]] == ["none", "pruning"]
    slope = record["curves"][0]["arms"][0]["slope"]["value"]
    assert slope == found.curves[0].arms[0].slope.value  # type: ignore[union-attr]
    assert record["curves"][1]["upper"]["exponent"] is None
    assert (tmp_path / "theory.png").read_bytes().startswith(b"\x89PNG")
    settings = tomllib.loads((tmp_path / "theory.toml").read_text("utf-8"))
    assert set(settings) == {f.name for f in fields(TheorySettings)}


def test_the_similarity_of_images_is_on_the_page_and_in_the_data(tmp_path):
    images = Experiment(
        title="two digits",
        row="none",
        sweep="m",
        values=[1000, 3000],
        inputs="images",
        data={"name": "digits"},
        dimension=64,
        floor=False,
    )
    found = run(replace(TINY, experiments=[images]), out=tmp_path)
    (curve,) = found.curves
    assert set(curve.similarity["svd"]) == {1000, 3000}
    values = [v for one in curve.similarity["svd"][3000].values() for v in one]
    assert len(values) == 4
    mean = f"{sum(values) / 4:.2f}"
    told = f"The mean SSIM of two digits at width m = 3000 is {mean} by svd."
    assert told in summary(found.curves)
    text = found.report.read_text("utf-8")
    assert told in text
    assert f'<td class="n">{mean} ({min(values):.2f})</td>' in text
    assert text.count("<br>SSIM ") == 2
    record = json.loads((tmp_path / "theory.json").read_text("utf-8"))
    stored = record["curves"][0]["ssim"]["svd"]["3000"]
    assert [v for one in stored.values() for v in one] == values


def test_the_command_prints_predicted_and_measured_exponents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(to_toml(TINY), encoding="utf-8")
    shown = CliRunner().invoke(app, ["theory", "tiny.toml"])
    assert shown.exit_code == 0, shown.output
    line = next(x for x in shown.output.splitlines() if x.startswith("no defense"))
    assert "−0.50" in line
    assert "svd" in line
    assert "unknown" in shown.output
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()
    report = CliRunner().invoke(app, ["report", "runs/tiny"])
    assert report.exit_code == 0, report.output
    wrong = CliRunner().invoke(app, ["theory", "tiny.toml", "--full"])
    assert wrong.exit_code == 2
    alone = CliRunner().invoke(app, ["theory", "--mnist", "here"])
    assert alone.exit_code == 2


def test_arms_are_ways_of_one_attack():
    assert list(ARMS) == ["moments", "svd", "auto", "polished"]


def test_the_page_of_the_theory_runs_as_printed(tmp_path, capsys):
    text = (Path(__file__).parent.parent / "docs" / "theory.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    exec(code, {})
    # (1 + 2 · 1000/100) √(25/4000) for a batch of one.
    found = float(capsys.readouterr().out.split()[-2])
    assert found == pytest.approx(21 * (25 / 4000) ** 0.5)
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", text, re.M | re.S)
    (tmp_path / "mine.toml").write_text(toml, encoding="utf-8")
    listed = [e.row for e in TheorySettings.read(tmp_path / "mine.toml").experiments]
    assert listed == ["dropout", "none"]
