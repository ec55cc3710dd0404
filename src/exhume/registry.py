"""Names of everything that can be chosen: a file's name is the registered name.

``attacks/gauss_newton.py`` is the attack ``gauss-newton``. Names are read from the
folders, so listing them imports nothing. A module holds exactly one public class of its
kind; a name with a dot (``my_lab.my_attack``) is a module of the user's own, and one
with a colon (``my_lab.nets:build``) a function in it, where the kind takes functions.

A distribution that is installed beside exhume adds names: a package that it names as an
entry point of the group ``exhume`` has the same folders (``my_lab/attacks/mine.py`` is
the attack ``mine``). No file of it takes the place of one of ours.

Importing a module runs its code, so a dotted name is followed only where the user gave
it: on the command line, in settings, in Python. Names that come out of a data file are
looked up with ``own="refused"``, those of a finished run with ``own="loaded"``.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from exhume.errors import NotImported, UnknownName, shown

__all__ = [
    "KINDS",
    "Entry",
    "OwnModules",
    "class_named",
    "did_you_mean",
    "entries",
    "entry",
    "find",
    "function_named",
    "located",
    "member_node",
    "names",
    "own_modules",
    "registered_name",
]

#: what is done for a dotted name: import the module, take it if this process has
#: imported it already, or nothing at all
OwnModules = Literal["import", "loaded", "refused"]

_STRICTNESS: tuple[OwnModules, ...] = get_args(OwnModules)
_rule: ContextVar[OwnModules] = ContextVar("own_modules", default="import")

#: kind → (package, module and name of the base class its members derive from)
KINDS: dict[str, tuple[str, str, str]] = {
    "attack": ("exhume.attacks", "exhume.problem.attack", "Attack"),
    "bound": ("exhume.bounds", "exhume.problem.bound", "Bound"),
    "data": ("exhume.data", "exhume.problem.source", "DataSource"),
    "defense": ("exhume.defenses", "exhume.problem.defense", "Defense"),
    "event": ("exhume.events", "exhume.problem.event", "EventSpec"),
    "executor": ("exhume.runs.executors", "exhume.runs.executor", "Executor"),
    "metric": ("exhume.metrics", "exhume.problem.metric", "Metric"),
    "model": ("exhume.models", "exhume.problem.source", "ModelSource"),
    "observation": (
        "exhume.observations",
        "exhume.problem.observation",
        "ObservationModel",
    ),
    "prior": ("exhume.priors", "exhume.problem.prior", "Prior"),
    "relaxation": (
        "exhume.attacks.relaxations",
        "exhume.problem.source",
        "RelaxationSource",
    ),
}


#: packages that hold members of ours, and the names of their folders
_PACKAGES = {package for package, _, _ in KINDS.values()}
_ROOMS = {package.rpartition(".")[2] for package in _PACKAGES}


@dataclass(frozen=True)
class Entry:
    """One registered name: its kind, the file that defines it and one line about it."""

    kind: str
    name: str
    path: Path
    summary: str


def _files(kind: str) -> dict[str, tuple[str, Path]]:
    """Map the names of a kind to module and file; ours come before installed ones."""
    package = KINDS[kind][0]
    # find_spec imports the parent package only, never the modules.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:  # pragma: no cover
        msg = f"the package {package} is missing from this installation"
        raise UnknownName(msg)
    folders = [(package, Path(folder)) for folder in spec.submodule_search_locations]
    room = package.rpartition(".")[2]
    for own, folder in _installed(tuple(sys.path)).items():
        folders.append((f"{own}.{room}", folder / room))
    found: dict[str, tuple[str, Path]] = {}
    for package, folder in folders:
        for path in sorted(folder.glob("*.py")):
            if path.stem.startswith("_") or not _defines_member(kind, path):
                continue
            name = path.stem.replace("_", "-")
            found.setdefault(name, (f"{package}.{path.stem}", path))
    return found


@lru_cache(maxsize=8)
def _installed(path: tuple[str, ...]) -> dict[str, Path]:
    """Map the packages that installed distributions add to their folders, sorted."""
    del path  # where they are looked for: another one is another answer
    from importlib.metadata import entry_points

    found: dict[str, Path] = {}
    for point in entry_points(group="exhume"):
        folder = located(point.module)
        if folder is not None and folder.is_dir():
            found[point.module] = folder
    return dict(sorted(found.items()))


def located(name: str) -> Path | None:
    """Find a module without importing it or the packages that it lies in.

    Args:
        name: dotted.

    Returns:
        the file of a module, the folder of a package, or None if there is neither.
    """
    first, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # what is running has no specification
        return None
    places = [Path(p) for p in (spec and spec.submodule_search_locations) or ()]
    if not inner:
        origin = spec and spec.origin
        return places[0] if places else Path(origin) if origin else None
    for part in inner[:-1]:
        places = [place / part for place in places]
    for place in places:
        for found in (place / f"{inner[-1]}.py", place / inner[-1]):
            if found.exists():
                return found
    return None


@lru_cache(maxsize=512)
def _defines_member(kind: str, path: Path) -> bool:
    return member_node(kind, path) is not None


def member_node(kind: str, path: Path) -> ast.ClassDef | None:
    """Return the class of a file that is derived from the kind's base; read, not run.

    An abstract class between the two ends in the name of the base: a MatchingAttack is
    an Attack.
    """
    base = KINDS[kind][2]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and any(
            ast.unparse(b).split("[")[0].endswith(base) for b in node.bases
        ):
            return node
    return None


def _summary(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.strip().split("\n", 1)[0]


def names(kind: str) -> list[str]:
    """List the registered names of a kind, sorted, without importing any of them."""
    return sorted(_files(_known(kind)))


def entries(kind: str) -> list[Entry]:
    """List the registered names of a kind with the first line of their docstrings."""
    return [
        Entry(kind, name, path, _summary(path))
        for name, (_, path) in sorted(_files(_known(kind)).items())
    ]


def entry(kind: str, name: str) -> Entry:
    """Return one registered name, or a member of the user's own, without importing it.

    Raises:
        UnknownName: there is no such name, or no such module, or it defines no member.
    """
    if not re.search("[.:]", name):
        files = _files(_known(kind))
        if name not in files:
            raise UnknownName(did_you_mean(kind, name, sorted(files)))
        path = files[name][1]
        return Entry(kind, name, path, _summary(path))
    module, _, function = name.partition(":")
    path = located(module) if _is_module(module) else None
    if path is not None and path.is_dir():
        path /= "__init__.py"
    if path is None or not path.is_file():
        raise UnknownName(_absent(kind, module))
    if function and function not in _bound(path):
        msg = f"{path} defines no {shown(function)}"
        raise UnknownName(msg)
    if not function and not _defines_member(_known(kind), path):
        msg = f"{path} defines no class derived from {KINDS[kind][2]}"
        raise UnknownName(msg)
    return Entry(kind, name, path, _summary(path))


def _bound(path: Path) -> set[str]:
    """List the names that a module defines or imports at its top level."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {ast.unparse(target) for target in node.targets}
    return found


