"""The documentation is true: its code runs, its links resolve, its commands exist."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import conformance.test_events
import exhume
from exhume import registry
from exhume.cli import app
from exhume.cli.catalogue import page
from exhume.errors import InvalidInput, MissingKnowledge
from exhume.problem.bound import NotApplicable
from exhume.problem.knowledge import UNKNOWN
from exhume.problem.reconstruction import Outcome
from exhume.runs.records import TrialSpec
from exhume.trials.trial import run_trial
from plugin import write_package
from toys import COLOUR, GRAY, VECTOR, make_world, reveal, smooth, smooth_mlp

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMANDS = [
    "audit",
    "compare",
    "advise",
    "attack",
    "list",
    "recipe",
    "report",
    "inspect",
    "theory",
]
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is, if any, and its text."""

    language: str
    file: str
    text: str


def blocks(path: Path) -> list[Block]:
    found = re.findall(
        r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S
    )
    return [Block(*parts) for parts in found]


def files(path: Path) -> dict[str, str]:
    return {b.file: b.text for b in blocks(path) if b.file}


def commands(path: Path) -> list[str]:
    """List the lines of consoles that start with a prompt."""
    consoles = [b.text for b in blocks(path) if b.language == "console"]
    return [
        line.removeprefix("$ ").partition("  #")[0].strip()
        for text in consoles
        for line in text.splitlines()
        if line.startswith("$ ")
    ]


def python(path: Path) -> list[str]:
    return [b.text for b in blocks(path) if b.language == "python" and not b.file]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory; what is imported from it is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] in ("my_lab", "my_model")]:
        del sys.modules[name]


def run(command: str) -> str:
    words = shlex.split(command)
    assert words[0] == "exhume"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, f"{command}\n{done.output}{done.exception!r}"
    return done.output


# --- pages ---------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Name what a link can point at, as GitHub makes it of headings."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    made = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@every_page
def test_links_resolve(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = path if not name else path.parent / name
        assert there.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{path.name} links to {target}"


@every_page
def test_commands_exist_with_their_options(path):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    for command in commands(path):
        words = shlex.split(command)
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), command
            continue
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), command
            continue
        assert words[0] == "exhume", command
        assert words[1] in COMMANDS, command
        # A command of a group has the help: exhume recipe run NAME.
        named = words[1:3] if words[1] == "recipe" else words[1:2]
        usage = CliRunner().invoke(app, [*named, "--help"], env={"COLUMNS": "200"})
        for option in (w for w in words if w.startswith("--")):
            assert re.search(rf"{option}\b", usage.output), command


def test_commands_in_the_text_exist():
    built = {*COMMANDS, "--version"}
    for path in PAGES:
        text = path.read_text("utf-8").partition("## Not built yet")[0]
        named = re.findall(r"`exhume (\S+?)[`, ]", text)
        assert set(named) <= built, path.name


def test_the_catalogue_is_up_to_date():
    written = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    assert written == page(), "run `make docs`"


def test_the_catalogue_spells_out_what_a_type_stands_for():
    dlg = page().partition("### `dlg`")[2].partition("### ")[0]
    assert "'raw-normal'" in dlg
    assert "StartKind" not in dlg


def test_the_catalogue_needs_no_torch():
    code = "import sys; from exhume.cli.catalogue import page; page(); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_flag_is_explained():
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    source = Path(exhume.__file__).parent / "audit"
    code = "".join(path.read_text("utf-8") for path in source.glob("*.py"))
    raised = set(re.findall(r'Flag\(\s*"([a-z-]+)"', code))
    explained = set(
        re.findall(r"^\| `([a-z-]+)` \|", text.partition("the flags")[2], re.M)
    )
    assert raised == explained


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text
    assert f"## [{exhume.__version__}]" in text
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {exhume.__version__}" in citation


# --- code that a reader would paste --------------------------------------------------


def test_the_readme_runs_as_printed(tmp_path):
    (code,) = python(ROOT / "README.md")
    assert len([line for line in code.splitlines() if line]) == 12, "a dozen lines"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    error = float(re.search(r"'mse': \{'median': ([^,]+),", done.stdout)[1])  # type: ignore[index]
    floor = float(done.stdout.rsplit("bound on the mean ", 1)[1])
    assert 0 < floor < 0.01
    assert 0 < error < 0.01


