"""Defenses: one file each; the file's name is the registered name."""

from typing import Any

from exhume.registry import class_named


def __getattr__(name: str) -> Any:
    return class_named("defense", name)