@contextmanager
def own_modules(rule: OwnModules) -> Iterator[None]:
    """Apply a rule to dotted names within a block; it never loosens an outer one.

    It holds for objects that look up others by name, too.
    """
    outer = _rule.get()
    stricter = _STRICTNESS.index(rule) > _STRICTNESS.index(outer)
    token = _rule.set(rule if stricter else outer)
    try:
        yield
    finally:
        _rule.reset(token)


def find(kind: str, name: str, *, own: OwnModules = "import") -> type[Any]:
    """Import the class registered under a name.

    Args:
        kind: one of ``KINDS``.
        name: a registered name, or ``package.module`` of the user's own, or
            ``module:function`` for a model.
        own: what is done for a module of the user's own, unless :func:`own_modules` is
            stricter.

    Raises:
        UnknownName: no such name; the message lists the nearest ones.
        NotImported: a module of the user's own that ``own`` forbids to import.
    """
    _, base_module, base_name = KINDS[_known(kind)]
    base = getattr(importlib.import_module(base_module), base_name)
    if ":" in name:
        return _class_of_function(kind, base, name, own)
    if "." in name:
        module = _own_module(kind, name, own)
    elif name in (files := _files(kind)):
        module = importlib.import_module(files[name][0])
    else:
        raise UnknownName(did_you_mean(kind, name, sorted(files)))
    members = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, base)
        and member.__module__ == module.__name__
        and not member.__name__.startswith("_")
        and not inspect.isabstract(member)
    ]
    if len(members) != 1:
        msg = (
            f"{module.__name__} defines {len(members)} public {base_name} classes; "
            f"a module holds exactly one, so that its name is unique"
        )
        raise UnknownName(msg)
    return members[0]


