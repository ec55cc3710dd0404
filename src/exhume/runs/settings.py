"""The settings of a run: what all have in common, as TOML, and the run's folder."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
import unicodedata
from dataclasses import MISSING, fields
from importlib import resources
from pathlib import Path
from typing import Any, Self

from exhume.config import validate
from exhume.errors import InvalidInput
from exhume.runs.executor import Executor, check_executor, executor_named

__all__ = [
    "RunSettings",
    "check_least",
    "check_positive",
    "made",
    "parse_toml",
    "read_toml",
    "seed_list",
    "slug",
    "to_toml",
    "toml_value",
    "write_bytes",
    "write_text",
]


class RunSettings:
    """A run: where its jobs run, its seeds, and its folder.

    The fields stand in every schema itself, at their own place, because the order of
    the fields is that of the TOML file that a run leaves.

    Attributes:
        title: of the report.
        seeds: seeds, or how many.
        executor: name of an executor.
        workers: jobs at a time; 0 leaves it to the executor.
        out: folder of the run; "" makes ``runs/<title>``.
    """

    title: str
    seeds: list[int] | int
    executor: str
    workers: int
    out: str

    @classmethod
    def given(cls, settings: Self | str | Path | None) -> Self:
        """Return settings that are given as such, as a file, or not at all.

        Args:
            settings: settings, the path of a TOML file, or None for the default.
        """
        if settings is None:
            return cls.shipped()
        return cls.read(settings) if isinstance(settings, str | Path) else settings

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read settings from a TOML file, whose keys are the fields of the class.

        Raises:
            InvalidInput: the file is missing, is not TOML, or has a key or value that
                is not known; the message names it and offers the nearest.
        """
        return cls.parse(read_toml(path), what=str(path))

    @classmethod
    def shipped(cls, name: str = "default.toml") -> Self:
        """Return settings that come with exhume.

        Args:
            name: of a file beside the module of the class.
        """
        file = resources.files(cls.__module__.rpartition(".")[0]) / name
        return cls.from_toml(file.read_text("utf-8"), what=f"the shipped {name}")

    @classmethod
    def from_toml(cls, text: str, *, what: str) -> Self:
        """Read settings from the text of a TOML file.

        Args:
            text: TOML.
            what: how messages call it.
        """
        return cls.parse(parse_toml(text, what=what), what=what)

    @classmethod
    def parse(cls, given: dict[str, Any], *, what: str) -> Self:
        """Make settings of plain data; every problem is in one message."""
        return validate(cls, given, what=what)

    def check_run(self) -> None:
        """Raise unless the fields that all runs have are in their ranges.

        Raises:
            InvalidInput: one is not.
        """
        check_executor(self.executor)
        check_least(self, workers=0)
        if not self.seed_list:
            msg = f"seeds is {self.seeds!r}; give how many (at least 1), or a list"
            raise InvalidInput(msg)

    @property
    def seed_list(self) -> list[int]:
        """The seeds, without repetition."""
        return seed_list(self.seeds)

    @property
    def where(self) -> Executor:
        """The executor of the run."""
        return executor_named(self.executor, self.workers)

    def folder(self, out: str | Path | None = None) -> Path:
        """Return the folder of the run; it need not exist.

        Args:
            out: in place of the settings' own.
        """
        return Path(out or self.out or Path("runs") / slug(self.title))


def seed_list(given: list[int] | int) -> list[int]:
    """List seeds that were given as a list, or as how many."""
    return list(range(given)) if isinstance(given, int) else list(dict.fromkeys(given))


def slug(title: str) -> str:
    """Make a folder name of a title: ``"Faces, B = 4"`` gives ``faces-b-4``."""
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only.lower()).strip("-") or "audit"


def check_least(settings: Any, **least: float) -> None:
    """Raise unless every named field is at least a value.

    Raises:
        InvalidInput: one is less.
    """
    for name, smallest in least.items():
        value = getattr(settings, name)
        if value < smallest:
            msg = f"{name} is {value}; it must be at least {smallest}"
            raise InvalidInput(msg)


def check_positive(settings: Any, *names: str) -> None:
    """Raise unless every named field is a positive, finite number.

    Raises:
        InvalidInput: one is not.
    """
    for name in names:
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            msg = f"{name} is {value}; expected a positive number"
            raise InvalidInput(msg)


# --- TOML ----------------------------------------------------------------------------


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read settings from a TOML file, with "none" as None.

    Raises:
        InvalidInput: the file is missing, cannot be read, or is not TOML.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        msg = f"there is no file {path}; give the path of a TOML file of settings"
        raise InvalidInput(msg) from error
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read as text ({error}); give a TOML file"
        raise InvalidInput(msg) from error
    return parse_toml(text, what=str(path))


def parse_toml(text: str, *, what: str) -> dict[str, Any]:
    """Read settings from TOML, with "none" as None.

    Raises:
        InvalidInput: it is not TOML.
    """
    try:
        return _with_null(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        msg = f"{what} is not valid TOML: {error}"
        raise InvalidInput(msg) from error


def _with_null(value: Any) -> Any:
    """Replace the string "none" by None, which TOML cannot write."""
    if isinstance(value, dict):
        return {key: _with_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_null(item) for item in value]
    return None if value == "none" else value


def to_toml(settings: Any, *, complete: bool = False) -> str:
    """Write every setting that is not the default, one per line.

    Args:
        settings: a dataclass whose fields have defaults.
        complete: write those that are the default too.
    """
    lines = []
    for field in fields(settings):
        value, made = getattr(settings, field.name), field.default_factory
        if complete or value != (field.default if made is MISSING else made()):
            lines.append(f"{field.name} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def toml_value(value: Any, depth: int = 0) -> str:
    """Write a plain value; a long list at depth 0 takes one line per item."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        pairs = []
        for key, item in value.items():
            bare = key.replace("_", "").replace("-", "").isalnum() and key.isascii()
            name = key if bare else json.dumps(key)
            pairs.append(f"{name} = {toml_value(item, depth + 1)}")
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        items = [toml_value(item, depth + 1) for item in value]
        if depth == 0 and len(items) > 1:
            return "[\n" + "".join(f"  {item},\n" for item in items) + "]"
        return f"[{', '.join(items)}]"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except that TOML also escapes DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if value is None:
        return '"none"'
    return repr(value)


# --- folder --------------------------------------------------------------------------


def made(folder: Path) -> Path:
    """Make a folder unless it exists, and return it.

    Raises:
        InvalidInput: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"the folder {folder} cannot be made ({error}); choose another with out"
        raise InvalidInput(msg) from error
    return folder


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line ends, see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside and move it: a crash leaves the earlier one as it was.

    It is on disk when this returns.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
