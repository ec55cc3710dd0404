"""Quantisation: release signs, or entries rounded to a coarse grid per tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from exhume.defenses._rounding import (
    SIGN_ERROR,
    RoundToGrid,
    SignTimesScale,
    SoftSign,
    grid_step,
    round_up_or_down,
    rounding_variance,
)
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["Quantisation"]

_JUMPS = (
    "rounding makes p(O | S) jump where an entry meets the next level of the grid and "
    "constant in between, so it has no Fisher information"
)
_SIGNS_JUMP = (
    "taking signs makes p(O | S) jump where an entry changes sign, so it has no Fisher "
    "information"
)
_TWO_POINTS = "stochastic rounding has two outcomes per entry, so it is not Gaussian"
_NOISE_ROUNDED = "noise is added before rounding, so the release is not Gaussian"

# Public examples whose gradients show the typical magnitudes.
_PUBLIC = 16


_SIGN = """\
@inproceedings{bernstein2018signsgd,
  title = {{signSGD}: Compressed Optimisation for Non-Convex Problems},
  author = {Bernstein, Jeremy and Wang, Yu-Xiang and Azizzadenesheli, Kamyar and
            Anandkumar, Animashree},
  booktitle = {International Conference on Machine Learning},
  pages = {560--569},
  year = {2018},
}
@inproceedings{karimireddy2019error,
  title = {Error Feedback Fixes {SignSGD} and Other Gradient Compression Schemes},
  author = {Karimireddy, Sai Praneeth and Rebjock, Quentin and Stich, Sebastian U. and
            Jaggi, Martin},
  booktitle = {International Conference on Machine Learning},
  pages = {3252--3261},
  year = {2019},
}
"""
_INT8 = """\
@inproceedings{dettmers2016eight,
  title = {8-Bit Approximations for Parallelism in Deep Learning},
  author = {Dettmers, Tim},
  booktitle = {International Conference on Learning Representations},
  year = {2016},
}
"""
_STOCHASTIC = """\
@inproceedings{alistarh2017qsgd,
  title = {{QSGD}: Communication-Efficient {SGD} via Gradient Quantization and
           Encoding},
  author = {Alistarh, Dan and Grubic, Demjan and Li, Jerry and Tomioka, Ryota and
            Vojnovic, Milan},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {30},
  year = {2017},
}
@inproceedings{wen2017terngrad,
  title = {{TernGrad}: Ternary Gradients to Reduce Communication in Distributed Deep
           Learning},
  author = {Wen, Wei and Xu, Cong and Yan, Feng and Wu, Chunpeng and Wang, Yandan and
            Chen, Yiran and Li, Hai},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {30},
  year = {2017},
}
"""


@dataclass(frozen=True, kw_only=True)
class Quantisation(Defense):
    """Release few bits of every entry, on a grid of each tensor's own scale.

    * ``sign``: s sign(g_j), with s the mean magnitude of the tensor, or 1.
    * ``int8``: to the nearest of 255 levels between −max|g| and max|g|.
    * ``stochastic``: to one of the two next of 2^bits − 1 levels, without bias.

    The scale is part of the release. The exact law jumps, so it has no bound; attacks
    descend on a surrogate instead: the gradient plus rounding noise of variance Δ²/12
    (Δ²/6 if stochastic), or a smooth sign.

    Attributes:
        kind: what is released.
        bits: per entry, of ``stochastic`` alone, 2 to 16; 2 is ternary, None is 8.
        scale: s of ``sign`` alone: ``mean``, which None is, or ``one`` as in signSGD.
        only: glob patterns of the tensors that are quantised.

    Raises:
        InvalidInput: an option is out of range, or has no meaning for this kind.
    """

    stage: ClassVar[Stage] = Stage.UPDATE
    variant_bibtex: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "kind": {"sign": _SIGN, "int8": _INT8, "stochastic": _STOCHASTIC}
    }

    kind: Literal["sign", "int8", "stochastic"]
    bits: int | None = None
    scale: Literal["mean", "one"] | None = None
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if self.kind not in ("sign", "int8", "stochastic"):
            msg = f"kind is {self.kind!r}; expected 'sign', 'int8' or 'stochastic'"
            raise InvalidInput(msg)
        if self.scale not in (None, "mean", "one"):
            msg = f"scale is {self.scale!r}; expected 'mean' or 'one'"
            raise InvalidInput(msg)
        if self.bits is not None and not 2 <= self.bits <= 16:
            msg = f"bits is {self.bits}; expected 2 to 16"
            raise InvalidInput(msg)
        if self.kind != "stochastic" and self.bits is not None:
            msg = f"bits is {self.bits}, but only the kind 'stochastic' has a choice"
            raise InvalidInput(msg)
        if self.kind != "sign" and self.scale is not None:
            msg = f"scale is {self.scale!r}, but only the kind 'sign' has a choice"
            raise InvalidInput(msg)

    @property
    def _bits(self) -> int:
        return 8 if self.bits is None else self.bits

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return each kind of rounding."""
        return (cls(kind="sign"), cls(kind="int8"), cls(kind="stochastic", bits=3))

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """List what is covered; the scale is each release's own.

        Signs alone show no magnitudes, so attacks take those of public gradients.
        """
        del key
        if self.kind != "sign" or self.scale != "one" or public is None:
            return self._plan(task)
        return self._plan(task, arrays=_typical_magnitudes(task, public))

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        if self.kind != "stochastic":
            return self._map(plan)(covered)
        released = {}
        for name, tensor in covered.items():
            values = tensor.double()
            step = grid_step(values, self._bits)
            source = generator(key, name)
            released[name] = round_up_or_down(values, step, source).to(tensor)
        return released

    def _map(self, plan: Plan) -> SignTimesScale | RoundToGrid:
        if self.kind == "sign":
            return SignTimesScale(self.scale == "one", plan.covers)
        return RoundToGrid(self._bits, plan.covers)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Append the map that jumps, and a smooth surrogate of it for descents."""
        surrogate = self._surrogate(law.for_descent, plan, observed)
        noise = _NOISE_ROUNDED if law.noisy_on(plan.covers) else None
        if self.kind == "stochastic":
            # The mean is exact, and two levels are mixed in smooth proportions.
            reason = law.not_gaussian or noise or _TWO_POINTS
            return replace(law, not_gaussian=reason, surrogate=surrogate)
        jumps = _SIGNS_JUMP if self.kind == "sign" else _JUMPS
        blurred = law.noise_covers(plan.covers)
        return replace(
            law.then(self._map(plan)),
            irregular=law.irregular if blurred else jumps,
            not_gaussian=law.not_gaussian or noise,
            surrogate=surrogate,
        )

    def _surrogate(
        self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None
    ) -> Law:
        """Return a law that a descent can follow; rounding without O has no size."""
        if self.kind == "sign":
            return self._soft(law, plan, observed)
        if observed is None:
            return law
        steps = {n: grid_step(observed[n].double(), self._bits) for n in plan.covers}
        stochastic = self.kind == "stochastic"
        return law.plus_noise(
            {n: rounding_variance(s, stochastic=stochastic) for n, s in steps.items()}
        )

    def _soft(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Return the smooth sign with an error; noise that entered is behind it."""
        sizes = {}
        if observed is not None:
            names = [n for n in plan.covers if observed[n].numel()]
            sizes = {n: observed[n].double().abs().amax() for n in names}
        unit = self.scale == "one"
        means = plan.arrays if unit else sizes
        soft = law.then(SoftSign(unit, plan.covers, means))
        before = {n: v for n, v in law.variance.items() if n not in plan.covers}
        soft = replace(soft, variance=before, covariance=None, not_gaussian=None)
        return soft.plus_noise({n: SIGN_ERROR * s**2 for n, s in sizes.items()})

    @property
    def adds_noise(self) -> bool:
        """Whether rounding is random."""
        return self.kind == "stochastic"

    @property
    def preserves_zeros(self) -> bool:
        """False: rounding makes new zeros, and signs hide every magnitude."""
        return False


def _typical_magnitudes(task: Task, public: Batch) -> Tree:
    """Return the mean magnitude of each tensor over the gradients of some examples."""
    inputs, targets = public.inputs[:_PUBLIC].to(task.dtype), public.targets[:_PUBLIC]
    ones = [
        task.gradient(inputs[i : i + 1], targets[i : i + 1]) for i in range(len(inputs))
    ]
    return {
        name: torch.stack([g[name].double().abs().mean() for g in ones]).mean()
        for name in ones[0]
        if ones[0][name].numel()
    }
