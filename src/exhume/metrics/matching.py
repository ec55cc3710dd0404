"""Optimal assignment between estimates and truths: batches are unordered."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.problem.event import EventSpec

__all__ = ["UNMATCHED", "align_labels", "match"]

#: in the result of :func:`match`: this truth has no estimate
UNMATCHED = -1


def match(guess: Tensor, truth: Tensor, spec: EventSpec) -> Tensor:
    """Assign estimates to truths so that the total distance is least.

    The distance is that of the event, a squared error unless it says otherwise. The
    assignment reads inputs only. With B̂ < B estimates, B − B̂ truths stay without
    one (:data:`UNMATCHED`) and have no score; with B̂ > B, the surplus is ignored.

    Args:
        guess: x̂, shape [B̂, *event].
        truth: x, shape [B, *event].
        spec: kind of the examples, whose distance is used.

    Returns:
        shape [B], int64: for each truth the index of its estimate, or −1.

    Raises:
        InvalidInput: the events have different shapes, or an estimate is not finite.

    References:
        H. W. Kuhn, The Hungarian method for the assignment problem, 1955.
    """
    from scipy.optimize import linear_sum_assignment

    if guess.shape[1:] != truth.shape[1:]:
        msg = (
            f"estimates have shape {list(guess.shape[1:])} per example, the truth "
            f"{list(truth.shape[1:])}; they must agree"
        )
        raise InvalidInput(msg)
    if not bool(torch.isfinite(guess).all()):
        msg = "the estimates contain NaN or infinity; a diverged attack has no scores"
        raise InvalidInput(msg)
    cost = spec.distance(guess, truth).cpu().numpy()
    estimates, truths = linear_sum_assignment(cost)
    assignment = torch.full((len(truth),), UNMATCHED, dtype=torch.int64)
    assignment[torch.from_numpy(truths)] = torch.from_numpy(estimates)
    return assignment


def align_labels(guess: Tensor, truth: Tensor) -> Tensor:
    """Reorder estimated classes so that as many as possible agree with the truth.

    Those that agree where they stand stay there; every estimate is used once.

    Args:
        guess: ŷ, class indices [B].
        truth: y, class indices [B].

    Returns:
        ŷ in the best order, shape [B].
    """
    wrong = guess != truth
    rest, wanted = guess[wrong].tolist(), truth[wrong].tolist()
    aligned: list[int | None] = []
    for label in wanted:
        aligned.append(label if label in rest else None)
        if label in rest:
            rest.remove(label)
    filled = [rest.pop() if label is None else label for label in aligned]
    result = guess.clone()
    result[wrong] = result.new_tensor(filled)
    return result
