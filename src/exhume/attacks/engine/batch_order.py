"""Search the order of local steps by exchanging examples between those of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from exhume.keys import generator

__all__ = ["exchanged"]

# An exchange must lower the objective by more than rounding does.
_GAIN = 1e-6


def exchanged(
    value: Callable[[Sequence[Tensor]], float],
    batches: Sequence[Tensor],
    epochs: int,
    budget: int,
) -> list[Tensor]:
    """Return batches for which exchanges of two examples no longer help, or may not.

    Epoch by epoch every pair of examples of different steps is exchanged once, in a
    fixed random order, and stays so if that lowers the value.

    Args:
        value: of a list of batches, to be lowered.
        batches: the examples of every step, T index tensors; as many in every epoch.
        epochs: E.
        budget: evaluations at most, divided evenly among the epochs.
    """
    current = [batch.clone() for batch in batches]
    least = value(current)
    steps = len(current) // epochs
    for epoch in range(epochs):
        own = range(epoch * steps, (epoch + 1) * steps)
        pairs = [
            (s, i, t, j)
            for s in own
            for t in own
            if s < t
            for i in range(len(current[s]))
            for j in range(len(current[t]))
        ]
        random = torch.randperm(len(pairs), generator=generator(0, "exchange", epoch))
        for index in random[: budget // epochs].tolist():
            s, i, t, j = pairs[index]
            changed = list(current)
            changed[s], changed[t] = current[s].clone(), current[t].clone()
            changed[s][i], changed[t][j] = current[t][j], current[s][i]
            found = value(changed)
            if found < least * (1 - _GAIN):
                current, least = changed, found
    return current
