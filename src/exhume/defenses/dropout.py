"""Dropout: train a random part of the hidden units, drawn anew from each key."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["DropUnits", "Dropout", "unit_factors"]

_ACTIVATIONS = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh),
    *(nn.LeakyReLU, nn.Mish, nn.PReLU, nn.ReLU, nn.RReLU, nn.SELU, nn.Sigmoid),
    *(nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh),
)
_BUFFER = "dropout_factors"


@formula(
    r"m_j = c\, \mathbf 1[u_j \ge \rho], \quad u_j \sim U(0, 1), \quad "
    r"c = 1/(1 - \rho) \ \text{or}\ 1",
    reference="Srivastava et al., JMLR 2014, sections 4 and 10 (inverted)",
)
def unit_factors(uniform: Tensor, ratio: float, *, rescale: bool) -> Tensor:
    """Return the factor of every unit: 0 if it is dropped, else c.

    Args:
        uniform: u, one number in [0, 1) per unit.
        ratio: ρ in [0, 1), the probability of being dropped.
        rescale: c = 1/(1 − ρ), which keeps the mean of every unit, else 1.
    """
    kept = (uniform >= ratio).to(uniform.dtype)
    return kept / (1 - ratio) if rescale else kept


@dataclass(frozen=True)
class DropUnits:
    """Forward hook that multiplies every unit of an activation by its factor.

    Attributes:
        name: of the module, for messages.
    """

    name: str

    def __call__(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        """Scale the output, shape [B, units, …]; units are its second dimension."""
        del args
        factors: Tensor = getattr(module, _BUFFER)
        if out.dim() < 2 or out.shape[1] > len(factors):
            msg = (
                f"the output of {self.name!r} has shape {list(out.shape)}; dropout "
                f"expects [B, units, …] with at most {len(factors)} units, the widest "
                f"layer of the model; leave it out by `layers`"
            )
            raise InvalidInput(msg)
        units = out.shape[1]
        shape = (units,) + (1,) * (out.dim() - 2)
        return out * factors[:units].to(out).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class Dropout(Defense):
    """Drop every hidden unit with probability ρ; the others may grow by 1/(1 − ρ).

    A unit is a neuron of a linear layer or a channel of a convolution, behind its
    activation. One mask holds for the whole batch. A dropped unit has zero gradient in
    its row, so a release shows the mask, and the attacker is told it: the factors are
    buffers of the model that he attacks. A law over masks is therefore a mixture of
    known ones; bounds hold for the mask of their key, and a mean over keys is the mean
    over the law.

    Fewer units tell less: for noise of one size an unbiased attack's error grows by
    1/√(1 − ρ) in wide networks. With ``rescale``, which every library does, the
    gradients of the units that stay grow by 1/(1 − ρ) as well, and the error *shrinks*
    by √(1 − ρ): beside noise of fixed size, usual dropout helps the attacker.

    The mask is drawn in ``calibrate``, and anew in every step of a training
    (``redraw``); all clients of a step share it.

    Attributes:
        ratio: ρ in [0, 1).
        rescale: multiply the units that stay by 1/(1 − ρ), as PyTorch does.
        layers: glob patterns of the names of modules behind which units are dropped;
            none for every activation module of PyTorch (functional ones have no name).

    Raises:
        InvalidInput: ``ratio`` is out of range; in ``calibrate``, a pattern matches no
            module, or there is no activation module.
    """

    stage: ClassVar[Stage] = Stage.MODEL
    bibtex: ClassVar[str] = """\
@article{srivastava2014dropout,
  title = {Dropout: A Simple Way to Prevent Neural Networks from Overfitting},
  author = {Srivastava, Nitish and Hinton, Geoffrey and Krizhevsky, Alex and Sutskever,
            Ilya and Salakhutdinov, Ruslan},
  journal = {Journal of Machine Learning Research},
  volume = {15},
  pages = {1929--1958},
  year = {2014},
}
@inproceedings{scheliga2023dropout,
  title = {Dropout Is {NOT} All You Need to Prevent Gradient Leakage},
  author = {Scheliga, Daniel and M{\\"a}der, Patrick and Seeland, Marco},
  booktitle = {AAAI Conference on Artificial Intelligence},
  pages = {9733--9741},
  year = {2023},
}
"""

    ratio: float
    rescale: bool = True
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            msg = f"ratio is {self.ratio}; expected a fraction in [0, 1), e.g. 0.5"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return the usual ratio."""
        return (cls(ratio=0.5),)

    def idle(self) -> Self:
        """Return a dropout that drops nothing."""
        return replace(self, ratio=0.0)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Draw the factors, as many per module as the widest layer has units."""
        del public
        if self.ratio == 0:
            return self._plan(task)
        widest = max(len(p) for p in task.model.parameters() if p.dim() > 0)
        units = dict.fromkeys(self._chosen(task.model), widest)
        return self._plan(task, arrays=self._factors(units, key))

    def redraw(self, plan: Plan, key: int) -> Plan:
        """Draw the factors of another step."""
        units = {name: len(factors) for name, factors in plan.arrays.items()}
        return replace(plan, arrays=self._factors(units, key))

    def _factors(self, units: Mapping[str, int], key: int) -> Tree:
        """Draw one factor per unit of every module."""
        factors = {}
        for name, count in units.items():
            source = generator(key, "dropout", name)
            uniform = torch.rand(count, generator=source, dtype=torch.float64)
            factors[name] = unit_factors(uniform, self.ratio, rescale=self.rescale)
        return factors

    def _chosen(self, model: nn.Module) -> list[str]:
        modules = dict(model.named_modules())
        if not self.layers:
            names = [n for n, m in modules.items() if isinstance(m, _ACTIVATIONS)]
            if not names:
                msg = (
                    "the model has no activation module behind which units could be "
                    "dropped (functional ones have no name); name modules in `layers`"
                )
                raise InvalidInput(msg)
            return names
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in modules):
                msg = (
                    f"the pattern {pattern!r} in `layers` matches no module; the model "
                    f"has {', '.join(filter(None, modules))}"
                )
                raise InvalidInput(msg)
        return [n for n in modules if any(fnmatchcase(n, p) for p in self.layers)]

    def transform_task(self, task: Task, plan: Plan) -> Task:
        """Put the factors into a copy of the model; names of parameters stay."""
        if not plan.arrays:
            return task
        # The task takes its own copy of weights and buffers; one is enough.
        tensors = (*task.model.parameters(), *task.model.buffers())
        model = copy.deepcopy(task.model, {id(t): t for t in tensors})
        for name, factors in plan.arrays.items():
            module = model.get_submodule(name)
            like = factors.to(task.device, task.dtype)
            module.register_buffer(_BUFFER, like, persistent=False)
            module.register_forward_hook(DropUnits(name))
        return task.with_model(model)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Leave the law as it is: the mask is part of the model."""
        del plan, observed
        return law

    @property
    def preserves_zeros(self) -> bool:
        """A finished update passes as it is."""
        return True
