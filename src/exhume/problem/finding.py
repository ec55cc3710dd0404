"""One sentence about an observation, and how serious it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """What a consistency check found.

    Attributes:
        severity: ``error`` (a contradiction), ``warning`` (unlikely, but possible) or
            ``note`` (what was checked).
        sentence: what is wrong, and what would explain or mend it.
    """

    severity: Literal["error", "warning", "note"]
    sentence: str
