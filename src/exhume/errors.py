"""What goes wrong, said in one sentence: what came, what was expected, what to do."""

from __future__ import annotations

import reprlib

__all__ = [
    "ExhumeError",
    "Inconsistent",
    "InvalidInput",
    "MissingKnowledge",
    "NotImported",
    "UnknownName",
    "Unsuited",
    "shown",
]

_REPR = reprlib.Repr()
_REPR.maxlevel = 4
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = 20
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 200


def shown(value: object) -> str:
    """Return the repr of a value that came, cut where it is long or deep."""
    return _REPR.repr(value)


class ExhumeError(Exception):
    """Base of every error that a user can mend; the command line exits with 2."""


class InvalidInput(ExhumeError, ValueError):
    """A value is out of its domain: wrong shape, range, type, or not finite."""


class Inconsistent(InvalidInput):
    """Two inputs contradict each other: an update and a model, say.

    Attributes:
        problems: every contradiction found, one sentence each.
    """

    def __init__(self, summary: str, problems: tuple[str, ...] = ()) -> None:
        self.summary = summary
        self.problems = problems
        super().__init__("\n  - ".join((summary, *problems)))

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        return type(self), (self.summary, self.problems)


class UnknownName(ExhumeError, LookupError):
    """A name is not in the registry; the message offers the nearest ones."""


class NotImported(UnknownName):
    """A name stands for a module, where no module may be imported for it."""


class MissingKnowledge(ExhumeError):
    """The threat model does not give the attack a fact that it needs."""


class Unsuited(ExhumeError):
    """The attack is for other kinds of examples or observations than those given."""
