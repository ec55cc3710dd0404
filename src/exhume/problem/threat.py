"""Threat models: which facts the server has. ``reveal`` is the wall's only door."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exhume.errors import UnknownName
from exhume.problem.knowledge import UNKNOWN, Fact, Problem, or_unknown
from exhume.problem.observation import Candidate
from exhume.problem.presets import PRESETS
from exhume.problem.release import Observation
from exhume.problem.world import World
from exhume.registry import did_you_mean

__all__ = ["PRESETS", "ThreatModel", "sorted_targets", "target_order"]


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
        preset = PRESETS[self.name]
        object.__setattr__(self, "facts", frozenset(Fact[f] for f in preset.facts))
        object.__setattr__(self, "letter", preset.letter)
        object.__setattr__(self, "description", preset.description)

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
        mechanism = world.mechanism
        induced = mechanism.induced(world.task, observation.plans, observation.values)
        # Whoever does not know the defense takes the client for an undefended one.
        defended = Fact.DEFENSE in self.known
        model = induced.model if defended else mechanism.observation
        statistics = {
            layer: (mean.clone(), variance.clone())  # others face the same observation
            for layer, (mean, variance) in observation.batch_statistics.items()
        }
        ordered = Fact.BATCH_ORDER in self.known
        return Problem(
            observed={n: t.detach().clone() for n, t in observation.values.items()},
            spec=world.batch.spec,
            task=model.task_seen(induced.task, observation.values),
            targets=world.batch.targets.clone() if ordered else _without_order(world),
            batch_size=len(world.batch),
            batch_statistics=statistics or UNKNOWN,
            observation_model=model.informed(None, None),
            learning_rate=or_unknown(model.known_rate),
            batch_order=or_unknown(model.known_order),
            law=induced.law,
            prior=or_unknown(world.prior),
            public=or_unknown(world.public),
        ).restricted(self.known)


def _without_order(world: World) -> Tensor:
    """Return the labels, sorted; behind an aggregation those of each client."""
    aggregation = world.mechanism.aggregation
    if aggregation is None:
        return sorted_targets(world.batch.targets)
    # Sorted over all clients they would no longer be those of the parts that the
    # forward model of the aggregation cuts.
    parts = aggregation.split(Candidate(world.batch.inputs, world.batch.targets))
    return torch.cat([sorted_targets(part.targets) for part in parts])


def sorted_targets(targets: Tensor) -> Tensor:
    """Sort labels, so that their order says nothing about the order of the batch."""
    return targets[target_order(targets)]


def target_order(targets: Tensor) -> Tensor:
    """Return the indices that sort targets, class by class or number by number, [B]."""
    if targets.dim() == 1:
        return targets.sort().indices
    rows = targets.reshape(len(targets), -1).tolist()
    return torch.tensor(sorted(range(len(rows)), key=rows.__getitem__))
