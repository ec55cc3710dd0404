"""One file of each kind in a package of one's own: everything picks it up, unedited.

The package holds the files of ``docs/extending.md``, and data for its kind of example.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import audit_lab
from exhume import registry
from plugin import write_package
from test_docs import NEW, page_members

ROOT = Path(__file__).parent.parent
CONFORMANCE = ROOT / "tests" / "conformance"
#: kind → registered name of the file of the page
ADDED = {kind: Path(file).stem.replace("_", "-") for file, kind in NEW.items()}
WALKS = '''"""Random walks in the plane; the class is where the first step goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.source import DataSource


@dataclass(frozen=True, kw_only=True)
class Walks(DataSource):
    """Sixty walks of four steps."""

    licence: ClassVar[str] = "CC0 (made here)"

    def load(self) -> Batch:
        """Return the walks."""
        steps = torch.randn(60, 4, 2, generator=generator(0, "walks"))
        labels = (steps[:, 0, 0] > 0).long()
        return Batch(steps.cumsum(dim=1), labels, EventSpec.of("track", (4, 2)))
'''
EVERYTHING = """
title = "Everything"
data = "wine"
model = "softmax-regression"
prior = "ridge"
observation = "summed-gradient"
executor = "fresh-process"
attacks = [
  { name = "spectral-gradient", iterations = 30 },
  { name = "gauss-newton", iterations = 3, relaxation = "tanh-box" },
]
defenses = [[
  { name = "clipping", max_norm = 0.1 },
  { name = "gaussian-noise", std = 0.05 },
  { name = "uniform-noise", width = 1e-3 },
]]
bounds = ["two-point-test"]
metrics = [{ name = "desk.within", tolerance = 0.2 }]
"""
TRACKS = """
title = "Tracks"
data = "walks"
model = "softmax-regression"
prior = "none"
attacks = ["analytic-linear"]
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder on nobody's path but that of the processes that a test starts."""
    folder = tmp_path_factory.mktemp("lab")
    write_package(folder, {**page_members(), ("data", "walks.py"): WALKS})
    (folder / "desk").mkdir()
    within = (Path(audit_lab.__file__).parent / "within.py").read_text(encoding="utf-8")
    (folder / "desk" / "within.py").write_text(within, encoding="utf-8")
    (folder / "everything.toml").write_text(EVERYTHING, encoding="utf-8")
    (folder / "tracks.toml").write_text(TRACKS, encoding="utf-8")
    return folder


def run(lab: Path, *command: str, where: Path | None = None) -> str:
    """Run a module of Python with the package installed; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        cwd=where or lab,
        env={
            **os.environ,
            "PYTHONPATH": str(lab),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "150",
        },
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_a_file_of_every_kind():
    assert sorted(ADDED) == sorted(registry.KINDS)
    for kind, name in ADDED.items():
        assert name not in registry.names(kind)


def test_every_name_is_listed_and_in_the_catalogue(lab):
    listed = run(lab, "exhume", "list")
    for name in ADDED.values():
        assert f"  {name} " in listed
    page = lab / "catalogue.md"
    run(lab, "exhume.cli.catalogue", str(page))
    for name in ADDED.values():
        assert f"### `{name}`" in page.read_text(encoding="utf-8")


def test_each_is_described_by_its_docstrings(lab):
    for (kind, file), text in page_members().items():
        shown = " ".join(run(lab, "exhume", "list", kind, ADDED[kind]).split())
        (path,) = (lab / "my_lab").glob(f"*/{file}")
        node = registry.member_node(kind, path)
        assert node is not None
        for documented in (ast.parse(text), node):
            written = ast.get_docstring(documented)
            assert written is not None
            assert " ".join(written.split()) in shown


def test_a_module_that_is_not_installed_is_shown_by_its_dotted_path(lab):
    text = page_members()["defense", "uniform_noise.py"]
    (lab / "desk" / "mine.py").write_text(f"raise SystemExit\n{text}", "utf-8")
    shown = run(lab, "exhume", "list", "defenses", "desk.mine")
    assert "Uniform noise (dither)" in shown or "Release O = g + U" in shown
    assert re.search(r"width +float +\(required\)", shown)


@pytest.fixture(scope="module")
def everything(lab):
    """What an audit of all of them prints; its folder is runs/everything."""
    return run(lab, "exhume", "audit", "everything.toml")


def test_an_audit_uses_them_and_prints_them(everything):
    (heading,) = [line for line in everything.splitlines() if "MSE bound" in line]
    assert "largest error" in heading
    assert "within (tolerance=0.2)" in heading
    assert "uniform noise, width 0.001" in everything
    assert "spectral-gradient " in everything
    assert "gauss-newton" in everything
    assert re.search(r"two-point-test .*telling two examples apart 0\.\d", everything)
    assert "failed" not in everything


def test_the_report_names_and_cites_them(lab, everything):
    folder = lab / "runs" / "everything"
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name in ("spectral-gradient", "uniform noise", "wine", "softmax-regression"):
        assert name in page
    for name in ("ridge", "summed-gradient", "tanh-box", "two-point-test"):
        assert name in page
    assert "largest error" in page
    assert "within (tolerance=0.2)" in page
    for key in ("barzilai1988two", "dong2022gaussian", "within2026"):
        assert key in page
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    text = json.dumps(results)
    assert "desk.within(tolerance=0.2)" in text
    for name in ("spectral-gradient", "uniform-noise", "largest-error", "tanh-box"):
        assert name in text


def test_a_kind_of_example_of_one_s_own_is_audited_and_drawn(lab):
    printed = run(lab, "exhume", "audit", "tracks.toml")
    assert "largest error" in printed
    page = (lab / "runs" / "tracks" / "report.html").read_text(encoding="utf-8")
    assert page.count("<polyline") >= 2


@pytest.mark.slow
def test_every_file_passes_the_conformance_suites(lab):
    """The very suites of this repository, with rows from the registry alone."""
    wanted = " or ".join(ADDED.values())
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-rA", "-k", wanted]
    printed = run(lab, "pytest", *options, str(CONFORMANCE), where=ROOT)
    passed = re.findall(r"^PASSED (\S+)", printed, re.MULTILINE)
    suites = {path.name for path in CONFORMANCE.glob("test_*.py")}
    for kind, name in ADDED.items():
        ran = {re.split("/|::", test)[-2] for test in passed if name in test}
        assert "test_members.py" in ran
        assert ran & suites & {f"test_{kind}.py", f"test_{kind}s.py"}, kind
