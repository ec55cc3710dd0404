"""The forward model of a client that clips the gradient of each of its examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from exhume.defenses.clipping import clip_factor
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.task import Task
from exhume.problem.tree import Tree, scale

__all__ = ["ClipEach", "require_separate_examples", "sum_clipped"]

_BatchNorm = nn.modules.batchnorm._BatchNorm


@formula(
    r"\sum_i \min(1,\; C / \lVert g_i \rVert_2)\, g_i",
    reference="Abadi et al., CCS 2016, algorithm 1",
)
def sum_clipped(
    gradients: Mapping[str, Tensor], max_norm: float, names: tuple[str, ...]
) -> Tree:
    """Clip the gradient of each example to norm C, with one norm over its tensors.

    Args:
        gradients: g by name, example first: shape [B, *shape].
        max_norm: C > 0.
        names: tensors that enter the norm and are scaled; others are added up as they
            are.

    Returns:
        The sum over the examples, differentiable except where ‖g_i‖ = C.
    """
    # In double precision, where the squares of single ones neither over- nor underflow.
    parts = [
        torch.linalg.vector_norm(gradients[n].flatten(1), dim=1, dtype=torch.float64)
        for n in names
    ]
    norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    factors = clip_factor(norms, max_norm)
    return {
        name: torch.einsum("b,b...->...", factors.to(g), g)
        if name in names
        else g.sum(0)
        for name, g in gradients.items()
    }


@dataclass(frozen=True, eq=False)
class ClipEach(ObservationModel):
    """F(S) = (1/b) Σ_i clip(F({x_i}, {y_i})).

    Around a gradient this is the mean of clipped per-example gradients; several local
    steps around this clip in every step.

    Attributes:
        model: F of one example.
        max_norm: C.
        names: tensors under the norm.
        divisor: b; None divides by the size of the batch.
    """

    model: ObservationModel
    max_norm: float
    names: tuple[str, ...]
    divisor: int | None = None

    def forward(self, task: Task, candidate: Candidate) -> Tree:
        """Return F(S) (autograd route)."""
        return self._mean(candidate, partial(self.model.forward_func, task))

    def forward_func(self, task: Task, candidate: Candidate) -> Tree:
        """Return F(S) (``torch.func`` route)."""
        return self._mean(candidate, partial(self.model.forward_func, task))

    def forward_at(
        self, task: Task, candidate: Candidate, parameters: Mapping[str, Tensor]
    ) -> Tree:
        """Return F(S) at other weights (``torch.func`` route)."""

        def forward(one: Candidate) -> Tree:
            return self.model.forward_at(task, one, parameters)

        return self._mean(candidate, forward)

    def _mean(self, whole: Candidate, forward: Callable[[Candidate], Tree]) -> Tree:
        def single(inputs: Tensor, targets: Tensor) -> Tree:
            return forward(Candidate(inputs[None], targets[None], whole.nuisance))

        each = _over_examples(single, whole.inputs, whole.targets)
        total = sum_clipped(each, self.max_norm, self.names)
        return scale(1 / (self.divisor or len(whole.inputs)), total)


def _over_examples(
    function: Callable[[Tensor, Tensor], Tree], inputs: Tensor, targets: Tensor
) -> Tree:
    """Stack the trees of all examples along a new first dimension."""
    if len(inputs) > 1:
        # Some layers do not vectorise; one example at a time does.
        with suppress(RuntimeError):
            return torch.func.vmap(function)(inputs, targets)
    rows = [function(x, y) for x, y in zip(inputs, targets, strict=True)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def require_separate_examples(task: Task) -> None:
    """Raise if a layer mixes the examples of a batch.

    Raises:
        InvalidInput: a BatchNorm layer uses the statistics of the batch.
    """
    for name, module in task.model.named_modules():
        if isinstance(module, _BatchNorm) and (
            module.training or module.running_mean is None
        ):
            msg = (
                f"the BatchNorm layer {name!r} mixes the examples of a batch, so no "
                f"example has a gradient of its own to clip; use mode='eval', or "
                f"GroupNorm in its place"
            )
            raise InvalidInput(msg)
