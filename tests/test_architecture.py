"""The house stands: arrows, sizes, import time, registry, keys and formulas."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

import exhume
from exhume import registry
from exhume.errors import InvalidInput, UnknownName
from exhume.formula import collect, page
from exhume.keys import fold, generator

SOURCE = Path(exhume.__file__).parent
TESTS = Path(__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

#: modules without torch that every room may use, and which use no room
FOUNDATION = {"errors", "keys", "formula", "registry", "config", "files", "member"}
FOUNDATION |= {"moved"}
_SIGNAL = {"problem", "observations", "defenses", "priors", "models", "data"}
#: room → rooms that it may import (its own is always allowed)
ARROWS = {
    # An event draws itself for a page: it returns a Picture, which is plain data.
    "problem": {"report"},
    "events": {"problem", "report"},
    "observations": {"problem"},
    "defenses": {"problem", "observations"},
    "priors": {"problem"},
    "models": {"problem"},
    "data": {"problem"},
    "attacks": _SIGNAL - {"data"},
    "bounds": _SIGNAL - {"data"},
    "metrics": {"problem"},
    "runs": set(),
    "report": {"runs"},
    "trials": _SIGNAL | {"attacks", "bounds", "metrics", "runs"},
    "audit": _SIGNAL | {"bounds", "metrics", "runs", "report", "trials"},
    "compare": {"problem", "runs", "report", "trials", "audit"},
    "recipes": {"runs", "report", "trials", "audit", "compare"},
    "theory": _SIGNAL
    | {"attacks", "bounds", "metrics"}
    | {"runs", "report", "trials", "audit", "compare"},
    "cli": _SIGNAL
    | {"attacks", "bounds", "metrics", "runs", "report", "trials"}
    | {"audit", "compare", "recipes", "theory"},
}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> list[tuple[int, str]]:
    """List every ``exhume.x`` that a file imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "exhume":
                found += [(node.lineno, f"exhume.{a.name}") for a in node.names]
            else:
                found.append((node.lineno, node.module or ""))
    return [
        (line, name)
        for line, name in found
        if name.startswith("exhume.") and not name.startswith("exhume.__")
    ]


def test_the_conformance_suites_stand_alone():
    """They are installed without the other tests, under another name."""
    for path in (TESTS / "conformance").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                first = (node.module or "").partition(".")[0]
                assert not (TESTS / first).exists(), f"{path.name} imports {first}"
                assert not (TESTS / f"{first}.py").exists(), path.name


