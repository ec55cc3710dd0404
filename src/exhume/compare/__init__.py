"""Defenses at equal utility: calibrated by training, then attacked, beside bounds."""

from __future__ import annotations

# Bound here at once, not on first use: the module of the same name would hide it.
from exhume.compare.run import Comparison, load, run
from exhume.compare.settings import CompareSettings

__all__ = ["CompareSettings", "Comparison", "load", "run"]
