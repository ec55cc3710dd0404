"""The subspaces and output units that are tried for one gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from exhume.attacks.two_layer.checks import Weights
from exhume.attacks.two_layer.contraction import channel_weights
from exhume.attacks.two_layer.subspace import Subspace, moment_subspace, row_subspace
from exhume.attacks.two_layer.view import TwoLayerView
from exhume.errors import InvalidInput

__all__ = ["SubspaceKind", "channels", "subspaces"]

SubspaceKind = Literal["auto", "svd", "moments"]

_CLEAR_GAP = 2.0  # singular gap above which moments cannot give a better subspace
_CHANNELS = 4  # output units that are tried, the largest first


def subspaces(
    view: TwoLayerView,
    batch_size: int | None,
    source: str,
    wanted: SubspaceKind,
    weights: Weights,
    key: int,
) -> Iterator[Subspace]:
    """Yield the spans to try: of rows, of moments, or both where rows are not clear.

    Args:
        view: the gradient, whitened.
        batch_size: B; None counts what stands out of the noise.
        source: ``hidden`` or ``output``, the gradient that is averaged.
        wanted: ``svd``, ``moments`` or ``auto``.
        weights: what the hidden weights look like.
        key: randomness of sketches.

    Raises:
        InvalidInput: the gradient does not have what is wanted, or B is missing.
    """
    if wanted not in ("auto", "svd", "moments"):
        msg = f"subspace is {wanted!r}; choose 'auto', 'svd' or 'moments'"
        raise InvalidInput(msg)
    first = None
    if view.hidden_gradient is not None and wanted != "moments":
        first = row_subspace(view, batch_size, key)
        if not float(first.values[0]) > 0:
            msg = (
                "the gradient of the hidden weights is zero (equal rows of the output "
                "layer make it vanish, for softmax residuals sum to 0); use "
                "source='output'"
            )
            raise InvalidInput(msg)
        yield first
        batch_size = first.basis.shape[1]
    elif wanted == "svd":
        msg = "subspace='svd' needs the gradient of the hidden weights; use 'moments'"
        raise InvalidInput(msg)
    if batch_size is None:
        msg = "without the hidden gradient the batch size must be given"
        raise InvalidInput(msg)
    if first is None or (wanted == "auto" and first.gap < _CLEAR_GAP):
        for channel in channels(view, source):
            gradient = view.output_gradient
            shown = None if gradient is None else gradient[channel]
            yield moment_subspace(
                weights.centred(view),
                channel_weights(view.output[channel], shown, source),
                batch_size,
                source=source,
                scale=weights.scale,
            )


def channels(view: TwoLayerView, source: str) -> list[int]:
    """Return the output units with the largest gradient, a few.

    Args:
        view: the gradient.
        source: ``hidden`` or ``output``, the gradient that is averaged.
    """
    gradient = view.output_gradient
    size = torch.ones(len(view.output), dtype=torch.float64)
    if gradient is not None:
        size = gradient.double().square().sum(dim=1).cpu()
    # Nothing of a unit passes to the hidden gradient where its weights are zero.
    passing = (view.output != 0).any(dim=1).cpu() if source == "hidden" else size > 0
    order = size.argsort(descending=True, stable=True)
    return order[passing[order]][:_CHANNELS].tolist()
