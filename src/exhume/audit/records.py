"""Has moved to ``exhume.runs.records``; this name is kept for one release."""

from __future__ import annotations

from exhume.moved import door

__getattr__ = door("exhume.audit.records", "exhume.runs.records")
