"""Published results as recipes: how to run them, and ours beside theirs."""

from __future__ import annotations

# Bound here at once, not on first use: the module of the same name would hide it.
from exhume.recipes.book import load, names
from exhume.recipes.outcome import Outcome
from exhume.recipes.recipe import Recipe
from exhume.recipes.run import run

__all__ = ["Outcome", "Recipe", "load", "names", "run"]
