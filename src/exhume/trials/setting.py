"""One client and one release: made once for all attacks and bounds that face it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from exhume.errors import ExhumeError, InvalidInput
from exhume.problem.release import Observation
from exhume.problem.world import World
from exhume.runs.records import SettingFacts, SettingSpec
from exhume.trials.exact import exact_of, is_trained
from exhume.trials.facts import collect_facts, collect_privacy, released_in_clear
from exhume.trials.memory import Memory
from exhume.trials.world import calibrated, make_world, release_key

__all__ = ["Release", "Setting", "make_setting", "prepare"]


@dataclass(frozen=True, eq=False)
class Release:
    """One run of a client's mechanism, and what the evaluator measured of it.

    Attributes:
        observation: what the run produced.
        facts: numbers about the setting, see :func:`collect_facts`.
        privacy: what differential privacy promises, see :func:`collect_privacy`.
        in_clear: tensors that no defense touched.
    """

    observation: Observation
    facts: SettingFacts
    privacy: dict[str, Any]
    in_clear: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Setting:
    """One client, one release: the truth and what was shared of it.

    It stays with the evaluator; :meth:`ThreatModel.reveal` alone takes from it what an
    attacker gets.

    Attributes:
        spec: as plain data.
        world: the truth, with the plans of the release.
        release: what was shared, and its measures.
    """

    spec: SettingSpec
    world: World
    release: Release


def _bytes(release: Release) -> int:
    observation = release.observation
    plans = [plan.arrays.values() for plan in observation.plans]
    tensors = chain(
        observation.values.values(),
        *observation.batch_statistics.values(),
        *plans,
    )
    return sum(tensor.nbytes for tensor in tensors)


_KEPT = Memory[Release](_bytes)


def make_setting(spec: SettingSpec, folder: Path | None = None) -> Setting:
    """Make a setting, or take the release that this process made of it before.

    Args:
        spec: as plain data.
        folder: of the run, which keeps the results of trainings; None trains here.

    Raises:
        ExhumeError: the client cannot compute, defend or release its update.
    """
    world, key = make_world(spec), release_key(spec)
    release = _KEPT.get(spec.id)
    if release is not None:
        return Setting(spec, world.with_plans(key, release.observation.plans), release)
    world = calibrated(world, spec)
    exact = exact_of(world, spec, folder)
    observation = world.observe(key, exact=exact.clients)
    release = Release(
        observation,
        collect_facts(world, observation, exact.whole),
        collect_privacy(world, observation),
        released_in_clear(observation),
    )
    _KEPT.keep(spec.id, release)
    return Setting(spec, world, release)


def prepare(spec: SettingSpec) -> None:
    """Build a setting and observe it once, to find errors early.

    A training to the end is left to its own job: here the model predicts once.

    Raises:
        ExhumeError: what would make every trial of this setting fail.
    """
    world = make_world(spec)
    try:
        world = calibrated(world, spec)
        if is_trained(spec):
            inputs = world.batch.inputs.to(world.task.dtype)
            with torch.no_grad():
                world.task.predict(inputs, world.task.parameters())
        else:
            exact = exact_of(world, spec)
            world.observe(release_key(spec), exact=exact.clients)
    except (ValueError, RuntimeError, IndexError) as error:  # how torch says "no fit"
        if isinstance(error, ExhumeError):
            raise
        msg = (
            f"the gradient of the private batch cannot be computed ({error}); check "
            f"that the model, the loss, the mode and the data fit together"
        )
        raise InvalidInput(msg) from error
