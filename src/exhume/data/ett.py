"""Electricity transformer temperatures (ETT): windows of a CSV file of series."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from exhume.data._files import check_limit, evenly_spaced, existing
from exhume.errors import InvalidInput
from exhume.problem.batch import Batch, checked_batch
from exhume.problem.event import EventSpec
from exhume.problem.source import DataSource

__all__ = ["Ett"]


@dataclass(frozen=True, kw_only=True)
class Ett(DataSource):
    """History and horizon of every window; each column is scaled to [0, 1].

    The inputs are the history [T, C], the targets the horizon, flattened to H·C private
    real numbers. Windows do not overlap unless ``stride`` says so, so that public
    windows hold nothing of private ones.

    Attributes:
        path: a CSV file whose first column is ``date``, relative to the working
            directory.
        columns: which series; empty takes all of them.
        history: steps T that the forecaster reads.
        horizon: steps H that it predicts.
        stride: steps from window to window; 0 for T + H.
        limit: keep at most this many windows, evenly spaced.
    """

    path: str
    columns: tuple[str, ...] = ("OT",)
    history: int = 96
    horizon: int = 24
    stride: int = 0
    limit: int | None = None

    licence: ClassVar[str] = "CC BY-ND 4.0 (ETT)"
    bibtex: ClassVar[str] = """\
@inproceedings{zhou2021informer,
  title = {Informer: Beyond efficient transformer for long sequence time-series
           forecasting},
  author = {Zhou, Haoyi and Zhang, Shanghang and Peng, Jieqi and Zhang, Shuai and
            Li, Jianxin and Xiong, Hui and Zhang, Wancai},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year = {2021}
}"""

    def __post_init__(self) -> None:
        check_limit(self.limit)
        for name, least in (("history", 1), ("horizon", 1), ("stride", 0)):
            if getattr(self, name) < least:
                msg = f"{name} is {getattr(self, name)}; expected at least {least}"
                raise InvalidInput(msg)

    @classmethod
    def examples(cls, folder: Path | None = None) -> tuple[Self, ...]:
        """Return a source of small windows; its file is two sines, hour by hour."""
        path = (folder or Path()) / "ett.csv"
        if folder is not None:
            start, lines = datetime(2016, 7, 1), ["date,HUFL,OT"]
            for hour in range(180):
                daily = math.sin(2 * math.pi * hour / 24)
                date = start + timedelta(hours=hour)
                lines.append(f"{date},{daily:.6f},{20 + 0.1 * hour + 5 * daily:.6f}")
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return (cls(path=str(path), history=10, horizon=2),)

    def load(self) -> Batch:
        """Read the file, checking columns, numbers and the order of time."""
        path = existing(self.path, "a CSV file of ETT, such as ETTh1.csv")
        values = _scaled(_read(path, self.columns))
        window = self.history + self.horizon
        starts = np.arange(0, len(values) - window + 1, self.stride or window)
        if len(starts) == 0:
            msg = (
                f"{path} has {len(values)} steps, fewer than the {window} of history "
                f"and horizon together; ask for shorter ones"
            )
            raise InvalidInput(msg)
        starts = starts[evenly_spaced(len(starts), self.limit)]
        windows = np.stack([values[s : s + window] for s in starts])
        past, future = windows[:, : self.history], windows[:, self.history :]
        spec = EventSpec.of("series", past.shape[1:], 0.0, 1.0)
        targets = future.reshape(len(future), -1)
        return checked_batch(past, targets, spec, str(path))


def _read(path: Path, columns: tuple[str, ...]) -> np.ndarray:
    """Return the chosen columns, shape [N, C]."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        msg = f"{path} cannot be read as CSV ({error}); get the official file"
        raise InvalidInput(msg) from error
    names = header[1:]
    missing = [name for name in columns if name not in names]
    if header[:1] != ["date"] or missing:
        what = f"no column {missing[0]!r}" if missing else "no first column 'date'"
        msg = f"{path} has {what}; it has: {', '.join(header) or 'nothing'}"
        raise InvalidInput(msg)
    _check_times(path, [row[0] if row else "" for row in rows])
    places = [header.index(name) for name in columns or names]
    values = np.empty((len(rows), len(places)))
    for i, row in enumerate(rows):
        for j, place in enumerate(places):
            values[i, j] = _number(path, i, header[place], row[place : place + 1])
    return values


def _number(path: Path, row: int, column: str, cell: list[str]) -> float:
    text = cell[0] if cell else ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        msg = (
            f"{path}, row {row + 2}, column {column!r}: {text!r} is no number; fill "
            f"or cut missing values first"
        )
        raise InvalidInput(msg)
    return value


def _check_times(path: Path, dates: list[str]) -> None:
    """Raise unless every step of time is as long as the first."""
    try:
        times = [datetime.fromisoformat(date) for date in dates]
    except ValueError as error:
        msg = f"{path}: {error}; dates are written as 2016-07-01 00:00:00"
        raise InvalidInput(msg) from error
    steps = [after - before for before, after in pairwise(times)]
    for row, step in enumerate(steps):
        if step != steps[0]:
            msg = (
                f"{path}, row {row + 3}: {step} after the row before, where the first "
                f"rows are {steps[0]} apart; windows need equal steps, so resample it"
            )
            raise InvalidInput(msg)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Scale every column to [0, 1]; a constant one becomes 0."""
    if len(values) == 0:
        return values
    low = values.min(axis=0)
    spread = values.max(axis=0) - low
    return (values - low) / np.where(spread > 0, spread, 1)
