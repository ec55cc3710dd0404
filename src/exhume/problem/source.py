"""What makes real examples, networks for them, and relaxations of a problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from exhume.errors import InvalidInput
from exhume.member import Member
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import Problem
from exhume.problem.relaxation import Relaxation, Units

__all__ = ["DataSource", "ModelSource", "RelaxationSource"]


class DataSource(Member, ABC):
    """Loads real examples; leaves are frozen dataclasses of paths and sizes.

    Attributes:
        licence: of the data, for the report.
    """

    licence: ClassVar[str] = ""

    @classmethod
    def examples(cls, folder: Path | None = None) -> tuple[Self, ...]:
        """Return small instances for tests and pages: each variant once.

        Args:
            folder: empty; what reads files writes small ones there. Without it nothing
                is written, and such a source need not load.
        """
        del folder
        return (cls(),)

    @abstractmethod
    def load(self) -> Batch:
        """Return every example, in a fixed order, in natural units, float32."""

    def private_pool(self, batch: Batch) -> list[int]:
        """List the examples that may become private ones; all, unless overridden.

        Args:
            batch: what :meth:`load` returned.
        """
        return list(range(len(batch)))


class ModelSource(Member, ABC):
    """Builds a network; leaves are frozen dataclasses of sizes."""

    @abstractmethod
    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return a network with fresh weights.

        Args:
            spec: shape of an example.
            classes: number K of outputs.
            key: randomness of the weights; nothing seeds globally.
        """

    @classmethod
    def of_function(cls, name: str, function: Callable[[], Any]) -> type[ModelSource]:
        """Return the source of what a function of the user's own makes.

        Args:
            name: ``module:function``.
            function: without arguments; returns a network.
        """
        attributes = {"function_name": name, "function": staticmethod(function)}
        return type("FunctionSource", (_FunctionSource,), attributes)


@dataclass(frozen=True, kw_only=True)
class _FunctionSource(ModelSource):
    """A function that returns a network."""

    function_name: ClassVar[str]
    function: ClassVar[Callable[[], Any]]

    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return what the function makes; PyTorch's layers draw by the key.

        Raises:
            InvalidInput: it is no network.
        """
        del spec, classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)  # noqa: TID251 - forgotten when the fork ends
            made = self.function()
        if not isinstance(made, nn.Module):
            msg = (
                f"the model {self.function_name!r} returned {type(made).__name__}; "
                f"expected a torch.nn.Module"
            )
            raise InvalidInput(msg)
        return made


class RelaxationSource(Member, ABC):
    """Makes a relaxation x = g(z); leaves are frozen dataclasses of options.

    Attributes:
        bibtex: the entry to cite, or "".
    """

    bibtex: ClassVar[str] = ""

    @abstractmethod
    def fit(self, problem: Problem, units: Units) -> Relaxation:
        """Return the relaxation of a problem.

        Args:
            problem: what the attacker sees, with the facts that the attack declares.
            units: in which the steps of the attack are of ordinary size; a relaxation
                whose variable is not an example in disguise has units of its own.

        Raises:
            MissingKnowledge: the problem lacks a fact that the relaxation needs.
            Unsuited: there is no such relaxation of this problem.
        """
