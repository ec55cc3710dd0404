"""What tables of recovered images share: their columns, and the rows one asks for."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
from torch import Tensor

from exhume.trials.memorised import LEVELS

__all__ = ["counts", "percentages", "rows_asked"]


def counts(correlations: Tensor) -> str:
    """Return how many images correlate above .9 / .8 / .7."""
    return " / ".join(f"{int((correlations > t).sum()):2d}" for t in LEVELS)


def percentages(correlations: Tensor, digits: int = 2) -> str:
    """Return which share of images does, in per cent."""
    shares = [100 * float((correlations > t).double().mean()) for t in LEVELS]
    return " / ".join(f"{share:.{digits}f}" for share in shares)


def rows_asked(doc: str | None, rows: Iterable[str]) -> argparse.Namespace:
    """Read --mnist, --row (all of them if none is given) and --seed; use one thread."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    parser.add_argument("--mnist", required=True, help="folder of the IDX files")
    parser.add_argument("--row", action="append", choices=list(rows), help="repeatable")
    parser.add_argument("--seed", type=int, default=0, help="0: the first images")
    arguments = parser.parse_args()
    arguments.row = arguments.row or list(rows)
    torch.set_num_threads(1)
    return arguments
