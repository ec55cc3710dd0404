"""PRECODE: a variational bottleneck in the model, whose latent noise stays private."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.task import Task
from exhume.problem.tree import Tree, detached

__all__ = ["LatentSample", "Precode", "WithLatentNoise", "reparametrise"]

_HIDDEN = (
    "the update depends on latent noise inside of the model that only the client "
    "knows, so given the examples alone it is a mixture"
)


@formula(
    r"z = \mu + e^{\frac12 \log \sigma^2} \odot \epsilon, \quad "
    r"\epsilon \sim \mathcal N(0, I)",
    reference="Kingma and Welling, ICLR 2014; Scheliga et al., WACV 2022, section 3",
)
def reparametrise(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Return a latent sample, differentiable in mean and log-variance.

    Args:
        mean: μ, shape [B, k].
        log_variance: log σ², shape [B, k].
        noise: ε, shape [B, k], or [1, k] for all examples.
    """
    return mean + (0.5 * log_variance).exp() * noise


class LatentSample(nn.Module):
    """Sample z from [μ, log σ²] with given noise; zeros give the mean path.

    Attributes:
        noise: ε, a buffer of shape [B, k], or [1, k].
    """

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.register_buffer("noise", noise)

    def forward(self, statistics: Tensor) -> Tensor:
        """Map [B, 2k] to [B, k]."""
        noise = self.get_buffer("noise")
        if statistics.dim() != 2 or len(noise) not in (1, len(statistics)):
            msg = (
                f"the latent noise of PRECODE was drawn for {len(noise)} examples, and "
                f"the bottleneck reads shape {list(statistics.shape)}; it needs one "
                f"vector per example, and the whole batch at once"
            )
            raise InvalidInput(msg)
        mean, log_variance = statistics.chunk(2, dim=-1)
        return reparametrise(mean, log_variance, noise)


