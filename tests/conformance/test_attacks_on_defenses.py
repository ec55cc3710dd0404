"""Every attack on gradients against every defense: an answer, or a sentence."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from exhume.errors import ExhumeError
from exhume.problem.defense import Aggregation, Defense
from exhume.problem.mechanism import Mechanism
from exhume.problem.reconstruction import Outcome
from exhume.problem.world import World

from .attacks import NAMES, brief, events_of, setting, shared_with
from .rows import every
from .toys import reveal

ON_GRADIENTS = [name for name in NAMES if shared_with(name)["name"] == "gradient"]


@cache
def undefended(name: str, labels: tuple[int, ...]) -> World:
    return setting(name, events_of(name)[0], labels)


def behind(defense: Defense, name: str, labels: tuple[int, ...]) -> World:
    """Put a defense into the small world of an attack."""
    world = undefended(name, labels)
    return replace(world, mechanism=Mechanism(world.mechanism.observation, (defense,)))


@pytest.mark.parametrize("name", ON_GRADIENTS)
@every("defense")
def test_no_attack_breaks_on_a_defense(name, defense):
    alone = defense.designed_for in (None, 1) and not isinstance(defense, Aggregation)
    trials = {
        "labels-known": (3, 1),
        "defense-unknown": (3, 1),
        "parameter-aware": (3,) if alone else (3, 1),
    }
    for threat, labels in trials.items():
        world = behind(defense, name, labels)
        problem = reveal(world, threat)
        try:
            guess = brief(name)(problem, key=0)
        except ExhumeError:  # a sentence of ours, as an audit prints it
            assert threat != "labels-known"
            continue
        assert isinstance(guess.outcome, Outcome)
        assert guess.inputs.shape == world.batch.inputs.shape
        assert bool(guess.inputs.isfinite().all())
