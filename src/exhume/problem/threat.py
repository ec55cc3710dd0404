"""Threat models: which facts the server has. ``reveal`` is the wall's only door."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exhume.errors import UnknownName
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import Observation
from exhume.problem.world import World
from exhume.registry import did_you_mean

__all__ = ["PRESETS", "ThreatModel"]


@dataclass(frozen=True)
class ThreatModel:
    """A named set of facts that the attacker has.

    ``ThreatModel("labels-known")`` looks up a preset; give ``facts`` for an own one.

    Attributes:
        name: preset name, or any name of an own threat model.
        facts: what is known; None looks the name up.
        letter: letter A–H of Carletti et al. (USENIX Security 2025), or "".
        description: the same in words, for the report.

    Raises:
        UnknownName: no preset has this name and no facts were given.
    """

    name: str
    facts: frozenset[Fact] | None = None
    letter: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if self.facts is not None:
            object.__setattr__(self, "facts", frozenset(self.facts))
            return
        if self.name not in PRESETS:
            raise UnknownName(did_you_mean("threat model", self.name, sorted(PRESETS)))
        facts, letter, description = PRESETS[self.name]
        object.__setattr__(self, "facts", facts)
        object.__setattr__(self, "letter", letter)
        object.__setattr__(self, "description", description)

    @property
    def known(self) -> frozenset[Fact]:
        """The facts, never None."""
        assert self.facts is not None
        return self.facts

    def without(self, *facts: Fact) -> ThreatModel:
        """Return a weaker threat model that lacks some facts."""
        names = ", ".join(f.name.lower().replace("_", "-") for f in facts)
        return replace(
            self,
            name=f"{self.name} without {names}",
            facts=self.known - set(facts),
            description=f"{self.description} Without {names}.",
        )

    def reveal(self, world: World, observation: Observation) -> Problem:
        """Build what the attacker sees: the only function that sees both sides.

        Args:
            world: the truth.
            observation: one run of the world's mechanism.
        """
        law = world.mechanism.law(observation.plans, observation.values)
        values = {
            Fact.WEIGHTS: world.task,
            Fact.LABELS: _sorted_targets(world.batch.targets),
            Fact.BATCH_SIZE: len(world.batch),
            Fact.BATCH_NORM_STATISTICS: observation.batch_statistics or UNKNOWN,
            Fact.LOCAL_SCHEDULE: world.mechanism.observation,
            Fact.DEFENSE: law,
            Fact.PRIOR: UNKNOWN if world.prior is None else world.prior,
            Fact.PUBLIC_DATA: UNKNOWN if world.public is None else world.public,
        }
        return Problem(
            observed={n: t.detach().clone() for n, t in observation.values.items()},
            spec=world.batch.spec,
            task=values[Fact.WEIGHTS],
            targets=values[Fact.LABELS],
            batch_size=values[Fact.BATCH_SIZE],
            batch_statistics=values[Fact.BATCH_NORM_STATISTICS],
            observation_model=values[Fact.LOCAL_SCHEDULE],
            law=values[Fact.DEFENSE],
            prior=values[Fact.PRIOR],
            public=values[Fact.PUBLIC_DATA],
        ).restricted(self.known)


def _sorted_targets(targets: Tensor) -> Tensor:
    """Sort labels, so that their order says nothing about the order of the batch."""
    if targets.dim() == 1:
        return targets.sort().values
    rows = targets.reshape(len(targets), -1).tolist()
    order = sorted(range(len(rows)), key=rows.__getitem__)
    return targets[torch.tensor(order)]


_EAVESDROPPER = frozenset({Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE})
_SERVER = _EAVESDROPPER | {Fact.DEFENSE}
_DATA = _SERVER | {Fact.PRIOR, Fact.PUBLIC_DATA}

#: name → (facts, letter of the SoK, in words)
PRESETS: dict[str, tuple[frozenset[Fact], str, str]] = {
    "eavesdropper": (
        _EAVESDROPPER,
        "A/B",
        "Sees the update and the model; assumes one full-batch gradient and guesses "
        "the batch size right. Knows nothing of labels, defenses or data beyond the "
        "range of an example.",
    ),
    "parameter-aware": (
        _SERVER,
        "C",
        "Also knows the training details: what the client computes, the batch size and "
        "the defense with its strength.",
    ),
    "data-enhanced": (
        _DATA,
        "D",
        "Also has public examples of the same kind and a prior fitted to them.",
    ),
    "statistics-known": (
        _DATA | {Fact.LABELS, Fact.BATCH_NORM_STATISTICS},
        "E",
        "Also knows the labels and, if the model has BatchNorm, the statistics of the "
        "client's batch at every such layer.",
    ),
    "labels-known": (
        _DATA | {Fact.LABELS},
        "D + labels",
        "A well-informed passive server: model, schedule, batch size, defense with its "
        "strength, public examples and the labels (which are easily inferred). The "
        "default: a defense that holds here holds against less.",
    ),
    "defense-unknown": (
        (_DATA | {Fact.LABELS}) - {Fact.DEFENSE},
        "D + labels",
        "As labels-known, but unaware of the defense: a non-adaptive attacker, shown "
        "to see how much of a defense is obscurity.",
    ),
}