@dataclass(frozen=True, eq=False)
class WithLatentNoise(ObservationModel):
    """F(S, ε): the forward model with the latent noise as a nuisance variable.

    Attributes:
        model: F at given noise; it must be defined at moving weights (``forward_at``).
        buffer: name of ε in the network, and among the nuisance variables.
        latent: k.
    """

    model: ObservationModel
    buffer: str
    latent: int

    def hidden(self, batch_size: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of ε, [B, k]."""
        return {self.buffer: (batch_size, self.latent)}

    def forward(self, task: Task, candidate: Candidate) -> Tree:
        """Return F(S, ε), at the noise of the task if the candidate has none."""
        if self.buffer not in candidate.nuisance:
            return self.model.forward(task, candidate)
        return self._at_own_weights(task, candidate)

    def forward_func(self, task: Task, candidate: Candidate) -> Tree:
        """Return F(S, ε) (``torch.func`` route)."""
        if self.buffer not in candidate.nuisance:
            return self.model.forward_func(task, candidate)
        return self._at_own_weights(task, candidate)

    def forward_at(
        self, task: Task, candidate: Candidate, parameters: Mapping[str, Tensor]
    ) -> Tree:
        """Return F(S, ε) at other weights."""
        if self.buffer not in candidate.nuisance:
            return self.model.forward_at(task, candidate, parameters)
        # The network is called with ε like with a weight; its own slope is dropped.
        noise = {self.buffer: candidate.nuisance[self.buffer]}
        values = self.model.forward_at(task, candidate, {**parameters, **noise})
        return {name: values[name] for name in parameters}

    def _at_own_weights(self, task: Task, candidate: Candidate) -> Tree:
        theta = detached(task.parameters())
        return self.forward_at(task, candidate, theta)


@dataclass(frozen=True, kw_only=True)
class Precode(Defense):
    """Train with a variational bottleneck before the last linear layer.

    The layer ``fc`` (say) becomes four: ``fc.encoder`` (n → 2k, mean and log-variance),
    ``fc.sample``, ``fc.decoder`` (k → n) and ``fc.head``, the layer itself. So the
    update has six tensors where it had two: ``fc.encoder.weight``, ``.bias``,
    ``fc.decoder.weight``, ``.bias``, ``fc.head.weight``, ``.bias``. The weights of the
    new layers are public, drawn in ``calibrate`` from PyTorch's default law. The client
    draws one ε per example and keeps it; the public plan has ε = 0, the mean path.

    Two deviations from the paper: its loss has a term β·KL(q(z | x) ‖ N(0, I)), left
    out here because losses are functions of outputs and targets alone; and σ is
    exp(½ log σ²).

    Nothing but ε is hidden, and ε is small beside the update: it is k more unknowns per
    example, for 2kn and more equations of the bottleneck alone. The forward model has
    it as a nuisance variable (``WithLatentNoise``), so that an attack that solves for x
    and ε together recovers the input as if there were no defense; the published break,
    to leave the bottleneck and what lies behind it out of the matching (Scheliga et
    al., 2022; Balunović et al., ICLR 2022), is not needed. Attacks without nuisance
    variables take ε = 0. Bounds refuse. The buffer ``sample.noise`` of the client's
    network holds ε: who sends buffers along gives it away.

    Attributes:
        latent: k ≥ 1.
        layer: name of the linear layer to put it before; "" takes the last one.

    Raises:
        InvalidInput: ``latent`` is not positive, or there is no such linear layer.
    """

    stage: ClassVar[Stage] = Stage.MODEL
    bibtex: ClassVar[str] = """\
@inproceedings{scheliga2022precode,
  title = {{PRECODE} -- A Generic Model Extension to Prevent Deep Gradient Leakage},
  author = {Scheliga, Daniel and M{\\"a}der, Patrick and Seeland, Marco},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision},
  pages = {3605--3614},
  year = {2022},
}
@article{scheliga2022combining,
  title = {Combining Stochastic Defenses to Resist Gradient Inversion: An Ablation
           Study},
  author = {Scheliga, Daniel and M{\\"a}der, Patrick and Seeland, Marco},
  journal = {arXiv preprint arXiv:2208.04767},
  year = {2022},
}
"""

    latent: int = 256
    layer: str = ""

    def __post_init__(self) -> None:
        if self.latent < 1:
            msg = f"latent is {self.latent}; expected at least 1 latent dimension"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a narrow latent layer."""
        return (cls(latent=3),)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Draw the weights of the new layers; they are public, as all weights are."""
        del public
        width = self._target(task.model)[1].in_features
        source = generator(key, "precode")
        drawn = {
            "encoder.weight": _uniform((2 * self.latent, width), width, source),
            "encoder.bias": _uniform((2 * self.latent,), width, source),
            "decoder.weight": _uniform((width, self.latent), self.latent, source),
            "decoder.bias": _uniform((width,), self.latent, source),
        }
        arrays = {**drawn, "noise": torch.zeros(1, self.latent, dtype=torch.float64)}
        name = self._target(task.model)[0]
        plan = self._plan(self._extended(task, arrays))
        names = list(plan.shapes)
        first = next(i for i, n in enumerate(names) if n.startswith(_inside(name)))
        return replace(plan, covers=tuple(names[first:]), arrays=arrays)

    def _target(self, model: nn.Module) -> tuple[str, nn.Linear]:
        """Return the layer that the bottleneck is put before, and its name."""
        linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        if not linear or (self.layer and self.layer not in linear):
            msg = (
                f"PRECODE is put before a linear layer; {self.layer or 'the last'!r} "
                f"was asked for, and the model has "
                f"{', '.join(map(repr, linear)) or 'none'}"
            )
            raise InvalidInput(msg)
        name = self.layer or list(linear)[-1]
        return name, linear[name]

    def transform_task(self, task: Task, plan: Plan) -> Task:
        """Return the task with the bottleneck, at the noise of the plan."""
        return self._extended(task, plan.arrays)

    def _extended(self, task: Task, arrays: Mapping[str, Tensor]) -> Task:
        model = copy.deepcopy(task.model)
        name, head = self._target(model)
        block = self._block(head, arrays)
        if not name:
            return task.with_model(block)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, block)
        return task.with_model(model)

    def _block(self, head: nn.Linear, arrays: Mapping[str, Tensor]) -> nn.Sequential:
        like = {"dtype": head.weight.dtype, "device": head.weight.device}
        layers = OrderedDict[str, nn.Module](
            encoder=_linear(arrays["encoder.weight"], arrays["encoder.bias"], like),
            sample=LatentSample(arrays["noise"].to(**like)),
            decoder=_linear(arrays["decoder.weight"], arrays["decoder.bias"], like),
            head=head,
        )
        return nn.Sequential(layers)

    def personalise(
        self,
        task: Task,
        model: ObservationModel,
        candidate: Candidate,
        plan: Plan,
        key: int,
    ) -> Plan:
        """Draw ε, one row per private example."""
        del task, model
        source = generator(key, "latent noise")
        shape = (len(candidate.inputs), self.latent)
        noise = torch.randn(shape, generator=source, dtype=torch.float64)
        return replace(plan, arrays={**plan.arrays, "noise": noise})

    def transform_model(self, model: ObservationModel, plan: Plan) -> ObservationModel:
        """Let the latent noise be an unknown of the forward model."""
        buffer = plan.covers[0].removesuffix("encoder.weight") + "sample.noise"
        return WithLatentNoise(model, buffer, self.latent)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Leave what is given the latent noise; say that it is not given."""
        del plan, observed
        return replace(law, not_gaussian=law.not_gaussian or _HIDDEN)

    @property
    def preserves_zeros(self) -> bool:
        """The finished update passes untouched."""
        return True


def _linear(weight: Tensor, bias: Tensor, like: Mapping[str, Any]) -> nn.Linear:
    """Make a layer with given weights, without a draw from global randomness."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], **like)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def _inside(layer: str) -> str:
    """Return how the names of the tensors inside of a layer begin."""
    return f"{layer}." if layer else ""


def _uniform(shape: tuple[int, ...], fan_in: int, source: torch.Generator) -> Tensor:
    """Draw PyTorch's default law of a linear layer, U(±n^{-1/2})."""
    drawn = torch.rand(shape, generator=source, dtype=torch.float64)
    return (2 * drawn - 1) / fan_in**0.5
