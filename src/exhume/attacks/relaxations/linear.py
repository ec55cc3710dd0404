"""A linear decoder: examples in the span of the principal components of public ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.batch import Batch
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.relaxation import Relaxation, Units
from exhume.problem.source import RelaxationSource

__all__ = ["Linear", "LinearDecoder", "principal_components"]

# A component with less of the largest standard deviation than this is rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class LinearDecoder(Relaxation):
    """x = μ + Σ_k z_k c_k.

    Attributes:
        mean: μ, shape [*event].
        components: c, shape [k, *event], linearly independent.
    """

    mean: Tensor
    components: Tensor

    @property
    def size(self) -> int:
        """The number k of components."""
        return len(self.components)

    def decode(self, z: Tensor) -> Tensor:
        """Return x = μ + Σ_k z_k c_k."""
        moved = z @ self.components.flatten(1).to(z)
        return self.mean.to(z) + moved.reshape(-1, *self.mean.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of the nearest example that can be decoded."""
        return (x - self.mean.to(x)).flatten(1) @ self._inverse.to(x)

    @cached_property
    def _inverse(self) -> Tensor:
        return torch.linalg.pinv(self.components.flatten(1).double())


@formula(
    r"c_k = s_k v_k,\quad X - 1\mu^\top = \sqrt{n - 1}\, U \operatorname{diag}(s)"
    r" V^\top",
    reference="Pearson, Phil. Mag. 1901; Hotelling, J. Educ. Psychol. 1933",
)
def principal_components(inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return mean and principal components, each as long as its standard deviation.

    So the codes of the examples have variance 1, and are uncorrelated. The entry of a
    component that is largest in absolute value is positive.

    Args:
        inputs: X, shape [n, *event].
        count: number of components, at most n − 1.

    Returns:
        μ, shape [*event], and c, shape [count, *event], in float64.

    Raises:
        InvalidInput: the examples vary in fewer directions.
    """
    rows = inputs.double().flatten(1)
    mean = rows.mean(dim=0)
    _, values, right = torch.linalg.svd(rows - mean, full_matrices=False)
    rank = int((values > _ROUNDING * values[0]).sum()) if len(rows) > 1 else 0
    if count > rank:
        msg = (
            f"components is {count}, and {len(rows)} public examples vary in {rank} "
            f"directions; give more examples or take fewer components"
        )
        raise InvalidInput(msg)
    found = (values[:count] / (len(rows) - 1) ** 0.5)[:, None] * right[:count]
    largest = found.gather(1, found.abs().argmax(dim=1, keepdim=True))
    components = (largest.sign() * found).reshape(count, *inputs.shape[1:])
    return mean.reshape(inputs.shape[1:]), components


@dataclass(frozen=True, kw_only=True)
class Linear(RelaxationSource):
    """x = μ + Σ_k z_k c_k with the principal components of public examples.

    Codes z have variance 1 over public examples, and starts are drawn from N(0, I).

    Attributes:
        components: k, their number.

    Raises:
        InvalidInput: there is no component.
    """

    components: int = 20

    bibtex: ClassVar[str] = """
@article{hotelling1933analysis,
  title = {Analysis of a Complex of Statistical Variables into Principal Components},
  author = {Hotelling, Harold},
  journal = {Journal of Educational Psychology},
  volume = {24},
  number = {6},
  pages = {417--441},
  year = {1933}
}
"""

    def __post_init__(self) -> None:
        if self.components < 1:
            msg = f"components is {self.components}; expected at least 1"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return one that a few public examples are enough for."""
        return (cls(components=4),)

    def fit(self, problem: Problem, units: Units) -> Relaxation:
        """Return the decoder of the public examples.

        Raises:
            MissingKnowledge: no public examples are given.
            InvalidInput: they vary in fewer directions than components are asked for.
        """
        del units  # its own: standard deviations of public codes
        public: Batch = problem.require(Fact.PUBLIC_DATA)
        return LinearDecoder(*principal_components(public.inputs, self.components))
