"""Observation models F: one file each."""

from typing import Any

from exhume.registry import class_named


def __getattr__(name: str) -> Any:
    return class_named("observation", name)
