"""Rates of the two-layer theory: what an attack reaches and what none can beat."""

from __future__ import annotations

from exhume.bounds.rates.quantities import Quantities
from exhume.bounds.rates.table import RATES, Rate, rate

__all__ = ["RATES", "Quantities", "Rate", "rate"]
