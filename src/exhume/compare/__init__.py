"""Defenses at equal utility: calibrated by training, then attacked, beside bounds."""

from __future__ import annotations

# Bound here at once, not on first use: the module of the same name would hide it.
from exhume.compare.findings import Comparison
from exhume.compare.run import load, run
from exhume.compare.settings import CompareSettings

__all__ = ["CompareSettings", "Comparison", "load", "run"]
