"""Norms, signs and residuals of inputs whose directions are known.

Least squares in the span of a batch, a few dozen unknowns, polishes all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exhume.attacks.two_layer.activation import NORMS, Activation
from exhume.attacks.two_layer.joint_signs import joint_signs
from exhume.attacks.two_layer.view import blind
from exhume.formula import formula

__all__ = [
    "Fitted",
    "Neurons",
    "fit_inputs",
    "gauss_newton_step",
    "misfit",
    "polished",
    "predicted",
    "residuals",
]

_SEARCHED = 4096  # neurons on which a norm is searched
_LOW, _HIGH = (math.log10(norm) for norm in NORMS)
_GRID = torch.logspace(_LOW, _HIGH, 27, dtype=torch.float64)
_AMBIGUOUS = 1e-3  # relative difference of fits below which two signs are equal
_BLOCK = 8192  # neurons at once, and fewer where their slopes would pass _HELD
_HELD = 2**24  # slopes that are held at once, 128 MB
_DONE = 1e-10  # misfit below which nothing is left to explain


@dataclass(frozen=True, eq=False)
class Neurons:
    """What every neuron shows in a space of a few dimensions.

    Attributes:
        points: u_j, the hidden weights over their deviation s, shape [m, k].
        heads: A_cj, shape [m, K].
        rows: ∂L/∂w_j in the same space, shape [m, k]; None if it is not released.
        outputs: ∂L/∂A_cj, shape [m, K]; None if it is not released.
        sigma: the activation.
        scale: s > 0; the activation sees s u_j·q for an input q.
        offset: what it sees besides, a known hidden bias, shape [m]; None for zeros.
        mean: of the points, shape [k]; None if it is zero.
    """

    points: Tensor
    heads: Tensor
    rows: Tensor | None
    outputs: Tensor | None
    sigma: Activation
    scale: float
    offset: Tensor | None = None
    mean: Tensor | None = None

    @property
    def centred(self) -> Tensor:
        """Points less their mean, for Hermite tensors."""
        return self.points if self.mean is None else self.points - self.mean

    @property
    def shifted(self) -> bool:
        """Whether the activation sees something beside a centred s u_j·q."""
        return self.offset is not None or self.mean is not None

    @property
    def homogeneous(self) -> bool:
        """Whether no length shows in the hidden gradient: an offset makes it show."""
        return self.sigma.homogeneous and self.offset is None

    def arguments(self, inputs: Tensor) -> Tensor:
        """Return what the activation sees of inputs q [B, k], shape [m, B]."""
        return self.beside(self.scale * self.points @ inputs.T)

    def beside(self, products: Tensor) -> Tensor:
        """Add the offset to products of weights and inputs, shape [m] or [m, B]."""
        if self.offset is None:
            return products
        return products + self.offset.reshape(-1, *[1] * (products.dim() - 1))

    def some(self, count: int) -> Neurons:
        """Return evenly spaced neurons, at most ``count``."""
        return self._cut(slice(None, None, max(1, len(self.points) // count)))

    def half(self, which: int) -> Neurons:
        """Return every other neuron, from 0 or from 1."""
        return self._cut(slice(which, None, 2))

    def _cut(self, which: slice) -> Neurons:
        return replace(
            self,
            points=self.points[which],
            heads=self.heads[which],
            rows=None if self.rows is None else self.rows[which],
            outputs=None if self.outputs is None else self.outputs[which],
            offset=None if self.offset is None else self.offset[which],
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """Inputs in the small space, and how well they explain the gradient.

    Attributes:
        inputs: q_i, with their norms, shape [B, k].
        residuals: r_ic = ∂L/∂f_c(x_i), shape [B, K].
        misfit: ‖G − Ĝ‖ / ‖G‖ over the small space.
        sign_known: for each input, whether x and −x differ in what is observed, [B].
        norm_known: whether norms were read off the gradient.
    """

    inputs: Tensor
    residuals: Tensor
    misfit: float
    sign_known: Tensor
    norm_known: bool


@formula(
    r"\hat G_j = \textstyle\sum_i \big( \sum_c A_{cj} r_{ic} \big)\, "
    r"\sigma'(w_j \cdot x_i)\, x_i",
    reference="chain rule; Wang, Lee and Lei (AISTATS 2023), section 2",
)
def predicted(neurons: Neurons, inputs: Tensor, residual: Tensor) -> Tensor:
    """Return the hidden gradient of given inputs and residuals, shape [m, k].

    Args:
        neurons: weights and heads.
        inputs: q, shape [B, k].
        residual: r, shape [B, K].
    """
    slopes = neurons.sigma.slope(neurons.arguments(inputs))
    return (slopes * (neurons.heads @ residual.T)) @ inputs


@formula(
    r"\big[ (F^\top F) \circ (X X^\top) \big] r = \mathrm{diag}(F^\top G X^\top),"
    r"\quad F_{j,ic} = A_{cj}\, \sigma'(w_j \cdot x_i)",
    reference="normal equations of the hidden gradient, linear in r",
)
def residuals(neurons: Neurons, inputs: Tensor) -> Tensor:
    """Fit the residuals of given inputs by least squares, shape [B, K].

    From the output gradient if the hidden one is not released, or if it shows fewer
    combinations of the output units than there are.

    Args:
        neurons: what is observed.
        inputs: q, shape [B, k].
    """
    batch, classes = len(inputs), neurons.heads.shape[1]
    arguments = neurons.arguments(inputs)
    if neurons.rows is None or (neurons.outputs is not None and blind(neurons.heads)):
        assert neurons.outputs is not None
        values = neurons.sigma.value(arguments)
        return torch.linalg.lstsq(values, neurons.outputs, driver="gelsd").solution
    slopes = neurons.sigma.slope(arguments)
    features = (slopes.unsqueeze(2) * neurons.heads.unsqueeze(1)).flatten(1)
    overlap = (inputs @ inputs.T).repeat_interleave(classes, 0)
    normal = (features.T @ features) * overlap.repeat_interleave(classes, 1)
    shown = (neurons.rows @ inputs.T).repeat_interleave(classes, 1)
    wanted = (features * shown).sum(dim=0)
    found = torch.linalg.lstsq(normal, wanted.unsqueeze(1), driver="gelsd").solution
    return found.reshape(batch, classes)


def misfit(neurons: Neurons, inputs: Tensor, residual: Tensor) -> float:
    """Return ‖G − Ĝ‖ / ‖G‖ of the observed gradient, hidden if it is released."""
    if neurons.rows is not None:
        shown, guess = neurons.rows, predicted(neurons, inputs, residual)
    else:
        assert neurons.outputs is not None
        shown = neurons.outputs
        guess = neurons.sigma.value(neurons.arguments(inputs)) @ residual
    size = float(shown.norm())
    return float((shown - guess).norm()) / size if size > 0 else 0.0


def fit_inputs(neurons: Neurons, directions: Tensor, norm: float | None) -> Fitted:
    """Give directions their norms, signs and residuals.

    In the basis of the directions every input stands alone: G_j = Σ_i c_ij q_i with
    c_ij = (A_j·r_i) ‖x_i‖ σ'(s ‖x_i‖ u_j·q_i), so its norm is a search in one number.

    Args:
        neurons: what is observed.
        directions: q_i, unit columns, shape [k, B].
        norm: ‖x_i‖ of all inputs if it is known.
    """
    few = neurons.some(_SEARCHED)
    shares = _shares(few, directions)
    chosen, known, found_norm = [], [], norm is None and not neurons.homogeneous
    for index, direction in enumerate(directions.T):
        arguments = neurons.scale * few.points @ direction
        share = shares[index]
        best = [
            _best_norm(few, side * arguments, share, norm if not found_norm else None)
            for side in (1, -1)
        ]
        side = 0 if best[0][1] <= best[1][1] else 1
        # An odd σ has an even slope: without offsets the hidden gradient cannot tell.
        differ = abs(best[0][1] - best[1][1]) > _AMBIGUOUS * max(best[0][1], best[1][1])
        symmetric = (
            neurons.sigma.odd and neurons.rows is not None and neurons.offset is None
        )
        known.append(differ and not symmetric)
        chosen.append((-1 if side else 1) * best[side][0] * direction)
    inputs, told = torch.stack(chosen), torch.tensor(known)
    if few.rows is None and few.outputs is not None:
        here, mirrored = few.arguments(inputs), few.arguments(-inputs)
        signs, told = joint_signs(
            few.sigma.value(here), few.sigma.value(mirrored), few.outputs
        )
        inputs = signs.unsqueeze(1) * inputs
    residual = residuals(neurons, inputs)
    error = misfit(neurons, inputs, residual)
    return Fitted(inputs, residual, error, told, found_norm)


def _shares(neurons: Neurons, directions: Tensor) -> list[Tensor]:
    """Return for every direction what it alone explains: [m, 1], or all outputs."""
    if neurons.rows is None:
        assert neurons.outputs is not None
        return [neurons.outputs] * directions.shape[1]
    dual = torch.linalg.pinv(directions)
    return [(neurons.rows @ row).unsqueeze(1) for row in dual]


def _best_norm(
    neurons: Neurons, arguments: Tensor, share: Tensor, norm: float | None
) -> tuple[float, float]:
    """Return the norm that explains a share best, and the error that is left."""
    from scipy.optimize import minimize_scalar

    if neurons.homogeneous and norm is None:
        norm = 1.0

    def error(log_norm: float) -> float:
        z = neurons.beside(math.exp(log_norm) * arguments)
        if neurons.rows is None:
            features = neurons.sigma.value(z).unsqueeze(1)
        else:
            features = neurons.sigma.slope(z).unsqueeze(1) * neurons.heads
        fitted = torch.linalg.lstsq(features, share, driver="gelsd").solution
        return float((features @ fitted - share).norm())

    if norm is not None:
        return norm, error(math.log(norm))
    # Norms are searched where the activation is neither linear nor saturated.
    grid = (_GRID / neurons.scale).log().tolist()
    errors = [error(g) for g in grid]
    best = min(range(len(grid)), key=errors.__getitem__)
    low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    found = minimize_scalar(error, bounds=(low, high), method="bounded")
    return math.exp(float(found.x)), float(found.fun)


@formula(
    r"\min_{X, r} \sum_j \Big\| G_j - \sum_i (A_j \cdot r_i)\, \sigma'(w_j \cdot x_i)"
    r"\, x_i \Big\|^2 \ \text{over } x_i \in \mathrm{span}(V)",
    reference="ours; Levenberg 1944, Marquardt 1963",
)
def gauss_newton_step(
    neurons: Neurons, inputs: Tensor, residual: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """Take one damped step on inputs and residuals together.

    Args:
        neurons: with the hidden gradient.
        inputs: q, shape [B, k].
        residual: r, shape [B, K].
        damping: λ ≥ 0, as a share of the diagonal of the normal matrix.

    Returns:
        the new inputs and residuals.
    """
    assert neurons.rows is not None
    batch, k = inputs.shape
    count = batch * (k + residual.shape[1])
    normal = torch.zeros(count, count, dtype=torch.float64)
    right = torch.zeros(count, dtype=torch.float64)
    missed = neurons.rows - predicted(neurons, inputs, residual)
    size = max(1, min(_BLOCK, _HELD // (k * count)))
    for start in range(0, len(neurons.points), size):
        block = slice(start, start + size)
        slopes = _slopes(neurons, inputs, residual, block)
        normal += torch.einsum("jka,jkb->ab", slopes, slopes)
        right += torch.einsum("jka,jk->a", slopes, missed[block])
    diagonal = normal.diagonal()
    floor = torch.finfo(normal.dtype).eps * float(diagonal.max())
    damped = normal + torch.diag(damping * diagonal + floor)
    step = torch.linalg.solve(damped, right)
    moved = inputs + step[: batch * k].reshape(batch, k)
    return moved, residual + step[batch * k :].reshape(residual.shape)


def _slopes(neurons: Neurons, inputs: Tensor, residual: Tensor, block: slice) -> Tensor:
    """Return ∂Ĝ_j/∂(q, r) of a block of neurons, shape [n, k, B(k + K)]."""
    points, heads = neurons.points[block], neurons.heads[block]
    arguments = neurons.scale * points @ inputs.T
    if neurons.offset is not None:
        arguments += neurons.offset[block, None]
    first = neurons.sigma.slope(arguments)
    second = neurons.scale * neurons.sigma.curvature(arguments)
    size = heads @ residual.T
    bent = torch.einsum("ni,ik,nl->nkil", size * second, inputs, points)
    identity = torch.eye(inputs.shape[1]).to(inputs)
    straight = torch.einsum("ni,kl->nkil", size * first, identity)
    along = torch.einsum("ni,ik,nc->nkic", first, inputs, heads)
    return torch.cat([(bent + straight).flatten(2), along.flatten(2)], dim=2)


def polished(neurons: Neurons, start: Fitted, steps: int) -> Fitted:
    """Improve inputs until their gradient stops coming nearer.

    Args:
        neurons: with the hidden gradient.
        start: inputs and residuals.
        steps: at most; 0 returns the start.
    """
    if neurons.rows is None or steps == 0:
        return start
    inputs, residual, best = start.inputs, start.residuals, start.misfit
    damping = 1e-3
    for _ in range(steps):
        moved, changed = gauss_newton_step(neurons, inputs, residual, damping)
        error = misfit(neurons, moved, changed)
        if error < best:
            gained = 1 - error / best
            inputs, residual, best, damping = moved, changed, error, damping / 10
            if best < _DONE or gained < 1e-6:
                break
        else:
            damping *= 10
            if damping > 1e6:
                break
    if neurons.homogeneous:
        # Only r ‖x‖ shows: keep the norms that were assumed.
        assumed = start.inputs.norm(dim=1) / inputs.norm(dim=1)
        inputs = inputs * assumed.unsqueeze(1)
        residual = residual / assumed.unsqueeze(1)
    return Fitted(inputs, residual, best, start.sign_known, start.norm_known)
