"""The two problems behind a frozen backbone: of its embeddings, and of one image."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from exhume.attacks.engine.frozen_split import FrozenSplit, typical_embeddings
from exhume.formula import formula
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Problem
from exhume.problem.law import Law
from exhume.problem.task import Normalisation, Task

__all__ = ["HeadView", "head_view", "image_problem", "probe_task"]

_PROBE = "probe"
# With this target the slope of the probe is the embedding itself.
_TARGET = -0.5
# What embeddings may lie outside of the range of public ones, as a share of its width.
_MARGIN = 0.2


@dataclass(frozen=True, eq=False)
class HeadView:
    """The head alone, whose examples are embeddings in standard units.

    Attributes:
        problem: as an attack on the head sees it.
        shift: m of the units, shape [k].
        scale: s, shape [k], positive.
    """

    problem: Problem
    shift: Tensor
    scale: Tensor

    def embeddings(self, standard: Tensor) -> Tensor:
        """Return z = m + s u, shape [B, k]."""
        return self.shift + self.scale * standard.to(self.shift)

    def standard(self, embeddings: Tensor) -> Tensor:
        """Return u = (z − m) / s, shape [B, k]."""
        return (embeddings.to(self.shift) - self.shift) / self.scale


def head_view(problem: Problem, split: FrozenSplit) -> HeadView:
    """Return what a problem is to an attack on the head.

    Observation, labels, schedule and defense are those of the whole, because frozen
    tensors are not shared. A prior of images is none of embeddings and is dropped;
    public images become public embeddings, whose range is that of the unknowns.

    Args:
        problem: what the attacker sees.
        split: of its task.
    """
    typical = typical_embeddings(split, problem).double()
    public = problem.public
    if isinstance(public, Batch):
        shift, scale = _range(typical)
        spec = EventSpec.vector(split.dimension, 0.0, 1.0)
        rows = ((typical - shift) / scale).clamp(0, 1).to(split.task.dtype)
        public = Batch(rows, public.targets, spec)
    else:
        shift = typical.mean(dim=0)
        spread = float((typical - shift).square().mean().sqrt()) or 1.0
        scale = torch.full_like(shift, spread)
        spec = EventSpec.vector(split.dimension)
    units = Normalisation(tuple((-shift / scale).tolist()), tuple((1 / scale).tolist()))
    inner = replace(
        problem,
        spec=spec,
        task=Task(split.head, split.task.loss, split.task.mode, units),
        prior=UNKNOWN,
        public=public,
        batch_statistics=UNKNOWN,
    )
    return HeadView(inner, shift, scale)


def _range(typical: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least value and the width of the range of every coordinate, [k].

    Beyond what public embeddings reach there is a margin, except at a value that
    several of them attain exactly: that is where an activation ends, as ReLU does at 0.
    """
    low, high = typical.amin(dim=0), typical.amax(dim=0)
    width = high - low
    usual = float(width.median()) or 1.0
    margin = _MARGIN * width.clamp_min(_MARGIN * usual)
    low = low - torch.where((typical == low).sum(dim=0) > 1, 0, margin)
    high = high + torch.where((typical == high).sum(dim=0) > 1, 0, margin)
    return low, (high - low).clamp_min(_MARGIN * usual)


@formula(
    r"\nabla_w \left(\langle w, g(x) \rangle - y\right)^2 \big|_{w = 0} ="
    r" -2 y\, g(x) = g(x) \quad\text{for } y = -\tfrac12",
    reference="definition; a linear probe whose gradient is the embedding",
)
def probe_task(split: FrozenSplit) -> Task:
    """Return a task whose gradient at x, with the target −1/2, is g(x).

    Args:
        split: of the attacked task; its backbone stays frozen.
    """
    like = next(iter(split.task.parameters().values()))
    # Without drawing weights, which would touch the global random state.
    probe = nn.utils.skip_init(nn.Linear, split.dimension, 1, bias=False)
    probe.weight = nn.Parameter(like.new_zeros(1, split.dimension))
    model = nn.Sequential(
        OrderedDict(
            [
                ("backbone", split.backbone),
                ("flatten", nn.Flatten()),
                (_PROBE, probe),
            ]
        )
    )
    return Task(model, "mse", split.task.mode, split.task.normalise)


def image_problem(
    problem: Problem, task: Task, embedding: Tensor, error: float
) -> Problem:
    """Return the problem of the image behind one embedding, as one of a gradient.

    Args:
        problem: what the attacker sees; range, prior and public examples are its own.
        task: of :func:`probe_task`.
        embedding: z, shape [k].
        error: standard deviation of the errors of z that is to be believed, as a share
            of the root mean square of z; 0 for none.
    """
    z = embedding.to(task.device, task.dtype)[None]
    name = f"{_PROBE}.weight"
    law = Law()
    if error:
        law = Law(variance={name: error**2 * z.square().mean()})
    public = problem.public
    if isinstance(public, Batch):
        targets = torch.full((len(public),), _TARGET, dtype=public.inputs.dtype)
        public = Batch(public.inputs, targets, public.spec)
    return Problem(
        observed={name: z},
        spec=problem.spec,
        task=task,
        targets=torch.full((1,), _TARGET, dtype=task.dtype, device=task.device),
        batch_size=1,
        observation_model=Gradient(),
        learning_rate=1.0,
        batch_order=0,
        law=law,
        prior=problem.prior,
        public=public,
    )
