"""Comparison of floats that different kernels may round differently.

A processor, a batch size or a route (``vmap``, a loop, chunks) chooses the kernel, and
the kernel the order of a sum. What is left of a cancellation is then another number on
another machine, so an entry near zero has no relative accuracy of its own: errors are
measured by the size of the tensor that it stands in.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tree = Mapping[str, Tensor]


def assert_close_to_scale(
    actual: Tensor | Tree,
    expected: Tensor | Tree,
    share: float,
    *,
    scale: float | None = None,
) -> None:
    """Raise unless max|a − e| ≤ share · max|e|, with one maximum for a whole tree.

    Args:
        actual: a tensor, or tensors by name.
        expected: the same names, shapes and types.
        share: of the largest entry that an error may be; 1e-12 leaves float64 room for
            sums of thousands.
        scale: what errors are measured by, where it is not the largest entry.
    """
    found = actual if isinstance(actual, Mapping) else {"": actual}
    wanted = expected if isinstance(expected, Mapping) else {"": expected}
    assert found.keys() == wanted.keys()
    if scale is None:
        sizes = [float(t.detach().abs().max()) for t in wanted.values() if t.numel()]
        scale = max(sizes, default=0.0)
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name],
            value,
            rtol=0.0,
            atol=share * scale,
            msg=lambda text, name=name: f"{name}: {text}" if name else text,
        )
