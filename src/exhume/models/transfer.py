"""A frozen backbone and a trained head: what transfer learning trains and shares."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import nn

from exhume.config import build
from exhume.errors import Inconsistent, InvalidInput
from exhume.files import read_header
from exhume.keys import fold
from exhume.models._init import require_classes
from exhume.problem.event import EventSpec
from exhume.problem.source import ModelSource

__all__ = ["Transfer"]


@dataclass(frozen=True, kw_only=True)
class Transfer(ModelSource):
    """f(x) = h(g(x)): a public backbone g with frozen weights, and a head h.

    The backbone is another model without its last linear layer. Only the head is
    trained, so only its tensors, named ``head.…``, are shared, attacked and defended.

    Attributes:
        backbone: name and options of the model that becomes the backbone.
        head: name and options of the model that reads its outputs, a vector.
        weights: safetensors file with the backbone's tensors by their own names, and
            others that do not matter, relative to the working directory; "" for random
            weights.
        seed: of random weights; None takes another one for every network.

    Raises:
        InvalidInput: the model of the backbone has no weights before its last linear
            layer, or the file does not fit it.
    """

    backbone: Mapping[str, Any] = field(
        default_factory=lambda: {"name": "mlp", "hidden": [256], "activation": "tanh"}
    )
    head: Mapping[str, Any] = field(default_factory=lambda: {"name": "homogeneous-mlp"})
    weights: str = ""
    seed: int | None = None

    bibtex: ClassVar[str] = """\
@misc{oz2024reconstructing,
  title = {Reconstructing Training Data From Real World Models Trained with Transfer
           Learning},
  author = {Oz, Yakir and Yehudai, Gilad and Vardi, Gal and Antebi, Itai and
            Irani, Michal and Haim, Niv},
  howpublished = {arXiv:2407.15845},
  year = {2024}
}"""

    def __post_init__(self) -> None:
        for name in ("backbone", "head"):
            options = dict(getattr(self, name))
            object.__setattr__(self, name, options)
            build("model", options)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a narrow head on a narrow backbone."""
        return (
            cls(
                backbone={"name": "mlp", "hidden": (12,), "activation": "tanh"},
                head={"name": "mlp", "hidden": (8,)},
            ),
        )

    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return the network: a frozen backbone, and a head with fresh weights."""
        require_classes(classes)
        random = fold(key if self.seed is None else self.seed, "backbone")
        backbone = self._backbone(spec, random)
        with torch.no_grad():
            features = backbone(torch.zeros(2, *spec.shape)).shape[1]
        source: ModelSource = build("model", self.head)
        head = source.build(EventSpec.vector(features), classes, key)
        return nn.Sequential(OrderedDict(backbone=backbone, head=head))

    def _backbone(self, spec: EventSpec, key: int) -> nn.Module:
        """Return g, frozen, in evaluation mode; its outputs are flat."""
        net: nn.Module = build("model", self.backbone).build(spec, 1, key)
        linear = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)]
        net.set_submodule(linear[-1], nn.Identity())
        if not any(True for _ in net.parameters()):
            msg = (
                f"the backbone {self.backbone['name']!r} has no weights before its "
                f"last linear layer, which is cut off; give it a hidden layer"
            )
            raise InvalidInput(msg)
        if self.weights:
            _load(net, self.weights)
        body = nn.Sequential(OrderedDict(features=net, flatten=nn.Flatten()))
        return body.requires_grad_(requires_grad=False).eval()


def _load(net: nn.Module, path: str) -> None:
    """Copy the tensors of a file to a network, all of which must be in it."""
    read_header(path)
    from safetensors.torch import load_file

    given = load_file(path)
    problems = []
    for name, own in net.state_dict().items():
        if name not in given:
            problems.append(f"tensor {name!r} is missing")
        elif given[name].shape != own.shape:
            problems.append(
                f"tensor {name!r} has shape {list(given[name].shape)}, expected "
                f"{list(own.shape)}"
            )
    if problems:
        msg = f"the weights in {path!r} are not those of the backbone"
        raise Inconsistent(msg, tuple(problems))
    net.load_state_dict(given, strict=False)
