"""Answers at once."""

from dataclasses import dataclass

from audit_lab._base import Guess


@dataclass(frozen=True, kw_only=True)
class Guesses(Guess):
    pass
