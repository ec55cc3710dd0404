"""Results on disk: one SQLite file, one row per trial, written at once or not at all.

A row is JSON beside the arrays of an ``.npz``; nothing is ever unpickled. A result is
durable when ``put`` returns, so a sweep that is killed loses only what was running.
"""

from __future__ import annotations

import io
import json
import math
import sqlite3
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np

from exhume.errors import InvalidInput
from exhume.runs.records import TrialResult, TrialSpec

__all__ = ["ResultFile", "Store"]

#: a dataclass with ``spec`` (which has an ``id``), ``status`` and ``arrays``
Result = TypeVar("Result", bound=Any)

#: "exhm": tells a store from any other SQLite file
_APPLICATION = 0x6578686D
_SCHEMA_VERSION = 1
_TABLE = """
CREATE TABLE results (
  id TEXT PRIMARY KEY,
  status TEXT NOT NULL,
  finished_at REAL NOT NULL,
  runs INTEGER NOT NULL DEFAULT 1,
  record TEXT NOT NULL,
  arrays BLOB NOT NULL
)"""
_WAIT_SECONDS = 60.0


class ResultFile(ABC, Generic[Result]):
    """Results by the id of their spec; a context manager.

    Several processes may read while one writes. Writing an id again replaces it.

    Args:
        path: of the SQLite file.
        create: make the file if it is absent.

    Raises:
        InvalidInput: the file is absent, is no store, or has a newer format.
    """

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

    def __enter__(self) -> Self:
        return self

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
        row = (
            result.spec.id,
            result.status,
            time.time(),
            _dump_record(result),
            _dump_arrays(result.arrays),
        )
        with self._explained(), self._db:
            self._db.execute(
                "INSERT INTO results (id, status, finished_at, record, arrays) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "status = excluded.status, finished_at = excluded.finished_at, "
                "record = excluded.record, arrays = excluded.arrays, runs = runs + 1",
                row,
            )

    def get(self, spec_id: str) -> Result | None:
        """Return a result, or None if the trial has not ended."""
        query = "SELECT record, arrays FROM results WHERE id = ?"
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
        query = "SELECT id FROM results WHERE status != 'failed'"
        with self._explained():
            return {row[0] for row in self._db.execute(query)}

    def runs(self) -> dict[str, int]:
        """Say for each id how often a result was put."""
        with self._explained():
            return dict(self._db.execute("SELECT id, runs FROM results").fetchall())

    def results(self) -> list[Result]:
        """Return every result, in the order in which the trials first ended."""
        query = "SELECT record, arrays FROM results ORDER BY rowid"
        with self._explained():
            return [self._load(*row) for row in self._db.execute(query)]

    @abstractmethod
    def restore(self, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> Result:
        """Make a result of the fields that were stored of it.

        Args:
            record: its fields but the arrays, as JSON has them (lists for tuples).
            arrays: by name.
        """

    def _load(self, text: str, blob: bytes) -> Result:
        record = json.loads(text, object_hook=_decode)
        with np.load(io.BytesIO(blob), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return self.restore(record, arrays)

    def _open(self) -> None:
        """Check that the file is a store, and make the table of a fresh one."""
        if self._pragma("application_id") not in (0, _APPLICATION) or (
            self._pragma("application_id") == 0 and self._tables()
        ):
            msg = f"{self.path} is a database of another program; choose another folder"
            raise InvalidInput(msg)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        with self._db:
            # Two processes may open a fresh file at once: look again under the lock.
            self._db.execute("BEGIN IMMEDIATE")
            if not self._tables():
                self._db.execute(_TABLE)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        found = self._pragma("user_version")
        if found != _SCHEMA_VERSION:
            msg = (
                f"{self.path} has format {found}, this version of exhume reads format "
                f"{_SCHEMA_VERSION}; use the version that wrote it, or another folder"
            )
            raise InvalidInput(msg)

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def _tables(self) -> list[str]:
        rows = self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return [row[0] for row in rows]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            msg = f"{self.path} cannot be used ({error}); check the folder and the disk"
            raise InvalidInput(msg) from error
        except (sqlite3.DatabaseError, ValueError, KeyError, zipfile.BadZipFile) as e:
            if isinstance(e, InvalidInput):
                raise
            msg = (
                f"{self.path} is not a store of results, or is damaged ({e}); move it "
                f"away, or choose another folder"
            )
            raise InvalidInput(msg) from e


def _dump_record(result: Any) -> str:
    record = {
        f.name: getattr(result, f.name)
        for f in fields(result)
        if f.name not in ("spec", "arrays")
    }
    return json.dumps(_encode({"spec": asdict(result.spec), **record}), allow_nan=False)


def _encode(value: Any) -> Any:
    """Write what JSON lacks: ``{"$float": "inf"}`` for numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: dict[str, Any]) -> Any:
    return float(value["$float"]) if value.keys() == {"$float"} else value


def _dump_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    save: Any = np.savez_compressed  # its last parameter hides the type of **arrays
    save(buffer, **arrays)
    return buffer.getvalue()


class Store(ResultFile[TrialResult]):
    """The results of trials."""

    def restore(
        self, record: dict[str, Any], arrays: dict[str, np.ndarray]
    ) -> TrialResult:
        """Make a result of what was stored of it."""
        given = record.pop("spec")
        spec = TrialSpec(**{**given, "defenses": tuple(given["defenses"])})
        for name in ("notes", "released_in_clear"):
            record[name] = tuple(record[name])
        record["trace"] = tuple(tuple(row) for row in record["trace"])
        if record["outcome"] is not None:
            record["outcome"] = tuple(record["outcome"])
        return TrialResult(spec=spec, arrays=arrays, **record)
