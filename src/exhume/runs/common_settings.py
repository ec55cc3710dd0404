"""What the settings of every run have in common."""

from __future__ import annotations

import math
import re
import unicodedata
from importlib import resources
from pathlib import Path
from typing import Any, Self

from exhume.config import validate
from exhume.errors import InvalidInput
from exhume.runs.executor import Executor, check_executor, executor_named
from exhume.runs.settings_file import parse_toml, read_toml

__all__ = ["RunSettings", "check_least", "check_positive", "seed_list", "slug"]


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