def test_the_public_surface_runs():
    namespace: dict = {}
    for code in python(ROOT / "docs" / "architecture.md"):
        exec(code, namespace)
    assert isinstance(namespace["floor"], NotApplicable)
    assert namespace["scores"].mse[0] < 0.1


def test_bring_your_own_runs_as_printed(here):
    path = ROOT / "docs" / "bring-your-own.md"
    for name, text in files(path).items():
        (here / name).write_text(text, encoding="utf-8")
    namespace: dict = {}
    outputs = []
    # Blocks in order: each page is a session, and later steps need earlier files.
    for block in blocks(path):
        if block.language == "python" and not block.file:
            exec(block.text, namespace)
        elif block.language == "console":
            lines = block.text.splitlines()
            outputs += [run(line.removeprefix("$ ")) for line in lines]
    text = "\n".join(outputs)
    assert (here / "runs" / "own" / "report.html").is_file()
    for folder in ("runs/attack-gauss-newton", "with-prior", "from-file"):
        assert (here / folder / "reconstruction.safetensors").is_file()
        assert (here / folder / "example-0.png").is_file()
    assert "checked: the recomputed gradient agrees" in text
    assert "missing        labels, batch-norm-statistics" in text
    found = [float(db) for db in re.findall(r"^  0 .* (\d+\.?\d*) +\S+$", text, re.M)]
    assert len(found) == 3, "three answers are scored"
    assert min(found) > 20


def test_the_page_of_bounds_runs_as_printed():
    text = (ROOT / "docs" / "bounds.md").read_text("utf-8")
    assert [f"`{name}`" in text for name in registry.names("bound")].count(False) == 0
    namespace: dict = {}
    for code in python(ROOT / "docs" / "bounds.md"):
        exec(code, namespace)
    assert namespace["spent"].value == pytest.approx(33.1, abs=0.05)
    assert namespace["risk"].value > 0.5
    share = namespace["floor"].mse / namespace["guess"]
    assert share == pytest.approx(2 / 3, abs=0.05)
    assert namespace["leak"].mse > namespace["guess"]


def test_the_page_of_comparisons_runs_as_printed(here):
    path = ROOT / "docs" / "comparing.md"
    namespace: dict = {}
    for code in python(path):
        exec(code, namespace)
    advice = namespace["advice"]
    assert advice.family == "Gaussian noise"
    assert advice.place.error >= 0.001
    assert (here / "runs" / "one-step" / "report.html").is_file()
    question = "advise --min-error 0.001 --max-loss 0.1 runs/one-step"
    assert "use Gaussian noise" in run(f"exhume {question}")
    assert "report: runs/one-step/report.html" in run("exhume report runs/one-step")


def test_the_pages_of_changes_and_weights_run_as_printed(here, capsys):
    for name in ("fine-tuning", "updates", "weights"):
        namespace: dict = {}
        codes = python(ROOT / "docs" / f"{name}.md")
        assert codes, name
        for code in codes:
            exec(code, namespace)
        answer, private = namespace["answer"], namespace["private"]
        assert answer.inputs.shape[1:] == private.inputs.shape[1:]
        if name == "fine-tuning":
            assert answer.objective < 1e-9
    assert "a span of 4 of 64 dimensions" in capsys.readouterr().out


# --- extending -----------------------------------------------------------------------

EXTENDING = ROOT / "docs" / "extending.md"
ATTACK = files(EXTENDING)["spectral_gradient.py"]
NEW = {
    "spectral_gradient.py": "attack",
    "uniform_noise.py": "defense",
    "ridge.py": "prior",
    "largest_error.py": "metric",
    "track.py": "event",
    "wine.py": "data",
    "softmax_regression.py": "model",
    "two_point_test.py": "bound",
    "summed_gradient.py": "observation",
    "tanh_box.py": "relaxation",
    "fresh_process.py": "executor",
}


def page_members() -> dict[tuple[str, str], str]:
    """Return the files of the page by kind and file name."""
    texts = files(EXTENDING)
    return {(kind, name): texts[name] for name, kind in NEW.items()}


@pytest.fixture
def extended(here):
    """Put every file of the page into an installed package; forget it again."""
    write_package(here, page_members())


def test_the_page_has_these_files_and_says_how_long_the_attack_is():
    assert set(files(EXTENDING)) == set(NEW)
    assert sorted(NEW.values()) == sorted(registry.KINDS)
    stated = re.search(r"\((\d+) lines, the citation included\)", EXTENDING.read_text())
    assert stated is not None
    assert int(stated[1]) == len(ATTACK.splitlines())


