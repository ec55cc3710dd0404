"""Facts an attacker may know, and the Problem that holds values or ``UNKNOWN``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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

__all__ = ["UNKNOWN", "Fact", "Problem", "Unknown", "or_unknown"]


class Fact(Enum):
    """One thing a threat model may give; the value says it in words."""

    WEIGHTS = "the model, its weights, loss and mode"
    LABELS = "the labels of the batch (sorted, not their order)"
    BATCH_SIZE = "the number of examples in the batch"
    BATCH_NORM_STATISTICS = "BatchNorm statistics of the client's batch"
    LOCAL_SCHEDULE = "what the client computes: one full-batch gradient, local steps, …"
    LEARNING_RATE = "the step size of the client's local training"
    BATCH_ORDER = "the order in which the client visits its examples"
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


def or_unknown(value: Any) -> Any:
    """Return a value, or ``UNKNOWN`` for None."""
    return UNKNOWN if value is None else value


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
    Fact.LEARNING_RATE: ("learning_rate", "use the threat model 'labels-known'"),
    Fact.BATCH_ORDER: ("batch_order", "use the threat model 'order-known'"),
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
        observation_model: F, without the two facts that follow; ``require`` returns it
            with them as far as they are known.
        learning_rate: η of the client; 1 where the gradient itself is shared.
        batch_order: key of the order of the client's examples; with it, ``targets``
            are in that order too.
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
    learning_rate: float | Unknown = UNKNOWN
    batch_order: int | Unknown = UNKNOWN
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
        if fact is not Fact.LOCAL_SCHEDULE:
            return value
        # F with step size and order, as far as they are known.
        rate, order = self.learning_rate, self.batch_order
        return value.informed(
            None if rate is UNKNOWN else rate, None if order is UNKNOWN else order
        )

    def as_gradient(self) -> Problem | None:
        """Return the problem of the gradient behind one plain step of known size.

        None if the client did not take exactly one such step.
        """
        model = self.observation_model
        if model is UNKNOWN or model.kind == "gradient":
            return self
        examples = None if self.batch_size is UNKNOWN else self.batch_size
        found = self.require(Fact.LOCAL_SCHEDULE).single_step(examples)
        if found is None:
            return None
        factor, model = found
        law = self.law if self.law is UNKNOWN else self.law.scaled(1 / factor)
        observed = {name: t / factor for name, t in self.observed.items()}
        return replace(self, observed=observed, observation_model=model, law=law)

    def restricted(self, facts: frozenset[Fact]) -> Problem:
        """Return the problem with every other fact replaced by ``UNKNOWN``."""
        hidden = {_FIELDS[f][0]: UNKNOWN for f in Fact if f not in facts}
        return replace(self, **hidden)  # type: ignore[arg-type]
