"""Names that come out of files are looked up, and never imported.

A dotted name is a module of the user's own, and importing it runs it. The user may give
one; an observation file, a store of results or a folder of a run may not.
"""

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from exhume import audit, compare
from exhume.audit import AuditSettings, TrialResult, TrialSpec
from exhume.audit.settings import expand
from exhume.cli import app
from exhume.config import build
from exhume.errors import InvalidInput, NotImported, UnknownName
from exhume.observations.file import load
from exhume.registry import find, own_modules
from exhume.report.page import citations
from exhume.runs.settings import to_toml
from exhume.runs.store import Store

TRAP = """
from pathlib import Path
Path(__file__).with_name("executed").touch()
"""
ATTACK = '''
from dataclasses import dataclass
from typing import ClassVar

from exhume.attacks.prior_mean import PriorMean


@dataclass(frozen=True, kw_only=True)
class Own(PriorMean):
    """Answers as the prior mean does."""

    depth: int = 3
    rate: float = 1.0
    baseline: ClassVar[bool] = False
    bibtex: ClassVar[str] = "@misc{own2025, title = {Own}}"
'''
NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3))
"""
TINY = AuditSettings(
    title="Tiny",
    data="digits",
    model={"name": "mlp", "hidden": [4]},
    attacks=[],
    executor="serial",
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a module that leaves a mark when it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for package, text in (("trap", TRAP), ("lab", ATTACK)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "mod.py").write_text(text)
    (tmp_path / "net.py").write_text(NET)
    yield tmp_path
    for name in ("trap.mod", "trap", "lab.mod", "lab", "net"):
        sys.modules.pop(name, None)


def nothing_ran(here):
    return not (here / "trap" / "executed").exists() and "trap.mod" not in sys.modules


def observation_file(path, **changes):
    record = {
        "format": 1,
        "kind": "gradient",
        "sign": "gradient",
        "task": {
            "loss": "cross-entropy",
            "mode": "eval",
            "event": {"kind": "vector", "shape": [6], "range": None},
        },
        "batch_size": 1,
        "defense": [],
        **changes,
    }
    tensors = {
        "gradient/0.weight": torch.ones(4, 6),
        "gradient/0.bias": torch.ones(4),
        "gradient/2.weight": torch.ones(3, 4),
        "gradient/2.bias": torch.tensor([0.5, -1.0, 0.5]),
    }
    save_file(tensors, path, metadata={"exhume": json.dumps(record)})
    return path


OPTIONS = {"name": "trap.mod"}
STACK = [{"options": OPTIONS, "covers": [], "numbers": {}}]


# Observation files


@pytest.mark.parametrize(
    ("changes", "kind", "known"),
    [
        ({"observation": OPTIONS}, "observation", "fine-tuning, gradient, update"),
        ({"defense": STACK}, "defense", "clipping, coordinate-clipping"),
    ],
)
def test_an_observation_file_names_no_module(here, changes, kind, known):
    path = observation_file(here / "o.safetensors", **changes)
    sentence = (
        f"'trap.mod' is a module, and none is imported for a file; write a "
        f"registered {kind} "
    )
    with pytest.raises(InvalidInput, match=sentence) as error:
        load(path)
    assert known in str(error.value)
    arguments = ["attack", "prior-mean", "--model", "net:build", "--update", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr.replace("\n", " ")
    assert CliRunner().invoke(app, ["inspect", str(path)]).exit_code == 0
    assert nothing_ran(here)


def test_a_module_that_is_loaded_already_is_refused_too(here):
    assert find("attack", "lab.mod").__name__ == "Own"
    stack = [{"options": {"name": "lab.mod"}, "covers": [], "numbers": {}}]
    with pytest.raises(InvalidInput, match=r"'lab\.mod' is a module"):
        load(observation_file(here / "o.safetensors", defense=stack))


# The rule


@pytest.mark.parametrize("rule", ["refused", "loaded"])
def test_the_rule_holds_for_objects_within_objects(here, rule):
    with pytest.raises(NotImported, match=r"model 'transfer': .*'trap\.mod'"):
        build("model", {"name": "transfer", "head": OPTIONS}, own=rule)
    with pytest.raises(NotImported, match=r"'trap\.mod' is a module"):
        find("model", "trap.mod", own=rule)
    assert nothing_ran(here)


def test_an_inner_rule_never_loosens_an_outer_one(here):
    with own_modules("refused"), own_modules("import"), pytest.raises(NotImported):
        find("attack", "lab.mod", own="import")
    assert "lab.mod" not in sys.modules
    assert find("attack", "lab.mod") is find("attack", "lab.mod", own="loaded")


@pytest.mark.parametrize("name", [".mod", "trap.", "trap..mod", "a b.c", "../x.y"])
def test_a_dotted_name_that_is_no_path_is_one_sentence(here, name):
    with pytest.raises(UnknownName, match="cannot be imported; an own attack is named"):
        find("attack", name)


# Stores and folders of runs


def page(folder):
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": OPTIONS},
        {"attack": None, "bound": OPTIONS},
        {"defenses": (OPTIONS, {"name": "gaussian-noise", "std": 0.1})},
        {"data": OPTIONS},
        {"data": {"name": "relabelled", "source": OPTIONS, "classes": [[0], [1]]}},
        {"model": OPTIONS},
        {"model": {"name": "transfer", "head": OPTIONS}},
        {"observation": OPTIONS},
        {"prior": OPTIONS},
    ],
)
@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_report_of_a_stored_record_imports_nothing(here, changes, status):
    spec = TrialSpec(
        data={"name": "digits"},
        model={"name": "mlp", "hidden": [4]},
        attack={"name": "prior-mean"},
    )
    spec = replace(spec, **changes)
    folder = here / "run"
    folder.mkdir()
    with Store(folder / "results.sqlite") as store:
        store.put(TrialResult(spec=spec, status=status, scores={"trap.mod": [1.0]}))
    listed = {
        "attacks": [spec.attack] if spec.attack else [],
        "bounds": [spec.bound] if spec.bound else [],
        "defenses": [list(spec.defenses)],
        "data": spec.data,
        "model": spec.model,
        "observation": spec.observation,
        "prior": spec.prior,
    }
    settings = replace(AuditSettings(), **listed)
    (folder / "audit.toml").write_text(to_toml(settings), encoding="utf-8")
    assert "trap.mod" in page(folder)
    assert nothing_ran(here)


def test_a_stored_record_without_a_name_is_a_damaged_store(here):
    spec = TrialSpec(data={"name": "digits"}, model={"name": "mlp"}, attack={})
    with Store(here / "r.sqlite") as store:
        store.put(TrialResult(spec=spec, status="done"))
        with pytest.raises(InvalidInput, match="the attack of a trial has no name"):
            store.results()


def forget(name):
    """Make a module one that this process has not imported."""
    for loaded in (name, name.partition(".")[0]):
        sys.modules.pop(loaded, None)


def test_a_run_of_an_own_attack_is_read_again_without_importing_it(here):
    folder = here / "run"
    own = {"name": "lab.mod", "rate": 2}
    # A trial of earlier settings, which the page leaves out.
    audit.run(replace(TINY, attacks=[{**own, "depth": 5, "rate": 1}]), out=folder)
    done = audit.run(replace(TINY, attacks=[own]), out=folder)
    live = done.report.read_text(encoding="utf-8")
    assert "own2025" in live
    forget("lab.mod")
    again = page(folder)
    assert "lab.mod" not in sys.modules
    assert "own2025" not in again
    assert "% lab.mod is an own module, which is not imported for a page" in again
    for text in (live, again):
        assert "<dt>trials finished</dt><dd>4</dd>" in text
        assert "not finished" not in text
    settings = replace(TINY, attacks=[own])
    recorded = [result.spec for result in done.results]
    ids = [spec.id for spec in expand(settings, recorded=recorded)]
    assert "lab.mod" not in sys.modules
    assert ids == [spec.id for spec in recorded] == [s.id for s in expand(settings)]


def test_a_comparison_with_an_own_attack_is_read_again_without_importing_it(here):
    folder = here / "compared"
    settings = compare.CompareSettings(
        title="Own",
        data="digits",
        model={"name": "mlp", "hidden": [4]},
        defenses=[
            {"name": "gaussian-noise", "std": {"weakest": 0.001, "strongest": 1.0}}
        ],
        utility="u1",
        budgets=[0.1],
        tolerance=0.05,
        training_seeds=1,
        seeds=1,
        attacks=[{"name": "lab.mod", "rate": 2}],
        bounds=[],
        executor="serial",
    )
    compare.run(settings, out=folder)
    forget("lab.mod")
    found = compare.load(folder)
    assert "lab.mod" not in sys.modules
    assert "lab.mod" in found.report.read_text(encoding="utf-8")


def test_a_comparison_that_names_a_module_imports_nothing(here):
    folder = here / "compared"
    folder.mkdir()
    (folder / "compare.toml").write_text(
        'model = {name = "trap.mod"}\nattacks = ["trap.mod"]\n'
        'defenses = [{name = "trap.mod", std = {weakest = 0.1, strongest = 1}}]\n'
    )
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 2
    assert "has not finished" in result.stderr
    assert nothing_ran(here)


def test_citations_name_each_own_module_once(here):
    used = [("attack", {"name": "trap.mod"}), ("attack", {"name": "trap.mod", "a": 1})]
    assert citations(used) == (
        "% trap.mod is an own module, which is not imported for a page"
    )
    assert citations([("attack", {"name": "of another version"})]) == ""
    assert nothing_ran(here)
