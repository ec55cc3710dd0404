"""The rows of the suites: every registered member, by the examples that it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from exhume import registry

__all__ = ["every"]


def every(kind: str, suits: Callable[[Any], bool] = lambda _: True) -> Any:
    """Run a test for every example that suits it; the argument is named as the kind."""
    rows = []
    for name in registry.names(kind):
        examples = registry.find(kind, name).examples()
        rows += [
            pytest.param(one, id=name if len(examples) == 1 else f"{name}-{i}")
            for i, one in enumerate(examples)
            if suits(one)
        ]
    return pytest.mark.parametrize(kind, rows)
