"""Variable projection: the best weights of features in closed form."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from exhume.formula import formula
from exhume.problem.task import Task

__all__ = [
    "explained_residual",
    "feature_weights",
    "projected_loss",
    "ridge_factor",
    "self_blocks",
    "sharpness_schedule",
    "softened",
]

_TINY = 1e-300


@formula(
    r"a = (K + \epsilon I)^{-1} c,\quad \epsilon = \rho\, \operatorname{tr}(K)/R",
    reference="Golub and Pereyra, SIAM J. Numer. Anal. 1973 (variable projection)",
)
def feature_weights(gram: Tensor, moment: Tensor, ridge: float) -> Tensor:
    """Return the weights with which features explain an observation best.

    Args:
        gram: K, inner products of the features, shape [R, R].
        moment: c, inner products with the observation v, shape [R].
        ridge: ρ > 0.
    """
    factor = ridge_factor(gram, ridge)
    return torch.cholesky_solve(moment[:, None], factor).squeeze(1)


@formula(
    r"1 - \frac{c^\top (K + \epsilon I)^{-1} c}{\lVert v \rVert^2} ="
    r" \min_a \frac{\lVert v - \Phi^\top a \rVert^2 + \epsilon \lVert a \rVert^2}"
    r"{\lVert v \rVert^2}",
    reference="Golub and Pereyra, SIAM J. Numer. Anal. 1973, with Tikhonov's ridge",
)
def projected_loss(gram: Tensor, moment: Tensor, energy: float, ridge: float) -> Tensor:
    """Return the share of an observation that features do not explain, in [0, 1].

    The ridge decides between many candidates that explain it: it asks for small
    weights, and large ones that cancel are what over-fitting looks like.

    Args:
        gram: K, shape [R, R].
        moment: c, shape [R].
        energy: ‖v‖² > 0.
        ridge: ρ > 0, a share of the mean diagonal of K, whose size does not count.
    """
    factor = ridge_factor(gram, ridge)
    half = torch.linalg.solve_triangular(factor, moment[:, None], upper=False)
    return 1 - half.square().sum() / energy


@formula(
    r"\frac{\lVert v - \Phi^\top a \rVert^2}{\lVert v \rVert^2} ="
    r" 1 - \frac{2 a^\top c - a^\top K a}{\lVert v \rVert^2}",
    reference="definition",
)
def explained_residual(
    gram: Tensor, moment: Tensor, energy: float, weights: Tensor
) -> float:
    """Return the plain residual at given weights, without the term of the ridge.

    Args:
        gram: K, shape [R, R].
        moment: c, shape [R].
        energy: ‖v‖² > 0.
        weights: a, shape [R].
    """
    explained = 2 * weights.dot(moment) - weights.dot(gram @ weights)
    return max(0.0, 1 - float(explained) / energy)


def self_blocks(gram: Tensor, count: int) -> Tensor:
    """Return the inner products within each of M examples, shape [M, C, C].

    Args:
        gram: K, shape [M·C, M·C].
        count: M.
    """
    channels = len(gram) // count
    own = torch.arange(count, device=gram.device)
    return gram.reshape(count, channels, count, channels)[own, :, own]


def ridge_factor(gram: Tensor, ridge: float) -> Tensor:
    """Return the Cholesky factor of K + εI, with a larger ε where rounding asks."""
    level = (ridge * gram.diagonal().mean()).detach().clamp_min(_TINY)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    while True:
        factor, failed = torch.linalg.cholesky_ex(gram + level * eye)
        if not bool(failed) or not bool(torch.isfinite(level)):
            return factor
        level = 10 * level


class _Soft(nn.Module):
    """a z + (1 − a) log(1 + exp(βz)) / β, which tends to the leaky ReLU."""

    def __init__(self, sharpness: float, leak: float) -> None:
        super().__init__()
        self.sharpness, self.leak = sharpness, leak

    def forward(self, z: Tensor) -> Tensor:
        """Apply it elementwise."""
        soft = nn.functional.softplus(z, beta=self.sharpness)
        return self.leak * z + (1 - self.leak) * soft


def softened(task: Task, sharpness: float) -> Task | None:
    """Return a copy of a task whose ReLUs are smooth; None if it has none.

    The features of a ReLU network are piecewise constant in the first layer's slopes,
    so that descent on them does not see which neurons an input switches on.

    Args:
        task: it is not changed; activations must be modules to be found.
        sharpness: β > 0 of the softplus that takes their place.
    """
    kinds = (nn.ReLU, nn.LeakyReLU)
    if not any(isinstance(m, kinds) for m in task.model.modules()):
        return None
    if isinstance(task.model, kinds):
        return None
    model = copy.deepcopy(task.model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kinds):
                leak = getattr(child, "negative_slope", 0.0)
                setattr(parent, name, _Soft(sharpness, leak))
    return task.with_model(model)


@formula(
    r"\beta_s = \beta_0 (\beta_1/\beta_0)^{\min(1,\, s/0.9)}",
    reference="annealing of softplus as in Loo et al., ICLR 2024; geometric: ours",
)
def sharpness_schedule(share: float, start: float, end: float) -> float:
    """Return the sharpness β of the softplus at a share of the run.

    Args:
        share: s in [0, 1].
        start: β₀ > 0.
        end: β₁, reached after nine tenths.
    """
    return start * (end / start) ** min(1.0, share / 0.9)