def _class_of_function(
    kind: str, base: type[Any], name: str, rule: OwnModules
) -> type[Any]:
    """Return the class that stands for a function of the user's own."""
    if not hasattr(base, "of_function"):
        msg = (
            f"{shown(name)} is a function; an own {kind} is a class, named by the "
            f"dotted path of its module"
        )
        raise UnknownName(msg)
    return base.of_function(name, function_named(kind, name, own=rule))


def function_named(
    what: str, name: str, *, own: OwnModules = "import"
) -> Callable[..., Any]:
    """Import a function of the user's own.

    Args:
        what: what it serves as, for messages.
        name: ``module:function``.
        own: what is done for the module, unless :func:`own_modules` is stricter.

    Raises:
        UnknownName: no such module or function.
        NotImported: the module is not imported, and ``own`` forbids to.
    """
    module, _, function = name.partition(":")
    found = getattr(_own_module(what, module, own), function, None)
    if not callable(found):
        msg = f"the module {shown(module)} has no function {shown(function)}"
        raise UnknownName(msg)
    return found


def _own_module(kind: str, name: str, own: OwnModules) -> ModuleType:
    with own_modules(own):
        rule = _rule.get()
    if rule == "refused":
        known = f" ({', '.join(names(kind))})" if kind in KINDS else ""
        msg = (
            f"{shown(name)} is a module, and none is imported for a file; write a "
            f"registered {kind}{known}, or pass your own in Python"
        )
        raise NotImported(msg)
    if rule == "loaded":
        module = sys.modules.get(name)
        if module is None:
            msg = f"{shown(name)} is a module that has not been imported"
            raise NotImported(msg)
        return module
    try:
        if not _is_module(name):
            raise ModuleNotFoundError(name=name)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(error.name or "\0"):
            raise
        raise UnknownName(_absent(kind, name)) from error


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _absent(kind: str, name: str) -> str:
    return (
        f"the module {shown(name)} cannot be imported; an own {kind} is named by the "
        f"dotted path of its module, which must be on the Python path"
    )


def class_named(kind: str, class_name: str) -> type[Any]:
    """Import a registered class by its own name, for ``exhume.defenses.GaussianNoise``.

    Raises:
        AttributeError: no file is named after the class.
    """
    name = re.sub(r"(?<!^)(?=[A-Z])", "-", class_name).lower()
    # Submodules are asked for through the same door; importing them is not our part.
    if class_name[:1].isupper() and name in names(kind):
        found = find(kind, name)
        if found.__name__ == class_name:
            return found
    msg = f"module {KINDS[kind][0]!r} has no attribute {class_name!r}"
    raise AttributeError(msg)


def registered_name(cls: type[Any]) -> str:
    """Return the name under which a class is found.

    It is that of its file with hyphens, or the dotted path of a module that lies in no
    folder of the registry, or ``module:function``.
    """
    if function := getattr(cls, "function_name", ""):
        return function
    package, _, stem = cls.__module__.rpartition(".")
    home, _, room = package.rpartition(".")
    if package in _PACKAGES or (room in _ROOMS and home in _installed(tuple(sys.path))):
        return stem.replace("_", "-")
    return cls.__module__


def _known(kind: str) -> str:
    if kind in KINDS:
        return kind
    raise UnknownName(did_you_mean("kind", kind, sorted(KINDS)))


def did_you_mean(kind: str, name: str, known: list[str]) -> str:
    """Say that a name is not known, offering the nearest ones and the whole list."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"no {kind} is called {shown(name)}; {hint}known: {', '.join(known)}"
