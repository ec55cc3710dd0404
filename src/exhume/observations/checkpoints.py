"""Two checkpoints of one model: what changed between them, ready for an attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exhume.errors import Inconsistent, InvalidInput
from exhume.observations.shared import SharedObservation
from exhume.problem.consistency import check_weights
from exhume.problem.finding import Finding
from exhume.problem.observation import ObservationModel

__all__ = ["Difference", "difference"]

# Names that are listed of many.
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Difference:
    """What two checkpoints show.

    Attributes:
        shared: the change of the trainable weights, Θ_after − Θ_before.
        findings: what else changed: buffers, counters, layers that stood still.
    """

    shared: SharedObservation
    findings: tuple[Finding, ...]


def difference(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    model: nn.Module,
    observation: ObservationModel,
) -> Difference:
    """Compare two checkpoints of a model and describe the update between them.

    Tensors that did not change at all count as frozen. Buffers (running statistics,
    counters) are not part of the update; what they show is reported.

    Args:
        before: the state dict before the training.
        after: the state dict after it.
        model: the network; it is not changed.
        observation: what the client did, as far as it is known.

    Raises:
        Inconsistent: the checkpoints are of different architectures, or not of this
            model.
        InvalidInput: no trainable weight changed, or not all of them are finite.
    """
    _check_same(before, after)
    buffers = dict(model.named_buffers())
    own = {n: t for n, t in before.items() if n not in buffers}
    check_weights(own, model)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    moved = {n: after[n] - t for n, t in own.items() if n in trainable}
    values = {n: t for n, t in moved.items() if bool((t != 0).any())}
    if not values:
        msg = (
            "the two checkpoints hold the same weights, so nothing was learned between "
            "them; give the checkpoint before the training and the one after it"
        )
        raise InvalidInput(msg)
    frozen = tuple(n for n in own if n not in values)
    shared = SharedObservation(
        values=values,
        observation=observation,
        reference=dict(own),
        buffers={n: t for n, t in before.items() if n in buffers},
        frozen=frozen,
    )
    return Difference(
        shared, tuple(_findings(before, after, set(buffers), set(moved) & set(frozen)))
    )


def _check_same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Raise unless both have the same tensors of the same shapes."""
    problems = [
        *(f"tensor {n!r} is in the first alone" for n in before if n not in after),
        *(f"tensor {n!r} is in the second alone" for n in after if n not in before),
        *(
            f"tensor {n!r} has shape {list(t.shape)} before and "
            f"{list(after[n].shape)} after"
            for n, t in before.items()
            if n in after and t.shape != after[n].shape
        ),
    ]
    if problems:
        msg = (
            f"the two checkpoints are of different architectures ({len(problems)} "
            f"tensors differ), and a change of weights means something between two "
            f"states of one model only"
        )
        raise Inconsistent(msg, tuple(problems))


def _findings(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    buffers: set[str],
    still: set[str],
) -> Iterator[Finding]:
    changed = [n for n in before if n in buffers and not _equal(before[n], after[n])]
    counters = [n for n in changed if not before[n].is_floating_point()]
    statistics = [n for n in changed if before[n].is_floating_point()]
    if counters:
        steps = max(int((after[n] - before[n]).max()) for n in counters)
        yield Finding(
            "note",
            f"{_listed(counters)} grew by {steps}: the client took {steps} steps in "
            f"train mode",
        )
    if statistics:
        yield Finding(
            "warning",
            f"{_listed(statistics)} changed: running statistics are averages of the "
            f"private batches, released in clear beside the update; no defense of the "
            f"update covers them, and they are left out here",
        )
    if still:
        yield Finding(
            "note", f"{_listed(sorted(still))} did not change and count as frozen"
        )


def _equal(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right.to(left.dtype))


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    more = len(names) - _SHOWN
    return shown + (f" and {more} more" if more > 0 else "")
