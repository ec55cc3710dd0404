"""A placebo: the release of other examples with the same labels."""

from __future__ import annotations

import torch

from exhume.errors import Unsuited
from exhume.keys import fold, generator
from exhume.problem.batch import Batch
from exhume.problem.release import Observation
from exhume.problem.world import World
from exhume.runs.records import SettingSpec
from exhume.trials.exact import Memory
from exhume.trials.world import calibrated, release_key

__all__ = ["decoys", "placebo_of"]

_Placebo = tuple[World, Observation]


_KEPT = Memory[_Placebo]()


def placebo_of(world: World, spec: SettingSpec) -> _Placebo:
    """Return another client with the same labels, and its release.

    Model, defenses, noise, labels and all that an attacker knows beside the release are
    those of the setting, less the few public examples that became private here. So an
    attack whose answer to this release comes as near to the private examples as its
    answer to theirs has read nothing from the release.

    Args:
        world: of the setting.
        spec: of the setting.

    Raises:
        Unsuited: there are not enough public examples with these labels.
    """
    found = _KEPT.get(spec.id)
    if found is None:
        batch, public = decoys(world, fold(spec.seed, "placebo"))
        other = World(world.task, batch, world.mechanism, public, world.prior)
        other = calibrated(other, spec)
        found = other, other.observe(release_key(spec))
        _KEPT.keep(spec.id, found, found[1].values.values())
    return found


def decoys(world: World, key: int) -> tuple[Batch, Batch | None]:
    """Draw public examples with the labels of the private ones, in their order.

    Targets that are no classes come with the examples drawn.

    Returns:
        the examples, and the public ones without them or any copy, if some are left.

    Raises:
        Unsuited: there are too few.
    """
    labels, public = world.batch.targets, world.public
    if public is None:
        msg = "a placebo needs public examples, and there are none"
        raise Unsuited(msg)
    order = torch.randperm(len(public), generator=generator(key)).tolist()
    classes = labels.dim() == 1 and not labels.is_floating_point()
    chosen: list[int] = []
    for label in labels:
        fits = (
            i
            for i in order
            if i not in chosen
            and (not classes or bool(public.targets[i] == label.to(public.targets)))
        )
        found = next(fits, None)
        if found is None:
            of = f" with the label {int(label)}" if classes else ""
            msg = f"a placebo needs other public examples{of}, and there are too few"
            raise Unsuited(msg)
        chosen.append(found)
    batch = public.select(torch.tensor(chosen))
    rest = (~public.found_in(batch)).nonzero().flatten()
    return batch, public.select(rest) if len(rest) else None
