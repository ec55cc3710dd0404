"""Fisher information leakage: what unbiased attacks cannot beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from exhume.bounds.evaluation_points import evaluation_points
from exhume.bounds.fisher import (
    MeanMap,
    fisher_information,
    fisher_trace,
    information_product,
)
from exhume.bounds.monte_carlo import (
    average_until_settled,
    covering,
    jackknifed_trace_bound,
)
from exhume.bounds.regularity import information_map_at
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold, generator
from exhume.problem.bound import Binds, Bound, BoundValue, NotApplicable
from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = [
    "FisherInformationLeakage",
    "diagonal_fisher_information_loss",
    "fisher_information_loss",
    "fisher_spectral_norm",
]

_DENSE = 64  # unknowns up to which the matrix is formed
_PROBES = 16
_TOLERANCE = 1e-6


@formula(
    r"\eta = \| J_F \|_2^{1/2},\quad \mathrm{Var}(\hat x_j) \ge 1 / \eta^2",
    reference="Hannun, Guo and van der Maaten, UAI 2021",
)
def fisher_information_loss(spectral_norm: float) -> float:
    """Return Hannun's η: every attribute has an unbiased variance of at least 1/η².

    Args:
        spectral_norm: largest eigenvalue of J_F.
    """
    return spectral_norm**0.5


@formula(
    r"\eta_d = \big( \mathrm{tr}\, J_F / q \big)^{1/2},\quad "
    r"\tfrac1q E \| \hat x - x \|^2 \ge 1 / \eta_d^2",
    reference="Guo et al., ICML 2022, dFIL",
)
def diagonal_fisher_information_loss(trace: float, unknowns: int) -> float:
    """Return Guo's dFIL η: the mean squared error of unbiased attacks is ≥ 1/η².

    Args:
        trace: tr J_F.
        unknowns: q.
    """
    return (trace / unknowns) ** 0.5


@formula(
    r"\| J_F \|_2 = \max_{\| t \| = 1} \| R\, t \|^2,\quad R^\top R = J_F",
    reference="Lanczos 1950; products R t and Rᵀ u by derivatives, no matrix",
)
def fisher_spectral_norm(whitened: MeanMap, inputs: Tensor, key: int = 0) -> float:
    """Find the largest eigenvalue of the Fisher information without forming it.

    Args:
        whitened: a map whose Jacobian at ``inputs`` is R, of ``information_map``.
        inputs: x, shape [B, *event], with two or more unknowns.
        key: randomness of the start.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    inputs = inputs.detach().double()
    product = information_product(whitened, inputs)

    def matvec(vector: np.ndarray) -> np.ndarray:
        tangent = torch.from_numpy(vector.copy()).reshape(inputs.shape).to(inputs)
        return product(tangent).detach().cpu().numpy().reshape(-1)

    q = inputs.numel()
    start = torch.randn(q, generator=generator(key, "lanczos"), dtype=torch.float64)
    operator = LinearOperator((q, q), matvec=matvec, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    found = eigsh(
        operator,
        k=1,
        which="LA",
        v0=start.numpy(),
        tol=_TOLERANCE,  # pyright: ignore[reportArgumentType]
        return_eigenvectors=False,
    )
    return float(found[0])


@dataclass(frozen=True, kw_only=True)
class FisherInformationLeakage(Bound):
    """q / dFIL², with Hannun's η beside it; unbiased attacks only.

    An attack that shrinks towards a mean beats it, at strong noise by orders of
    magnitude: it measures leakage. What no attack beats is ``bayesian-cramer-rao``.

    Attributes:
        draws: batches from the prior, or from the public examples, over which the
            information is averaged.

    Raises:
        InvalidInput: fewer than two draws.
    """

    bibtex: ClassVar[str] = """
@inproceedings{hannun2021measuring,
  title = {Measuring Data Leakage in Machine-Learning Models with {F}isher
           Information},
  author = {Hannun, Awni and Guo, Chuan and van der Maaten, Laurens},
  booktitle = {Conference on Uncertainty in Artificial Intelligence}, year = {2021}
}
@inproceedings{guo2022bounding,
  title = {Bounding Training Data Reconstruction in Private (Deep) Learning},
  author = {Guo, Chuan and Karrer, Brian and Chaudhuri, Kamalika and
            van der Maaten, Laurens},
  booktitle = {International Conference on Machine Learning}, year = {2022}
}
"""
    draws: int = 4

    def __post_init__(self) -> None:
        if self.draws < 2:
            msg = f"draws is {self.draws}; the bound needs 2 or more to state its error"
            raise InvalidInput(msg)

    def __call__(
        self, world: World, prior: Density | None = None, key: int = 0
    ) -> BoundValue | NotApplicable:
        """Evaluate it at draws of the prior, or at public examples.

        Args:
            world: the evaluator's side; its private inputs are not used.
            prior: density of one example; the world's own if None.
            key: calibrates the defenses as ``world.observe(key)`` does, and draws.
        """
        density = world.prior if prior is None else prior
        points = evaluation_points(world, density, 2, key)
        if isinstance(points, NotApplicable):
            return points
        at = information_map_at(world, points, key, density)
        if isinstance(at, NotApplicable):
            return at
        pairs: list[tuple[float, float]] = []

        def estimate(count: int) -> BoundValue:
            batches = evaluation_points(world, density, count, key)
            assert not isinstance(batches, NotApplicable)  # there were two
            for x in batches[len(pairs) :]:
                sketch = fold(key, "sketch", len(pairs))
                pairs.append(_trace_and_norm(at(x), x, sketch))
            return _value(pairs, points[0].shape)

        try:
            return average_until_settled(self.draws, estimate)
        except InvalidInput as error:
            return NotApplicable(str(error))


def _trace_and_norm(whitened: MeanMap, x: Tensor, key: int) -> tuple[float, float]:
    if x.numel() <= _DENSE:
        fisher = fisher_information(whitened, None, x)
        found = float(fisher.trace()), float(torch.linalg.eigvalsh(fisher)[-1])
    else:
        trace = fisher_trace(whitened, None, x, probes=_PROBES, key=key).value
        found = trace, fisher_spectral_norm(whitened, x, key)
    if not found[0] > 0:
        msg = "the release says nothing about the data"
        raise InvalidInput(msg)
    return found


def _value(pairs: list[tuple[float, float]], shape: torch.Size) -> BoundValue:
    """Average over the draws; E 1/tr ≥ 1/E tr, so the average bounds the average.

    Args:
        pairs: trace and norm of J_F at every point.
        shape: of the inputs, [B, *event].
    """
    traces, norms = torch.tensor(pairs, dtype=torch.float64).T
    unknowns = shape.numel()
    # The bound is q / dFIL² = q² / tr, the trace bound without a prior.
    total, error = jackknifed_trace_bound(traces, 0.0, unknowns)
    eta = fisher_information_loss(float(norms.mean()))
    return BoundValue(
        name="fisher-information-leakage",
        total=max(total, 0.0),
        standard_error=covering(error, len(traces)),
        unknowns=unknowns,
        batch_size=shape[0],
        assumptions=(
            "The attack is unbiased at every input. Attacks that shrink towards a "
            "mean are not, and beat it; no attack beats the Bayesian Cramér-Rao bound.",
            "The labels, the weights and the defense are known to the attacker.",
            "The mean of the release is differentiable almost everywhere and "
            "continuous (checked between the points of evaluation).",
            "It is an average over draws of the prior or over public examples.",
        ),
        reference="Hannun et al., UAI 2021; Guo et al., ICML 2022",
        binds=Binds.UNBIASED_ATTACKS,
        details={
            "dfil": diagonal_fisher_information_loss(float(traces.mean()), unknowns),
            "fil": eta,
            "variance_of_any_attribute": 1 / eta**2,
            "draws": float(len(traces)),
        },
    )
