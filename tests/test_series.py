"""Series: windows of a CSV file, a forecaster, the error of the field, and an audit."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import exhume
from exhume import EventSpec
from exhume.data.ett import Ett
from exhume.errors import InvalidInput
from exhume.metrics.smape import symmetric_percentage_errors
from exhume.models.cnn_forecaster import CnnForecaster
from exhume.report import browser

SHARED = Path(__file__).parents[2] / "shared" / "data" / "ett" / "ETTh1.csv"
SERIES = EventSpec.of("series", (12, 2), 0.0, 1.0)


def write_csv(path, steps=200, cells=None, dates=None):
    """Two series with a period of a day, in the layout of ETT."""
    hour = np.arange(steps)
    first = 20 + 5 * np.sin(hour / 24 * 2 * np.pi) + 0.05 * hour
    second = 3 * np.cos(hour / 24 * 2 * np.pi) + np.random.default_rng(0).normal(
        size=steps
    )
    start = datetime(2016, 7, 1)
    lines = ["date,HUFL,OT"]
    for i in hour:
        date = (dates or {}).get(i, start + timedelta(hours=int(i)))
        row = [f"{date}", f"{second[i]:.6f}", f"{first[i]:.6f}"]
        for place, text in (cells or {}).get(i, {}).items():
            row[place] = text
        lines.append(",".join(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return np.stack([second, first], axis=1)


# The event.


def test_every_channel_is_drawn_over_time():
    truth = np.linspace(0.2, 0.4, 24).reshape(12, 2)
    own = SERIES.draw(truth, truth)
    assert own.svg.count('class="truth"') == 2
    assert "guess" not in own.svg
    other = SERIES.draw(truth + 0.01, truth)
    assert other.svg.count('class="guess"') == 2
    assert own.svg in other.svg
    # A window that moves little fills the box: the scale is its own, not that of all.
    heights = [float(p.split(",")[1]) for p in own.svg.split('"')[3].split()]
    assert max(heights) - min(heights) > 30


def test_a_constant_series_can_be_drawn():
    truth = np.full((5, 1), 0.3)
    assert "nan" not in SERIES.draw(truth, truth).svg


def test_a_series_has_time_and_channels():
    with pytest.raises(InvalidInput, match=r"'series' needs 2 positive sizes"):
        EventSpec.of("series", (24,))


# The error.


def test_percentage_errors_at_known_points():
    truth = torch.tensor([[[1.0], [0.0]], [[2.0], [-2.0]], [[1.0], [3.0]]])
    guess = torch.tensor([[[1.0], [0.0]], [[-2.0], [2.0]], [[3.0], [1.0]]])
    found = symmetric_percentage_errors(guess, truth)
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0, 1.0]).double())


@given(
    arrays(np.float64, (3, 4, 2), elements=st.floats(-5, 5)),
    arrays(np.float64, (3, 4, 2), elements=st.floats(-5, 5)),
)
def test_percentage_errors_are_symmetric_and_between_0_and_2(first, second):
    a, b = torch.from_numpy(first), torch.from_numpy(second)
    found = symmetric_percentage_errors(a, b)
    torch.testing.assert_close(found, symmetric_percentage_errors(b, a))
    assert bool(((found >= 0) & (found <= 2)).all())
    ratio = 2 * np.abs(first - second) / (np.abs(first) + np.abs(second) + 1e-8)
    np.testing.assert_allclose(found.numpy(), ratio.mean(axis=(1, 2)), atol=1e-12)


# The loader.


def test_windows_are_those_of_the_file_scaled_by_column(tmp_path):
    raw = write_csv(tmp_path / "ett.csv")
    low, high = raw.min(axis=0), raw.max(axis=0)
    batch = Ett(
        path=str(tmp_path / "ett.csv"), columns=(), history=24, horizon=6
    ).load()
    assert batch.spec == EventSpec.of("series", (24, 2), 0.0, 1.0)
    assert batch.targets.shape == (6, 12)
    for i in range(6):
        window = (raw[30 * i : 30 * (i + 1)] - low) / (high - low)
        np.testing.assert_allclose(batch.inputs[i], window[:24], atol=1e-5)
        np.testing.assert_allclose(batch.targets[i], window[24:].reshape(-1), atol=1e-5)
    one = Ett(path=str(tmp_path / "ett.csv"), history=24, horizon=6, stride=1).load()
    assert one.inputs.shape == (171, 24, 1)
    np.testing.assert_allclose(one.inputs[30], batch.inputs[1][:, 1:], atol=1e-7)


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ({}, {"columns": ("OIL",)}, "no column 'OIL'; it has: date, HUFL, OT"),
        ({}, {"history": 300}, "has 200 steps, fewer than the 324 of history"),
        ({}, {"horizon": 0}, "horizon is 0; expected at least 1"),
        ({}, {"limit": 0}, "limit is 0"),
        ({"cells": {7: {2: ""}}}, {}, "row 9, column 'OT': '' is no number"),
        ({"cells": {7: {2: "nan"}}}, {}, "row 9, column 'OT': 'nan' is no number"),
        ({"dates": {50: datetime(2016, 7, 4)}}, {}, "row 52: .* resample it"),
        ({"cells": {3: {0: "soon"}}}, {}, "'soon'.*2016-07-01 00:00:00"),
    ],
)
def test_unsound_files_and_options_are_a_sentence(tmp_path, file, options, message):
    path = tmp_path / "ett.csv"
    write_csv(path, **file)
    with pytest.raises(InvalidInput, match=message):
        Ett(path=str(path), **options).load()


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(InvalidInput, match="expected a CSV file of ETT"):
        Ett(path=str(tmp_path / "no.csv")).load()
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="cannot be read as CSV"):
        Ett(path=str(tmp_path / "bytes.csv")).load()


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_file(), reason="ETTh1 is not beside the checkout")
def test_the_official_file_is_read():
    batch = Ett(path=str(SHARED)).load()
    assert batch.inputs.shape == (145, 96, 1)  # 17,420 hours in windows of 120
    assert batch.targets.shape == (145, 24)


# The forecaster.


def test_the_forecaster_is_the_formula():
    net = CnnForecaster(width=3, layers=2, kernel=3).build(SERIES, 5, key=0).double()
    x = torch.rand(4, 12, 2, dtype=torch.float64)
    weights = net.state_dict()
    hidden = x.transpose(1, 2)
    for i in (1, 2):
        padded = torch.nn.functional.pad(hidden, (1, 1))
        steps = [
            torch.einsum(
                "bck,ock->bo", padded[:, :, t : t + 3], weights[f"conv{i}.weight"]
            )
            for t in range(12)
        ]
        hidden = torch.stack(steps, dim=2) + weights[f"conv{i}.bias"][:, None]
        hidden = hidden.sigmoid()
    expected = hidden.flatten(1) @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kernel": 4}, "odd"), ({"width": 0}, "width is 0"), ({"layers": 0}, "layers")],
)
def test_unsound_forecasters_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        CnnForecaster(**options)


# Attacks and the audit.


def test_a_window_and_its_private_targets_are_read_from_a_gradient(tmp_path):
    write_csv(tmp_path / "ett.csv")
    windows = Ett(path=str(tmp_path / "ett.csv"), history=24, horizon=6).load()
    private = windows.select([2])
    net = CnnForecaster(width=8, layers=2, kernel=3).build(windows.spec, 6, key=1)
    task = exhume.Task(net.double(), loss="mse")
    world = exhume.World(
        task,
        private.to(torch.float64),
        exhume.Mechanism(exhume.observations.Gradient(), []),
    )
    problem = exhume.ThreatModel("parameter-aware").reveal(world, world.observe(key=0))
    guess = exhume.attack("gauss-newton", iterations=100)(problem, key=0)
    scores = exhume.score(guess, private)
    assert scores.values["smape"][0] < 1e-3
    torch.testing.assert_close(
        guess.targets.double().reshape(-1),
        private.targets[0].double(),
        atol=1e-4,
        rtol=0,
    )


SETTINGS = """
title = "Series"
data = {{ name = "ett", path = "{path}", history = 24, horizon = 6 }}
model = {{ name = "cnn-forecaster", width = 8, layers = 2, kernel = 3 }}
loss = "mse"
seeds = 1
threat = "data-enhanced"
attacks = [
  {{ name = "gauss-newton", iterations = 30 }},
  {{ name = "inverting-gradients", iterations = 30 }},
]
defenses = [[], {{ name = "gaussian-noise", std = 0.01 }}]
bounds = [{{ name = "bayesian-cramer-rao", draws = 2 }}]
executor = "serial"
"""


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    write_csv(folder / "ett.csv")
    settings = folder / "series.toml"
    settings.write_text(SETTINGS.format(path=folder / "ett.csv"), encoding="utf-8")
    return exhume.audit.run(settings, out=folder / "run")


def test_an_audit_of_series_ranks_by_the_error_of_the_field(audit):
    done = [r for r in audit.results if r.spec.attack and r.status == "done"]
    assert {r.spec.attack["name"] for r in done} == {
        "gauss-newton",
        "inverting-gradients",
        "prior-mean",
        "public-centres",
        "nearest-public",
    }
    for result in done:
        assert result.headline == "smape"
        assert result.event["kind"] == "series"
        assert 0 <= result.scores["smape"][0] <= 2
    page = audit.report.read_text(encoding="utf-8")
    assert "recovers 1 of 1 ett examples" in page
    assert "the median example is at a sMAPE of" in page


@pytest.mark.browser
@pytest.mark.skipif(browser.find_browser() is None, reason="no Chromium is installed")
def test_a_browser_draws_the_lines(audit):
    shown = browser.rendered(audit.report)
    # 2 defenses × (truth and 4 attacks), and those that open the page.
    assert shown["pictures"][0] == shown["pictures"][1] >= 10
