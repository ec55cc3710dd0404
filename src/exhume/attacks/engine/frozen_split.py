"""A network as a frozen, public backbone g and a trained head h: f(x) = h(g(x))."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exhume.errors import Unsuited
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Problem
from exhume.problem.task import Task

__all__ = ["FrozenSplit", "frozen_split", "typical_embeddings", "typical_inputs"]

# Examples that stand for what the backbone may receive.
_TYPICAL = 64
_WANTED = (
    "set requires_grad to False on a backbone and write the model as "
    "nn.Sequential(backbone, head), or give it the attributes 'backbone' and 'head' "
    "with f(x) = head(backbone(x))"
)


@dataclass(frozen=True, eq=False)
class FrozenSplit:
    """The two halves of a task; the head's tensors keep their names.

    Attributes:
        task: the whole.
        backbone: g, whose tensors are all frozen.
        head: h, a Sequential of what comes after.
        shape: of one embedding z = g(x).
    """

    task: Task
    backbone: nn.Module
    head: nn.Sequential
    shape: tuple[int, ...]

    @property
    def dimension(self) -> int:
        """The number k of reals in one embedding."""
        return torch.Size(self.shape).numel()

    def embed(self, inputs: Tensor) -> Tensor:
        """Return z = g(x) of examples in natural units, flattened, shape [B, k]."""
        inputs = inputs.to(self.task.device, self.task.dtype)
        seen = inputs if self.task.normalise is None else self.task.normalise(inputs)
        with torch.no_grad():
            return self.backbone(seen).flatten(1)


def frozen_split(task: Task, spec: EventSpec) -> FrozenSplit:
    """Cut a model after its frozen part.

    Of an ``nn.Sequential`` the backbone is the longest prefix of children without a
    trainable tensor; any other module has to name its ``backbone`` and its ``head``.

    Args:
        task: model, with the parameters that are not shared frozen.
        spec: of one example.

    Raises:
        Unsuited: nothing is frozen in front of the trained part, the model cannot be
            cut there, or BatchNorm mixes the examples.
    """
    children = _children(task.model)
    frozen = 0
    while frozen < len(children) and not _trained(children[frozen][1]):
        frozen += 1
    backbone, head = children[:frozen], children[frozen:]
    if not any(True for _, child in backbone for _ in child.parameters()):
        msg = (
            f"the first layer with weights is trained, so there is no frozen backbone "
            f"whose outputs could be reconstructed; {_WANTED}"
        )
        raise Unsuited(msg)
    body = nn.Sequential(OrderedDict(backbone))
    _check_examples_apart(task)
    with torch.no_grad():
        probe = typical_inputs(spec, 2).to(task.device, task.dtype)
        seen = probe if task.normalise is None else task.normalise(probe)
        embedded = body(seen)
        returned = nn.Sequential(OrderedDict(head))(embedded)
        same = torch.allclose(returned, task.model(seen), rtol=1e-4, atol=1e-6)
    if not same:
        msg = (
            "the model is not its head applied to its backbone (something else is "
            f"computed between or beside them); {_WANTED}"
        )
        raise Unsuited(msg)
    shape = tuple(embedded.shape[1:])
    if len(shape) > 1:
        head = [(_free_name(head), nn.Unflatten(1, shape)), *head]
    return FrozenSplit(task, body, nn.Sequential(OrderedDict(head)), shape)


def typical_inputs(spec: EventSpec, count: int) -> Tensor:
    """Draw examples of all levels and contrasts, the same in every run.

    Args:
        spec: of one example; without a range they are standard normal.
        count: B.
    """
    source = generator(0, "typical-inputs")
    shape = (count, *spec.shape)
    noise = torch.randn(shape, generator=source, dtype=torch.float64)
    if spec.low is None or spec.peak is None:
        return noise
    each = (count, *(1 for _ in spec.shape))
    level, contrast = torch.rand(2, *each, generator=source, dtype=torch.float64)
    return spec.clamp(spec.low + spec.peak * (level + 0.5 * contrast * noise))


def typical_embeddings(split: FrozenSplit, problem: Problem) -> Tensor:
    """Return z of public examples, else of draws of the prior, else of any inputs.

    Args:
        split: of the task.
        problem: what the attacker sees.
    """
    spec, known = problem.spec, problem.public
    if isinstance(known, Batch):
        return split.embed(known.inputs)
    if problem.prior is not UNKNOWN and "sample" in problem.prior.supports:
        return split.embed(spec.clamp(problem.prior.sample(_TYPICAL, 0)))
    return split.embed(typical_inputs(spec, _TYPICAL))


def _children(model: nn.Module) -> list[tuple[str, nn.Module]]:
    if isinstance(model, nn.Sequential):
        return list(model.named_children())
    named = dict(model.named_children())
    if {"backbone", "head"} <= set(named):
        return [(name, named[name]) for name in ("backbone", "head")]
    msg = f"a {type(model).__name__} cannot be cut into backbone and head; {_WANTED}"
    raise Unsuited(msg)


def _trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _free_name(children: list[tuple[str, nn.Module]]) -> str:
    name = "unflatten"
    while name in dict(children):
        name += "_"
    return name


def _check_examples_apart(task: Task) -> None:
    batch_norm = nn.modules.batchnorm._BatchNorm
    mixed = any(isinstance(m, batch_norm) for m in task.model.modules())
    if task.mode == "train" and mixed:
        msg = (
            "BatchNorm in train mode mixes the examples, so that none has an embedding "
            "of its own; use mode = 'eval'"
        )
        raise Unsuited(msg)
