"""The command line: what it prints, what it writes, and how it stops."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from exhume.cli import app
from exhume.registry import KINDS, names

AUDIT = """
title = "Small"
data = "digits"
model = "mlp"
attacks = [{ name = "analytic-linear" }]
defenses = [[], { name = "gaussian-noise", std = [1e-3, 1e-1] }]
bounds = ["bayesian-cramer-rao"]
prior = "none"
executor = "serial"
"""
NET = """
import torch
from torch import nn

def build():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Sigmoid(),
                        nn.Linear(20, 10))
    rng = torch.Generator().manual_seed(5)
    for p in net.parameters():
        p.data = torch.rand(p.shape, generator=rng) - 0.5
    return net
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a model and the path restored afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "ownnet", raising=False)
    (tmp_path / "ownnet.py").write_text(NET)
    (tmp_path / "small.toml").write_text(AUDIT)
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        **options,
    ).stdout


@pytest.mark.parametrize("command", ["audit", "attack", "list", "report", "inspect"])
def test_every_command_explains_itself(command):
    assert f"Usage: exhume {command}" in run(command, "--help").output.replace(
        "root", "exhume"
    )
    assert command in run("--help").output


def test_listing_and_inspecting_import_no_torch(here):
    save_file({"w": torch.ones(2)}, here / "plain.safetensors")
    out = python(
        """
        import sys
        from typer.testing import CliRunner
        from exhume.cli import app
        for arguments in (["--help"], ["list"], ["list", "attacks", "gauss-newton"],
                          ["inspect", "plain.safetensors"]):
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
            print(arguments[0], "torch" in sys.modules)
        """
    )
    assert out.split() == [
        *("--help", "False"),
        *["list", "False"] * 2,
        *("inspect", "False"),
    ]


def test_list_shows_every_registered_name_with_its_summary():
    text = run("list").output
    for kind in KINDS:
        for name in names(kind):
            assert f"  {name} " in text
    assert "labels-known" in text


def test_list_of_one_shows_its_options_and_defaults():
    text = run("list", "attacks", "gauss-newton").output
    assert "iterations" in text
    assert "Levenberg" in text
    assert "(required)" in run("list", "defense", "gaussian-noise").output
    own = run("list", "model", "audit_lab.nets:build").output
    assert own == "Networks of a user's own, as functions.\n"
    assert "Knows: weights" in run("list", "threat-models", "eavesdropper").output


def test_an_audit_prints_a_table_and_the_report_and_resumes(here):
    first = run("audit", "small.toml", "--out", "r", "--seeds", "2")
    for words in ("MSE bound", "analytic-linear", "prior-mean (chance)", "no defense"):
        assert words in first.output
    assert "report: r/report.html" in first.stdout
    assert "no bound bayesian-cramer-rao (no defense" in first.stdout
    assert "30/30" in first.stderr
    assert (here / "r" / "report.html").stat().st_size > 10_000
    again = run("audit", "small.toml", "--out", "r", "--seeds", "2")
    # Nothing ran: the only line of progress is the start.
    assert again.stderr.splitlines() == ["attacking 30/30"]


def test_a_report_is_rebuilt_from_the_store_alone(here):
    run("audit", "small.toml", "--out", "r")
    report = here / "r" / "report.html"
    before = report.read_bytes()
    report.unlink()
    assert "report: r/report.html" in run("report", "r").stdout
    assert report.read_bytes() == before
    shown = run("inspect", "r").stdout
    assert "15 trials (12 done, 3 not-applicable)" in shown
    assert "gaussian-noise" in shown


def test_a_failed_trial_shows_in_the_exit_code(here, monkeypatch):
    from exhume.attacks.analytic_linear import AnalyticLinear

    def fail(self, problem, key):
        msg = "the sky fell"
        raise RuntimeError(msg)

    monkeypatch.setattr(AnalyticLinear, "run", fail)
    result = run("audit", "small.toml", "--out", "r", code=1)
    assert "the sky fell" in result.stderr
    assert "3 of 15 trials failed" in result.stderr