def test_the_files_keep_our_own_rules(tmp_path):
    """They pass the linter and the formatter as they stand."""
    paths = []
    for name, text in files(EXTENDING).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        paths.append(str(tmp_path / name))
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed beside this Python")
    settings = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [str(ruff), *command, *settings, *paths],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_one_new_file_is_listed_and_built(extended):
    for name, kind in NEW.items():
        registered = Path(name).stem.replace("_", "-")
        (entry,) = [e for e in registry.entries(kind) if e.name == registered]
        assert entry.summary.endswith(".")
        assert f"### `{registered}`" in page()
    shown = run("exhume list attacks spectral-gradient")
    assert "iterations  int  = 200" in shown
    with pytest.raises(InvalidInput, match="iterations is 0"):
        exhume.attack("spectral-gradient", iterations=0)
    with pytest.raises(InvalidInput, match="did you mean 'iterations'"):
        exhume.attack("spectral-gradient", iteration=3)


@pytest.mark.parametrize("labels", [(3,), (3, 0)], ids=["one", "two"])
@pytest.mark.parametrize("spec", [GRAY, COLOUR, VECTOR], ids=str)
def test_the_new_attack_is_sound(extended, spec, labels):
    world = make_world(spec, labels=labels, model=smooth_mlp(spec), key=1)
    problem = reveal(world)
    attack = exhume.attack("spectral-gradient", iterations=60)
    before = torch.get_rng_state()
    guess, again = attack(problem, key=5), attack(problem, key=5)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(guess.inputs, again.inputs)
    assert guess.inputs.shape == world.batch.inputs.shape
    assert torch.equal(guess.inputs, spec.clamp(guess.inputs))
    assert not guess.inputs.requires_grad
    assert guess.outcome is Outcome.ITERATION_LIMIT
    assert guess.adaptive
    found = attack.objective(problem, guess.inputs, guess.targets)
    assert found == guess.objective
    assert found < attack.objective(
        problem, smooth(spec, len(labels), 99), guess.targets
    )
    chance = exhume.score(exhume.attack("prior-mean")(problem), world.batch)
    assert max(exhume.score(guess, world.batch).mse) < 1e-3 * min(chance.mse)


def test_the_new_attack_says_what_it_lacks_and_uses_the_defense(extended):
    attack = exhume.attack("spectral-gradient", iterations=200)
    prune = exhume.defense("pruning", ratio=0.5)
    world = make_world(GRAY, model=smooth_mlp(GRAY), defenses=(prune,), key=1)
    with pytest.raises(MissingKnowledge, match="the labels of the batch"):
        attack(reveal(world, "data-enhanced"))
    knows = attack(reveal(world), key=0)
    ignorant = attack(reveal(world, "defense-unknown"), key=0)
    assert not ignorant.adaptive
    errors = [exhume.score(guess, world.batch).mse[0] for guess in (knows, ignorant)]
    assert errors[0] < 0.01 * errors[1]


def test_the_new_executor_survives_a_death_and_gives_the_same_bits(here):
    (here / "my_lab").mkdir()
    text = files(EXTENDING)["fresh_process.py"]
    (here / "my_lab" / "fresh_process.py").write_text(text, encoding="utf-8")
    settings = exhume.audit.AuditSettings(
        data="digits",
        model={"name": "mlp", "hidden": [8]},
        attacks=["audit_lab.dies"],
        prior=None,
        executor="my_lab.fresh_process",
    )
    done = exhume.audit.run(settings, out=here / "run")
    assert [r.status for r in done.results] == ["done", "done", "done", "failed"]
    assert done.results[3].reason == "the process of this trial has died"
    for result in done.results[:3]:
        assert exhume.audit.run_trial(result.spec).scores == result.scores


def test_the_page_runs_an_attack_of_ones_own_by_dotted_name(here):
    (here / "my_lab").mkdir()
    (here / "my_lab" / "spectral_gradient.py").write_text(ATTACK, encoding="utf-8")
    (code,) = python(EXTENDING)
    namespace: dict = {}
    exec(code, namespace)
    result = namespace["result"]
    assert result.status == "done", result.reason
    assert result.spec.attack["name"] == "my_lab.spectral_gradient"
    # "Recover a handwritten digit from the gradient of a LeNet almost exactly."
    assert min(result.scores["psnr"]) > 50


