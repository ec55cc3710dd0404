"""Facts an attacker may know, and the Problem that holds values or ``UNKNOWN``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Final, NoReturn

from torch import Tensor

from exhume.errors import MissingKnowledge
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.law import Law
from exhume.problem.observation import ObservationModel
from exhume.problem.prior import Density
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["UNKNOWN", "Fact", "Problem", "Unknown"]


class Fact(Enum):
    """One thing a threat model may give; the value says it in words."""

    WEIGHTS = "the model, its weights, loss and mode"
    LABELS = "the labels of the batch (sorted, not their order)"
    BATCH_SIZE = "the number of examples in the batch"
    BATCH_NORM_STATISTICS = "BatchNorm statistics of the client's batch"
    LOCAL_SCHEDULE = "what the client computes: one full-batch gradient, local steps, …"
    DEFENSE = "the defense, its strength and its public randomness"
    PRIOR = "a prior distribution of the data"
    PUBLIC_DATA = "public examples of the same kind"


class Unknown(Enum):
    """The type of the one value that stands for a fact that was not given."""

    UNKNOWN = "unknown"

    def __bool__(self) -> NoReturn:
        msg = "an unknown fact is neither true nor false; compare with `is UNKNOWN`"
        raise TypeError(msg)


UNKNOWN: Final = Unknown.UNKNOWN

#: fact → (field of Problem, ways to get it)
_FIELDS: dict[Fact, tuple[str, str]] = {
    Fact.WEIGHTS: ("task", "use any threat model except one without weights"),
    Fact.LABELS: (
        "targets",
        "use the threat model 'labels-known', or an attack that infers labels",
    ),
    Fact.BATCH_SIZE: ("batch_size", "use a threat model that gives it"),
    Fact.BATCH_NORM_STATISTICS: (
        "batch_statistics",
        "use the threat model 'statistics-known' and a model with BatchNorm",
    ),
    Fact.LOCAL_SCHEDULE: ("observation_model", "use the threat model 'labels-known'"),
    Fact.DEFENSE: ("law", "use a threat model that gives the defense"),
    Fact.PRIOR: ("prior", "name a prior in the audit, or pass one to the World"),
    Fact.PUBLIC_DATA: ("public", "give the World public examples"),
}


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything an attack gets: the observation, and facts or ``UNKNOWN``.

    Attributes:
        observed: the released tensors O by name.
        spec: shape, kind and range of one example.
        task: model with weights, loss and mode.
        targets: labels, sorted; [B] int64 or float.
        batch_size: B.
        batch_statistics: BatchNorm layer → (mean, variance) of the client's batch.
        observation_model: F.
        law: p(O | S) under the defense.
        prior: a fitted density of one example.
        public: public examples.
    """

    observed: Tree
    spec: EventSpec
    task: Task | Unknown = UNKNOWN
    targets: Tensor | Unknown = UNKNOWN
    batch_size: int | Unknown = UNKNOWN
    batch_statistics: Mapping[str, tuple[Tensor, Tensor]] | Unknown = UNKNOWN
    observation_model: ObservationModel | Unknown = UNKNOWN
    law: Law | Unknown = UNKNOWN
    prior: Density | Unknown = UNKNOWN
    public: Batch | Unknown = UNKNOWN

    def knows(self, fact: Fact) -> bool:
        """Say whether a fact is given."""
        return getattr(self, _FIELDS[fact][0]) is not UNKNOWN

    @property
    def law_is_used(self) -> bool:
        """Whether an attack that reads the declared mean and noise knows the defense.

        A variance that is a function of the private data takes one that evaluates it.
        """
        return self.law is not UNKNOWN and not self.law.cov_depends_on_data

    def require(self, fact: Fact) -> Any:
        """Return the value of a fact.

        Raises:
            MissingKnowledge: names the fact and the ways to get it.
        """
        name, ways = _FIELDS[fact]
        value = getattr(self, name)
        if value is UNKNOWN:
            msg = f"this attack needs {fact.value}, which is not given; {ways}"
            raise MissingKnowledge(msg)
        return value

    def restricted(self, facts: frozenset[Fact]) -> Problem:
        """Return the problem with every other fact replaced by ``UNKNOWN``."""
        hidden = {_FIELDS[f][0]: UNKNOWN for f in Fact if f not in facts}
        return replace(self, **hidden)  # type: ignore[arg-type]


assert {name for name, _ in _FIELDS.values()} == {
    f.name for f in fields(Problem)[2:]
}, "every fact is one field of Problem"
