"""Part a data set into the private examples of a client and the public rest."""

from __future__ import annotations

import torch

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.source import DataSource

__all__ = ["split"]


def split(
    batch: Batch, source: DataSource, batch_size: int, key: int
) -> tuple[Batch, Batch | None]:
    """Choose private examples at random; the others, less any copies, are public.

    Args:
        batch: the whole data set, as ``source.load()`` returned it.
        source: says which examples may become private.
        batch_size: B, number of private examples.
        key: equal keys give equal splits; other arguments of an audit do not matter.

    Returns:
        the private batch, in random order, and the public one, in the order of the data
        set; the latter is None if nothing is left.

    Raises:
        InvalidInput: fewer than B examples may become private.
    """
    pool = source.private_pool(batch)
    if not 1 <= batch_size <= len(pool):
        msg = (
            f"batch_size is {batch_size}, but {len(pool)} examples of the data may be "
            f"private; choose between 1 and {len(pool)}"
        )
        raise InvalidInput(msg)
    order = torch.randperm(len(pool), generator=generator(key, "split"))
    chosen = torch.tensor(pool)[order[:batch_size]]
    private = batch.select(chosen)
    others = torch.ones(len(batch), dtype=torch.bool)
    others[chosen] = False
    # A copy of a private example among the public ones would hand over the answer.
    others &= ~batch.found_in(private)
    rest = others.nonzero().flatten()
    return private, batch.select(rest) if len(rest) else None