def hears_ctrl_c():
    """Undo what a shell does to a job in the background: it ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_what_is_finished(here):
    slow = AUDIT.replace(
        "analytic-linear", 'dlg", iterations = 100000, restarts = 50, labels = "joint'
    )
    (here / "slow.toml").write_text(slow)
    arguments = ("slow.toml", "--executor", "processes", "--workers", "1", "--out", "r")
    process = subprocess.Popen(
        [sys.executable, "-m", "exhume", "audit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=hears_ctrl_c,
    )
    try:
        for line in process.stderr:
            if line.startswith(
                "attacking 12/15"
            ):  # chance levels and bounds have ended
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, (out, err)
    assert "12 of 15 trials are kept in r" in err
    assert "Traceback" not in err
    assert (here / "r" / "report.html").exists()
    assert "12 trials (9 done, 3 not-applicable)" in run("inspect", "r").stdout


WRONG = """
title = "Wrong"
data = "digit"
model = "ownnet:bild"
attacks = [{ name = "gauss-newton", iteration = 3 }, "no.such_attack", "ownnet:build"]
bounds = [{ name = "bayesian-cramer-rao", draws = -4 }]
metrics = ["pnsr"]
executor = "ownlab.cluster"
threat = "label-known"
"""


def test_inspect_checks_every_name_and_option_of_settings_and_imports_nothing(here):
    (here / "own.toml").write_text(AUDIT.replace('"mlp"', '"ownnet:build"'))
    shown = run("inspect", "own.toml").stdout
    assert "settings of an audit, titled 'Small'" in shown
    assert "not imported for this: ownnet:build" in shown
    (here / "wrong.toml").write_text(WRONG)
    told = run("inspect", "wrong.toml", code=2).stderr
    for sentence in (
        "ownnet.py defines no 'bild'",
        "the module 'no.such_attack' cannot be imported",
        "'ownnet:build' is a function; an own attack is a class",
        "the module 'ownlab.cluster' cannot be imported",
        "did you mean 'digits'",
        "did you mean 'iterations'",
        "draws is -4",
        "did you mean 'psnr'",
        "did you mean 'labels-known'",
    ):
        assert sentence in told
    assert "ownnet" not in sys.modules
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("text", "what", "wrong", "sentence"),
    [
        (
            'budgets = [0.1]\ndefenses = [{name = "gaussian-noise", '
            "std = {weakest = 0.1, strongest = 1}}]",
            "settings of a comparison",
            'attacks = ["gaus-newton"]',
            "did you mean 'gauss-newton'",
        ),
        (
            'experiments = [{row = "none", sweep = "m", values = [10, 20]}]',
            "settings of a scaling experiment",
            "depth = 3",
            "has no option 'depth'",
        ),
    ],
)
def test_inspect_knows_the_settings_of_every_run(here, text, what, wrong, sentence):
    (here / "s.toml").write_text(text)
    assert what in run("inspect", "s.toml").stdout
    (here / "s.toml").write_text(f"{wrong}\n{text}")
    assert sentence in run("inspect", "s.toml", code=2).stderr


# --- bring your own ----------------------------------------------------------------


def write_data(here, count=1):
    import numpy as np

    rng = np.random.default_rng(3)
    x = rng.random((count, 1, 8, 8), dtype=np.float32)
    np.savez(here / "mine.npz", inputs=x, targets=np.arange(count) + 3)
    return torch.from_numpy(x)


def own_gradient(here, factor=1.0, count=1):
    """Write the gradient of one's own batch as a plain file."""
    x = write_data(here, count)
    space = {}
    exec(NET, space)
    net = space["build"]()
    loss = torch.nn.functional.cross_entropy(net(x), torch.arange(count) + 3)
    loss.backward()
    gradient = {n: factor * p.grad for n, p in net.named_parameters()}
    save_file(gradient, here / "g.safetensors")
    return x, net, gradient


