"""The units in which data are centred and have a spread of about one."""

from __future__ import annotations

from exhume.problem.event import EventSpec
from exhume.problem.relaxation import Units
from exhume.problem.task import Task

__all__ = ["standard_units"]


def standard_units(task: Task, spec: EventSpec) -> Units:
    """Return the units in which data are centred and have a spread of about one.

    These are the units in which papers run: the model's own normalisation where it has
    one; else the centre and a quarter of the range (for images in [0, 1] mean ½ and
    standard deviation ¼, close to natural images); else the data's own.
    """
    like = next(iter(task.parameters().values())).detach()
    shape = (1, -1) + (1,) * (len(spec.shape) - 1)
    if task.normalise is not None:
        mean, std = task.normalise.mean, task.normalise.std
        return Units(
            like.new_tensor(mean).reshape(shape), like.new_tensor(std).reshape(shape)
        )
    if spec.low is None or spec.high is None:
        return Units()
    return Units(
        like.new_tensor((spec.low + spec.high) / 2),
        like.new_tensor((spec.high - spec.low) / 4),
    )
