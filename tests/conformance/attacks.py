"""The small worlds of the attacks, and what each attack answers there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from exhume import registry
from exhume.config import build
from exhume.problem.attack import Attack
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import Problem
from exhume.problem.reconstruction import Reconstruction
from exhume.problem.world import World

from .rows import examples
from .toys import homogeneous, make_world, reveal, smooth_mlp

NAMES = registry.names("attack")
CLASSES = 5


def class_of(name: str) -> type[Attack]:
    return registry.find("attack", name)


def brief(name: str) -> Attack:
    return class_of(name).examples()[0]


def thorough(name: str) -> Attack:
    return class_of(name).examples()[-1]


def events_of(name: str) -> list[EventSpec]:
    """List the kinds of examples that an attack is for."""
    wanted = class_of(name).events
    return [e for e in examples("event") if not wanted or e.kind in wanted]


def shared_with(name: str) -> dict[str, Any]:
    """Return what is shared in the small world of an attack, as options."""
    own, inverts = class_of(name).small_world, class_of(name).inverts
    given = own.get(
        "observation", "gradient" if "gradient" in inverts else min(inverts)
    )
    return dict(given) if isinstance(given, Mapping) else {"name": given}


def setting(name: str, event: EventSpec, labels: tuple[int, ...], **other) -> World:
    """Make the small world that an attack suits, with ``other`` fields of a world."""
    own, observation = class_of(name).small_world, shared_with(name)
    if "model" in own:
        model = build("model", own["model"]).build(event, CLASSES, key=1)
    else:
        # Trained weights tell their data in homogeneous networks.
        model = (homogeneous if observation["name"] == "weights" else smooth_mlp)(event)
    made = make_world(
        event,
        labels=labels,
        model=model,
        observation=build("observation", observation),
        defenses=tuple(build("defense", d) for d in own.get("defenses", ())),
        key=1,
        **other,
    )
    if own.get("prior") is None:
        return made
    prior = build("prior", own["prior"]).fit(made.public, made.task)
    return replace(made, prior=prior)


@cache
def world(name: str, event: EventSpec | None = None, labels=(3,)) -> World:
    return setting(name, event or events_of(name)[0], labels)


@cache
def problem(
    name: str, event: EventSpec | None = None, threat="labels-known", labels=(3,)
) -> Problem:
    return reveal(world(name, event, labels), threat)


@cache
def answer(
    name: str, event: EventSpec | None = None, threat="labels-known", labels=(3,)
) -> Reconstruction:
    """Return what the brief run answers."""
    return brief(name)(problem(name, event, threat, labels), key=5)
