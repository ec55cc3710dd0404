"""The two-layer theory, measured: how errors scale, beside the rates and the bound."""

from __future__ import annotations

# Bound here at once, not on first use: the module of the same name would hide it.
from exhume.theory.findings import Findings
from exhume.theory.run import load, run
from exhume.theory.settings import TheorySettings

__all__ = ["Findings", "TheorySettings", "load", "run"]