def test_the_command_line_finds_it_in_the_working_directory(here, monkeypatch):
    (here / "my_lab").mkdir()
    (here / "my_lab" / "spectral_gradient.py").write_text(ATTACK, encoding="utf-8")
    (here / "own.toml").write_text(
        'title = "Own"\ndata = "digits"\nmodel = "mlp"\nprior = "none"\n'
        'attacks = [{ name = "my_lab.spectral_gradient", iterations = 20 }]\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(here)])
    shown = run("exhume audit own.toml --executor serial")
    assert "spectral" in shown
    assert "barzilai1988two" in (here / "runs/own/report.html").read_text("utf-8")


def test_the_new_kind_of_example_is_one_for_everything(extended):
    event = exhume.EventSpec.of("track", (5, 2))
    for name, conforms in vars(conformance.test_events).items():
        if name.startswith("test_"):
            conforms(event)
    inputs = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    batch = exhume.Batch(inputs[:2], torch.tensor([0, 1]), event)
    public = exhume.Batch(inputs[2:], torch.tensor([0, 1]), event)
    task = exhume.Task(exhume.model("softmax-regression").build(event, 3, 0))
    world = exhume.World(
        task, batch, exhume.Mechanism(exhume.observations.Gradient()), public
    )
    guess = exhume.attack("analytic-linear")(reveal(world), key=0)
    worst = (guess.inputs - batch.inputs).abs().flatten(1).amax(dim=1)
    found = exhume.score(guess, batch)
    assert found["largest-error"] == pytest.approx(worst.tolist(), abs=1e-6)
    assert max(found["largest-error"]) < 1e-3
    svg = event.draw(guess.inputs[0].numpy(), batch.inputs[0].numpy()).svg
    assert svg.count("<polyline") == 2
    assert svg.count(",") == 10


def test_the_other_new_files_work_together(extended):
    """Data, model, prior, defense and metric of the page in one trial."""
    spec = TrialSpec(
        data={"name": "wine"},
        model={"name": "softmax-regression"},
        prior={"name": "ridge"},
        defenses=({"name": "uniform-noise", "width": 1e-3},),
        attack={"name": "gauss-newton", "iterations": 20},
    )
    result = run_trial(spec)
    assert result.status == "done", result.reason
    (error,) = result.scores["largest-error"]
    assert error is not None
    assert error < 0.1
    bound = run_trial(
        dataclasses.replace(spec, attack=None, bound={"name": "bayesian-cramer-rao"})
    )
    assert bound.status == "not-applicable"
    assert "'ridge' has no" in bound.reason
    assert exhume.dataset("wine").load().inputs.shape == (178, 13)


def test_the_uniform_defense_keeps_the_law_it_declares(extended):
    noise = exhume.defense("uniform-noise", width=0.3)
    world = make_world(VECTOR, model=smooth_mlp(VECTOR), defenses=(noise,))
    plans = world.mechanism.calibrate(world.task, None, 0)
    zeros = {name: torch.zeros_like(p) for name, p in world.task.parameters().items()}
    draws = [world.mechanism.release(zeros, plans, key) for key in range(300)]
    values = torch.stack([torch.cat([t.flatten() for t in d.values()]) for d in draws])
    law = world.mechanism.law(plans)
    assert law.not_gaussian == "the noise is uniform"
    (variance,) = {float(v) for v in law.variance.values()}
    # Kurtosis 9/5: the standard error of a variance is v √(0.8/n).
    slack = 4 * (0.8 / values.numel()) ** 0.5
    assert float(values.double().var()) == pytest.approx(variance, rel=slack)
    assert abs(float(values.mean())) < 4 * (variance / values.numel()) ** 0.5


def test_the_ridge_density_is_a_gaussian(extended):
    world = make_world(GRAY, model=smooth_mlp(GRAY))
    assert world.public is not None
    density = exhume.prior("ridge").fit(world.public, world.task)
    x = smooth(GRAY, 2, 5).double().requires_grad_()
    (slope,) = torch.autograd.grad(density.energy(x), x)
    expected = density.curvature(x, x.detach() - density.mean().double())
    torch.testing.assert_close(slope, expected)
    problem = reveal(dataclasses.replace(world, prior=density))
    assert problem.prior is not UNKNOWN
    guess = exhume.attack("prior-mean")(problem)
    torch.testing.assert_close(guess.inputs[0], density.mean())
