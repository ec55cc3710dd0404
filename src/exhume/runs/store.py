"""Results on disk: one SQLite file, one row per result, written at once or not at all.

A row is JSON beside the arrays of an ``.npz``; nothing is ever unpickled. A result is
durable when ``put`` returns, so a sweep that is killed loses only what was running.
"""

from __future__ import annotations

import io
import sqlite3
import time
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from types import NoneType, TracebackType, UnionType
from typing import (
    Any,
    ClassVar,
    Generic,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from exhume.errors import InvalidInput
from exhume.runs.records import TrialResult, dump_exact, load_exact

__all__ = ["ResultFile", "Store", "restore"]

T = TypeVar("T")

#: a dataclass with ``spec`` (which has an ``id``), ``status`` and ``arrays``
Result = TypeVar("Result", bound=Any)

#: "exhm": tells a store from any other SQLite file
_APPLICATION = 0x6578686D
_SCHEMA_VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS {table} (
  id TEXT PRIMARY KEY,
  status TEXT NOT NULL,
  finished_at REAL NOT NULL,
  runs INTEGER NOT NULL DEFAULT 1,
  record TEXT NOT NULL,
  arrays BLOB NOT NULL
)"""
_WAIT_SECONDS = 60.0

#: types of what JSON has as it is
_SCALARS = {bool, int, float, str}

# What a record of the wrong structure raises as it is taken apart.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class ResultFile(AbstractContextManager, Generic[Result]):
    """Results of one kind by the id of their spec; a context manager.

    Several processes may read while one writes. Writing an id again replaces it. A
    subclass names the kind of its results; with a ``table`` of its own it shares a file
    with another.

    Args:
        path: of the SQLite file.
        create: make the file if it is absent.

    Raises:
        InvalidInput: the file is absent, is no store, or has a newer format.
    """

    kind: type[Result]
    table: ClassVar[str] = "results"

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            msg = f"there are no results at {self.path}; run an audit first"
            raise InvalidInput(msg)
        with self._explained():
            self._db = sqlite3.connect(self.path, timeout=_WAIT_SECONDS)
        try:
            with self._explained():
                self._open()
        except InvalidInput:
            self._db.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was put stays."""
        self._db.close()

    def put(self, result: Result) -> None:
        """Write a result; it is on disk when this returns.

        Raises:
            InvalidInput: the file cannot be written (disk full, folder removed).
        """
        record = {"spec": asdict(result.spec)}
        for field in fields(result):
            if field.name not in ("spec", "arrays"):
                record[field.name] = getattr(result, field.name)
        arrays = io.BytesIO()
        save: Any = np.savez_compressed  # its last parameter hides the type of **arrays
        save(arrays, **result.arrays)
        row = (result.spec.id, result.status, time.time(), dump_exact(record))
        with self._explained(), self._db:
            self._db.execute(
                f"INSERT INTO {self.table} (id, status, finished_at, record, arrays) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "status = excluded.status, finished_at = excluded.finished_at, "
                "record = excluded.record, arrays = excluded.arrays, runs = runs + 1",
                (*row, arrays.getvalue()),
            )

    def get(self, spec_id: str) -> Result | None:
        """Return a result, or None if the trial has not ended."""
        query = f"SELECT id, record, arrays FROM {self.table} WHERE id = ?"
        with self._explained():
            row = self._db.execute(query, (spec_id,)).fetchone()
            return None if row is None else self._load(*row)

    def ids(self) -> set[str]:
        """List the trials that have a result, failed ones included."""
        return set(self.runs())

    def finished(self) -> set[str]:
        """List the trials that need not run again: all but the failed ones.

        A failure may have been the machine's (memory, a full disk) or a defect that has
        been mended, so a resumed sweep tries it again.
        """
        query = f"SELECT id FROM {self.table} WHERE status != 'failed'"
        with self._explained():
            return set(chain.from_iterable(self._db.execute(query)))

    def runs(self) -> dict[str, int]:
        """Say for each id how often a result was put."""
        with self._explained():
            query = f"SELECT id, runs FROM {self.table}"
            return dict(self._db.execute(query).fetchall())

    def results(self) -> list[Result]:
        """Return every result, in the order in which the trials first ended."""
        query = f"SELECT id, record, arrays FROM {self.table} ORDER BY rowid"
        with self._explained():
            return [self._load(*row) for row in self._db.execute(query)]

    def _load(self, spec_id: str, text: str, blob: bytes) -> Result:
        record = load_exact(text)
        with np.load(io.BytesIO(blob), allow_pickle=False) as file:
            record["arrays"] = dict(file)
        result = restore(self.kind, record)
        unknown = sorted(record["spec"].keys() - vars(result.spec).keys())
        if unknown and result.spec.id != spec_id:
            # Without them the result would be taken for that of other settings.
            msg = (
                f"{self.path} holds a result of settings that this version of exhume "
                f"does not have ({', '.join(unknown)}); use the version that wrote it"
            )
            raise InvalidInput(msg)
        return result

    def _open(self) -> None:
        """Check that the file is a store, and make the table of a fresh one."""
        tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table'"
        application = self._number("PRAGMA application_id")
        if application != _APPLICATION and (application or self._number(tables)):
            msg = f"{self.path} is a database of another program; choose another folder"
            raise InvalidInput(msg)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        with self._db:
            # Two processes may open a fresh file at once: look again under the lock.
            self._db.execute("BEGIN IMMEDIATE")
            if not self._number(tables):
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            found = self._number("PRAGMA user_version")
            if found != _SCHEMA_VERSION:
                msg = (
                    f"{self.path} has format {found}, this version of exhume reads "
                    f"format {_SCHEMA_VERSION}; use the version that wrote it, or "
                    f"another folder"
                )
                raise InvalidInput(msg)
            self._db.execute(_TABLE.format(table=self.table))

    def _number(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            msg = f"{self.path} cannot be used ({error}); check the folder and the disk"
            raise InvalidInput(msg) from error
        except (sqlite3.DatabaseError, zipfile.BadZipFile, *_MALFORMED) as e:
            if isinstance(e, InvalidInput):
                raise
            msg = (
                f"{self.path} is not a store of results, or is damaged ({e}); move it "
                f"away, or choose another folder"
            )
            raise InvalidInput(msg) from e


class Store(ResultFile[TrialResult]):
    """The results of trials."""

    kind = TrialResult

    def _load(self, spec_id: str, text: str, blob: bytes) -> TrialResult:
        """Read a result, every object of whose spec has a name."""
        result = super()._load(spec_id, text, blob)
        for kind, options in result.spec.objects():
            if not isinstance(options.get("name"), str):
                msg = f"the {kind} of a trial has no name"
                raise ValueError(msg)
        return result


def restore(cls: type[T], record: dict[str, Any]) -> T:
    """Make a dataclass of what was stored of its fields, perhaps by another version.

    Lists become the tuples that they were, and dictionaries the dataclasses, as the
    annotations say. Fields that this version does not know are left out, and those that
    the version which wrote the record did not know have their defaults.

    Args:
        cls: a dataclass whose annotations can be evaluated when the program runs.
        record: values by field, as JSON has them.

    Raises:
        InvalidInput: a field without a default is missing.
    """
    given: dict[str, Any] = {}
    absent: list[str] = []
    kinds = _kinds(cls)
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name in record:
            given[field.name] = _read(kinds[field.name], record[field.name])
        elif field.default is MISSING and field.default_factory is MISSING:
            absent.append(field.name)
    if absent:
        msg = (
            f"a stored {cls.__name__} has no {' and no '.join(absent)}; use the "
            f"version of exhume that wrote it"
        )
        raise InvalidInput(msg)
    return cls(**given)


_kinds = lru_cache(get_type_hints)


def _read(kind: Any, value: Any) -> Any:
    """Make a value of a type of what JSON has; what may be of several is left as is."""
    if kind in _SCALARS:
        return value
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return restore(kind, value)  # type: ignore[arg-type]
    if origin is tuple:
        endless = inner[1:] == (...,)
        kinds = repeat(inner[0], len(value)) if endless else inner
        return tuple(map(_read, kinds, value))
    if origin is list:
        return [_read(inner[0], item) for item in value]
    if origin is dict:
        return {key: _read(inner[1], item) for key, item in value.items()}
    if origin in (Union, UnionType) and value is not None:
        known = set(inner) - {NoneType}
        return _read(known.pop(), value) if len(known) == 1 else value
    return value
