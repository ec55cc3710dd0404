"""What every registered class has: a citation, and examples of itself."""

from __future__ import annotations

from typing import ClassVar, Self

__all__ = ["Member"]


class Member:
    """The base of every role; leaves are frozen dataclasses of numbers and names.

    Attributes:
        bibtex: the entries to cite, or "".
    """

    bibtex: ClassVar[str] = ""

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return small instances for tests and pages: each variant once.

        The conformance suites try every one of them. Override it where an option has
        no default, where the defaults are slow, or where a choice takes another way
        through the code.
        """
        return (cls(),)
