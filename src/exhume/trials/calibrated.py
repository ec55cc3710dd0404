"""Calibrated plans that one process keeps between trials: equal settings, equal plans.

All attacks on one mechanism and its bounds need the same plans, and an optimal defense
takes longer to calibrate than most attacks to run. Plans are a pure function of the
setting, so that a hit cannot change a result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from exhume.problem.defense import Plan

__all__ = ["PlanMemory", "Plans"]

#: plans by key, as a world has them
Plans = Mapping[int, tuple[Plan, ...]]

_LIMIT = 2**28


class PlanMemory:
    """Plans by setting, the latest ones within a limit.

    Args:
        limit: bytes of tensors that are kept at most.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, tuple[Plans, int]] = OrderedDict()

    def of(self, setting: str) -> Plans:
        """Return what is kept of a setting."""
        return self._kept.get(setting, ({}, 0))[0]

    def keep(self, setting: str, plans: Plans) -> None:
        """Keep the plans of a setting; the settings longest unused give way."""
        self._kept[setting] = dict(plans), _bytes(plans)
        self._kept.move_to_end(setting)
        while sum(held for _, held in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)


def _bytes(plans: Plans) -> int:
    return sum(
        t.nbytes for stack in plans.values() for p in stack for t in p.arrays.values()
    )