def test_an_update_of_one_s_own_gives_the_secret_back(here):
    x, _, _ = own_gradient(here)
    result = run(
        *("attack", "analytic-linear", "--model", "ownnet:build"),
        *("--update", "g.safetensors", "--mode", "eval", "--shape", "1,8,8"),
        *("--labels", "3", "--out", "a"),
    )
    assert "outcome: A closed form gave the answer" in result.stdout
    answer = load_file(here / "a" / "reconstruction.safetensors")
    assert torch.allclose(answer["inputs"], x, atol=1e-5)
    assert (here / "a" / "example-0.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((here / "a" / "attack.json").read_text())
    assert record["attack"]["name"] == "analytic-linear"
    assert record["scores"] == {}


def test_the_kind_of_example_and_the_data_may_be_said_in_full(here):
    (here / "flat.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Linear(12, 3)\n",
        encoding="utf-8",
    )
    rng = np.random.default_rng(0)
    walk = rng.normal(size=(3, 12)).cumsum(axis=1).astype(np.float32)
    np.savez(here / "walks.npz", x=walk, targets=np.array([0, 1, 2]))
    said = ("attack", "prior-mean", "--model", "flat:build", "--mode", "eval")
    result = run(
        *said,
        *("--data", '{name = "npz", path = "walks.npz", inputs = "x"}'),
        *("--event", "vector", "--shape", "12", "--range", "none", "--out", "a"),
    )
    assert "outcome" in result.stdout
    drawing = (here / "a" / "example-0.svg").read_text(encoding="utf-8")
    (shape,) = ElementTree.fromstring(drawing).findall("{*}polyline")
    assert len(shape.attrib["points"].split()) == 12
    wrong = run(*said, "--data", "{name = walks}", code=2)
    assert "is no table of a settings file" in wrong.stderr
    given = ("--data", "walks.npz", "--shape", "12")
    wrong = run(*said, *given, "--event", "vectr", code=2)
    assert "no event is called 'vectr'; did you mean 'vector'" in wrong.stderr


def test_a_step_is_explained_and_its_scale_mends_it(here):
    own_gradient(here, factor=-0.1)
    arguments = (
        *("attack", "analytic-linear", "--model", "ownnet:build", "--out", "a"),
        *("--update", "g.safetensors", "--mode", "eval", "--shape", "1,8,8"),
        *("--batch-size", "1", "--data", "mine.npz"),
    )
    wrong = run(*arguments, code=2)
    assert "-0.1 × the gradient: it looks like one step of SGD with" in wrong.stderr
    assert not (here / "a").exists()
    blind = [a for a in arguments if a not in ("--data", "mine.npz")]
    sure = run(*blind, "--no-defense", code=2)
    assert "that of a step, weights after minus before" in sure.stderr
    right = run(*arguments, "--scale", "-0.1")
    assert "the recomputed gradient agrees" in right.stdout
    assert "psnr" in right.stdout


def test_an_observation_file_needs_no_further_words(here):
    from exhume.observations.file import save
    from exhume.observations.shared import share
    from exhume.problem.event import EventSpec
    from exhume.problem.task import Task

    x, net, gradient = own_gradient(here)
    task = Task(net)
    shared = share(gradient, task, EventSpec.image(1, 8, 8), batch_size=1)
    save(here / "o.safetensors", shared)
    shown = run("inspect", "o.safetensors").stdout
    assert "gradient of the mean cross-entropy loss, eval mode" in shown
    assert "labels" in shown.split("missing")[1]
    arguments = (
        *("attack", "gauss-newton", "--model", "ownnet:build"),
        *("--update", "o.safetensors", "--option", "iterations=20"),
    )
    run(*arguments, "--out", "a")
    answer = load_file(here / "a" / "reconstruction.safetensors")
    assert torch.allclose(answer["inputs"].float(), x, atol=1e-4)
    clash = run(*arguments, "--mode", "train", code=2)
    assert "the file says mode = eval, you say train" in clash.stderr
    two = run(*arguments, "--labels", "3,4", code=2)
    assert "the file says batch_size = 1, you say 2" in two.stderr


def test_data_alone_is_simulated_and_scored(here):
    write_data(here, 2)
    result = run(
        *("attack", "prior-mean", "--model", "ownnet:build", "--data", "mine.npz"),
        *("--mode", "eval", "--batch-size", "2", "--out", "a"),
    )
    scores = json.loads((here / "a" / "attack.json").read_text())["scores"]
    assert len(scores["mse"]) == 2
    assert "labels: 3, 4" in result.stdout


def test_a_threat_model_hides_facts(here):
    write_data(here)
    result = run(
        *("attack", "gauss-newton", "--model", "ownnet:build", "--data", "mine.npz"),
        *("--mode", "eval", "--threat", "eavesdropper", "--out", "a"),
        *("--option", "iterations=5"),
    )
    assert "label" in result.stdout.split("outcome")[1]


def test_weights_from_a_file_replace_the_model_s(here):
    _, net, _ = own_gradient(here)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    save_file(net.state_dict(), here / "w.safetensors")
    result = run(
        *("attack", "prior-mean", "--model", "ownnet:build", "--data", "mine.npz"),
        *("--update", "g.safetensors", "--mode", "eval", "--shape", "1,8,8"),
        *("--batch-size", "1", "--weights", "w.safetensors"),
    )
    # An unknown defense could explain other weights, so it is a warning.
    assert "the recomputed gradient differs" in result.stderr


def test_answers_are_never_overwritten(here):
    write_data(here)
    arguments = (
        *("attack", "prior-mean", "--model", "ownnet:build"),
        *("--data", "mine.npz", "--mode", "eval"),
    )
    run(*arguments)
    run(*arguments)
    assert (here / "runs" / "attack-prior-mean-2").is_dir()
    first = here / "runs" / "attack-prior-mean"
    before = {p.name: p.read_bytes() for p in first.iterdir()}
    assert "choose another --out" in run(*arguments, "--out", first, code=2).stderr
    assert before == {p.name: p.read_bytes() for p in first.iterdir()}


# --- kinds of example that no shape tells --------------------------------------------


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ("series", ""),
        ("nonsense", "no event is called 'nonsense'; known: image, series, vector"),
        ("vector", "an event of kind 'vector' needs 1 positive size"),
    ],
)
def test_a_file_holds_examples_of_the_kind_that_is_said(here, event, told):
    (here / "ownseries.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Linear(8, 3))\n"
    )
    inputs = np.random.default_rng(0).normal(size=(5, 24, 2)).astype(np.float32)
    np.savez(here / "series.npz", inputs=inputs, targets=np.arange(5) % 3)
    model = ("--model", "ownseries:build", "--mode", "eval", "--out", "found")
    data = ("--data", "series.npz", "--event", event)
    done = run("attack", "analytic-linear", *model, *data, code=2 if told else 0)
    if told:
        assert told in " ".join(done.stderr.split())
    else:
        assert "smape" in done.output


def test_a_source_of_another_kind_is_not_renamed(here):
    said = ("--model", "ownnet:build", "--data", "digits", "--event", "series")
    done = run("attack", "analytic-linear", *said, "--mode", "eval", code=2)
    told = "--event says 'series', and digits holds examples of kind 'image'"
    assert told in " ".join(done.stderr.split())
