"""Randomness without global state: integer keys folded from names.

A key is a 63-bit integer. ``fold(seed, "attack", 3)`` gives the same key in every
process and on every machine, so a trial has the same bits wherever it runs.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["fold", "generator"]


def fold(key: int, *names: str | int) -> int:
    """Derive a new key from a key and names.

    Args:
        key: any integer.
        *names: what the new key is for, e.g. ``"attack", "restart", 2``.

    Returns:
        An integer in [0, 2⁶³), equal for equal arguments in every process.

    >>> fold(0, "attack", 1) == fold(0, "attack", 1) != fold(0, "attack", 2)
    True
    """
    text = "\x1f".join([str(int(key)), *(f"{type(n).__name__}:{n}" for n in names)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(
    key: int, *names: str | int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Make a local ``torch.Generator`` seeded with ``fold(key, *names)``."""
    import torch

    return torch.Generator(device=device).manual_seed(fold(key, *names))
