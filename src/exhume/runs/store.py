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
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from exhume.errors import InvalidInput
from exhume.runs.records import TrialResult
from exhume.runs.restore import restore
from exhume.runs.strict_json import dump_exact, load_exact

__all__ = ["ResultFile", "Store"]

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

# What a record of the wrong structure raises as it is taken apart.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class ResultFile(Generic[Result]):
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
                f"INSERT INTO {self.table} (id, status, finished_at, record, arrays) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "status = excluded.status, finished_at = excluded.finished_at, "
                "record = excluded.record, arrays = excluded.arrays, runs = runs + 1",
                row,
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
            return {row[0] for row in self._db.execute(query)}

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

    def restore(self, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> Result:
        """Make a result of what was stored of it, by an earlier version perhaps.

        Args:
            record: its fields but the arrays, as JSON has them (lists for tuples).
            arrays: by name.

        Raises:
            InvalidInput: a field that has no default is missing.
        """
        return restore(self.kind, {**record, "arrays": arrays})

    def _load(self, spec_id: str, text: str, blob: bytes) -> Result:
        record = load_exact(text)
        with np.load(io.BytesIO(blob), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        result = self.restore(record, arrays)
        unknown = sorted(record["spec"].keys() - {f.name for f in fields(result.spec)})
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
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            found = self._pragma("user_version")
            if found != _SCHEMA_VERSION:
                msg = (
                    f"{self.path} has format {found}, this version of exhume reads "
                    f"format {_SCHEMA_VERSION}; use the version that wrote it, or "
                    f"another folder"
                )
                raise InvalidInput(msg)
            self._db.execute(_TABLE.format(table=self.table))

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
        except (sqlite3.DatabaseError, zipfile.BadZipFile, *_MALFORMED) as e:
            if isinstance(e, InvalidInput):
                raise
            msg = (
                f"{self.path} is not a store of results, or is damaged ({e}); move it "
                f"away, or choose another folder"
            )
            raise InvalidInput(msg) from e


def _dump_record(result: Any) -> str:
    kept = [f.name for f in fields(result) if f.name not in ("spec", "arrays")]
    record = {name: getattr(result, name) for name in kept}
    return dump_exact({"spec": asdict(result.spec), **record})


def _dump_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    save: Any = np.savez_compressed  # its last parameter hides the type of **arrays
    save(buffer, **arrays)
    return buffer.getvalue()


class Store(ResultFile[TrialResult]):
    """The results of trials."""

    kind = TrialResult

    def restore(
        self, record: dict[str, Any], arrays: dict[str, np.ndarray]
    ) -> TrialResult:
        """Make a result of what was stored of it; every object in it has a name."""
        result = super().restore(record, arrays)
        for kind, options in result.spec.objects():
            if not isinstance(options.get("name"), str):
                msg = f"the {kind} of a trial has no name"
                raise ValueError(msg)
        return result