def test_every_room_is_in_the_table_of_arrows():
    rooms = {room(p) for p in FILES} - {"__init__", "__main__"} - FOUNDATION
    assert rooms <= set(ARROWS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_follow_the_arrows(path):
    here = room(path)
    if here in {"__init__", "__main__"}:
        return
    allowed = FOUNDATION | ARROWS.get(here, set()) | {here}
    wrong = [
        f"line {line} imports {name}"
        for line, name in imported_modules(path)
        if name.split(".")[1] not in allowed
    ]
    assert wrong == []


def module(path: Path) -> str:
    parts = ["exhume", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph_of_files() -> dict[str, set[str]]:
    """Map every module to those that it imports, inside functions and for types too.

    A package stands for its ``__init__``; ``exhume`` itself only hands names on.
    """
    modules = {module(path) for path in FILES} - {"exhume"}
    graph: dict[str, set[str]] = {}
    for path in FILES:
        here = module(path)
        if here not in modules:
            continue
        found = graph[here] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found.add(inner if inner in modules else node.module)
        graph[here] = (found & modules) - {here}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """List the files that are left when what ends a chain is taken away, again."""
    left = {name: set(found) for name, found in graph.items()}
    while ends := [name for name, found in left.items() if not found & set(left)]:
        for name in ends:
            del left[name]
    # What only leads into a circle is in none.
    while starts := [n for n in left if not any(n in found for found in left.values())]:
        for name in starts:
            del left[name]
    return [sorted(left)] if left else []


def test_no_files_import_each_other_in_a_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]
    assert circles(graph_of_files()) == []


def test_files_and_functions_are_short():
    lengths, offenders = [], []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(SOURCE)
        if (count := len(text.splitlines())) > 500:
            offenders.append(f"{name} has {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                lengths.append(length)
                if length > 80:
                    offenders.append(f"{name}:{node.lineno} {node.name}: {length}")
    assert offenders == []
    assert median(lengths) <= 12


def fresh(code: str) -> str:
    """Run code in a new interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_fast_and_free_of_torch():
    code = (
        "import time, sys; t = time.process_time(); import exhume; "
        "print(time.process_time() - t); assert 'torch' not in sys.modules"
    )
    assert min(float(fresh(code)) for _ in range(3)) < 0.2


def test_listing_names_imports_neither_torch_nor_any_member():
    code = (
        "import sys, exhume.registry as r\n"
        "import exhume.runs.records, exhume.audit.settings\n"
        "for kind in r.KINDS: r.names(kind); r.entries(kind)\n"
        "heavy = {'torch', 'scipy', 'skimage', 'sklearn', 'matplotlib', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert fresh(code).strip() == "[]"


def test_the_public_names_resolve():
    for name in exhume.__all__:
        assert getattr(exhume, name) is not None
    assert set(exhume.__all__) <= set(dir(exhume))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        exhume.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("exhume.audit.records", "exhume.runs.records", "TrialSpec"),
        ("exhume.audit.trial", "exhume.trials.trial", "run_trial"),
        ("exhume.audit.trial", "exhume.trials.world", "make_world"),
        ("exhume.audit.trial", "exhume.trials.setting", "prepare"),
    ],
)
def test_documented_modules_that_moved_keep_a_door(old, new, name):
    with pytest.warns(DeprecationWarning, match=f"has moved to {new}"):
        found = getattr(importlib.import_module(old), name)
    assert found is getattr(importlib.import_module(new), name)
    with pytest.raises(AttributeError, match="nothing"):
        importlib.import_module(old).nothing  # noqa: B018


# --- registry ------------------------------------------------------------------------


def test_unknown_names_get_the_nearest_ones_and_the_list():
    with pytest.raises(UnknownName, match=r"did you mean 'prior-mean'.*nearest-public"):
        registry.find("attack", "prior-maen")
    with pytest.raises(UnknownName, match="no kind is called 'atack'; did you mean"):
        registry.names("atack")
    with pytest.raises(UnknownName, match="no attack is called 'zzz'; known: "):
        exhume.attack("zzz")


OWN = '''"""{summary}"""
from dataclasses import dataclass
from exhume.problem.attack import Attack

@dataclass(frozen=True, kw_only=True)
class {cls}(Attack):
    """{summary}"""
    scale: float = 1.0
    needs = frozenset()

    def run(self, problem, key):
        raise NotImplementedError
'''


def test_one_new_file_is_enough(tmp_path):
    import exhume.attacks

    (tmp_path / "brand_new.py").write_text(OWN.format(summary="Mine.", cls="BrandNew"))
    (tmp_path / "prior_mean.py").write_text(OWN.format(summary="Fake.", cls="Fake"))
    (tmp_path / "helper.py").write_text('"""No attack."""\n')
    exhume.attacks.__path__.append(str(tmp_path))
    try:
        assert "brand-new" in registry.names("attack")
        assert "helper" not in registry.names("attack")
        assert exhume.attack("brand-new", scale=2).scale == 2.0
        # A second file of the same name cannot replace the first.
        summaries = {e.name: e.summary for e in registry.entries("attack")}
        assert summaries["prior-mean"] != "Fake."
        assert summaries["brand-new"] == "Mine."
    finally:
        exhume.attacks.__path__.remove(str(tmp_path))
        sys.modules.pop("exhume.attacks.brand_new", None)
    assert "brand-new" not in registry.names("attack")


def test_own_modules_are_named_by_dotted_path(tmp_path, monkeypatch):
    package = tmp_path / "my_lab"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.py").write_text(OWN.format(summary="Mine.", cls="Mine"))
    (package / "two.py").write_text(
        OWN.format(summary="One.", cls="One") + OWN.format(summary="Two.", cls="Two")
    )
    (package / "broken.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert type(exhume.attack("my_lab.mine")).__name__ == "Mine"
    with pytest.raises(UnknownName, match="defines 2 public Attack classes"):
        registry.find("attack", "my_lab.two")
    with pytest.raises(UnknownName, match="dotted path of its module"):
        registry.find("attack", "my_lab.absent")
    # The user's own missing dependency is not blamed on the name.
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        registry.find("attack", "my_lab.broken")


def test_options_are_checked_all_at_once():
    with pytest.raises(InvalidInput, match=r"no option 'lables'.*labels"):
        exhume.attack("analytic-linear", lables="idlg")
    with pytest.raises(InvalidInput, match=r"gradients.*got 'many'"):
        exhume.attack("nearest-public", gradients="many")
    with pytest.raises(InvalidInput, match="gradients is 0"):
        exhume.attack("nearest-public", gradients=0)


# --- keys ----------------------------------------------------------------------------


def test_keys_are_the_same_on_every_machine():
    assert fold(0, "attack", 1) == 301221917959323947  # first 63 bits of SHA-256
    assert fold(7) == fold(7)


def test_keys_differ_by_every_part():
    keys = {
        fold(seed, *names)
        for seed in range(20)
        for names in [(), ("a",), ("b",), ("a", "b"), ("b", "a"), ("1",), (1,), (2,)]
    }
    assert len(keys) == 160
    assert all(0 <= key < 2**63 for key in keys)


def test_generators_are_local_and_reproducible():
    import torch

    before = torch.random.get_rng_state()
    draws = [torch.rand(5, generator=generator(3, "x")) for _ in range(2)]
    assert bool((draws[0] == draws[1]).all())
    assert bool((draws[0] != torch.rand(5, generator=generator(3, "y"))).all())
    assert bool((torch.random.get_rng_state() == before).all())


# --- formulas ------------------------------------------------------------------------


def test_every_formula_is_named_in_a_test():
    text = "\n".join(p.read_text(encoding="utf-8") for p in TESTS.rglob("test_*.py"))
    words = set(re.findall(r"\w+", text))
    untested = [f.function for f in collect() if f.function.split(".")[-1] not in words]
    assert untested == []


def test_every_formula_is_documented():
    for entry in collect():
        assert entry.summary.endswith("."), entry
        assert entry.equation, entry
        assert entry.reference, entry
        assert "$" not in entry.equation, entry


def test_the_page_of_formulas_is_up_to_date():
    path = SOURCE.parent.parent / "docs" / "formulas.md"
    if not path.exists():
        pytest.skip("docs/formulas.md is not part of this checkout")
    assert path.read_text(encoding="utf-8") == page(collect()), "run `make docs`"


# --- names that nothing compares -----------------------------------------------------


def compared(path: Path) -> list[tuple[int, str, set[str]]]:
    """List the comparisons and cases of a file: line, text, and the strings in them."""
    return [
        (node.lineno, ast.unparse(node), strings(node))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.pattern)
    ]


def strings(node: ast.AST) -> set[str]:
    constants = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return {value for value in constants if isinstance(value, str)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_what_depends_on_a_kind_of_example_asks_the_event(path):
    """A new kind of example is a new file: no other file knows the kinds there are."""
    if room(path) in {"events", "models", "data"}:
        return
    kinds, words = set(registry.names("event")), re.compile(r"kind|event|spec")
    found = [
        (line, text)
        for line, text, held in compared(path)
        if held & kinds and words.search(text)
    ]
    assert found == []
    leaves = [m for m in imported_modules(path) if m[1].startswith("exhume.events.")]
    assert leaves == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_what_depends_on_a_loss_asks_the_loss(path):
    from exhume.problem.losses import LOSSES

    if path == SOURCE / "problem" / "losses.py":
        return
    found = [
        (line, text)
        for line, text, held in compared(path)
        if held & set(LOSSES) and "loss" in text
    ]
    assert found == []
