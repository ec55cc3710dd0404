"""The rows of the suites: every registered member, by the examples that it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from exhume import registry

__all__ = ["every", "examples"]


def examples(kind: str) -> list[Any]:
    """List every example of every registered member of a kind."""
    return [one for _, one in _named(kind)]


def every(kind: str, suits: Callable[[Any], bool] = lambda _: True) -> Any:
    """Run a test for every example that suits it; the argument is named as the kind."""
    rows = [pytest.param(one, id=name) for name, one in _named(kind) if suits(one)]
    return pytest.mark.parametrize(kind, rows)


def _named(kind: str) -> list[tuple[str, Any]]:
    found = []
    for name in registry.names(kind):
        made = registry.find(kind, name).examples()
        ids = [name] if len(made) == 1 else [f"{name}-{i}" for i in range(len(made))]
        found += zip(ids, made, strict=True)
    return found
