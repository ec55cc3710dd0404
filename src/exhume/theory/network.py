"""The setting of the theory: a wide two-layer network, a batch on the unit sphere.

Natural units: with a_j = 1/m and the mean squared error over B examples, the release is
2/B times Σᵢ rᵢ σ(w_j·xᵢ) for ∂L/∂a_j, and 2/(B m) times Σᵢ rᵢ σ'(w_j·xᵢ) xᵢ for
∂L/∂w_j. Noise and clips of the theory are meant for these sums, so that they are
multiplied by :func:`unit` before the defenses see them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import exhume
from exhume.config import build
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold, generator
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.task import Task
from exhume.theory.point import Layer, PointSpec

__all__ = ["RELEASED", "batch_of", "network", "pictures", "task_of", "unit"]

#: layer → name of the parameter whose gradient is released
RELEASED: dict[Layer, str] = {"hidden": "hidden.weight", "output": "output.weight"}


@formula(
    r"u = 2/B \text{ for } \partial L/\partial a,\quad "
    r"u = 2/(B m) \text{ for } \partial L/\partial W",
    reference="definition, for the mean squared error and a_j = 1/m",
)
def unit(layer: Layer, width: int, batch_size: int) -> float:
    """Return the size of the release for one unit of Σᵢ rᵢ σ(w·xᵢ), or of its slope.

    Args:
        layer: whose gradient is released.
        width: m.
        batch_size: B, examples behind one gradient.
    """
    return 2 / batch_size / (width if layer == "hidden" else 1)


def network(spec: PointSpec) -> nn.Module:
    """Build f(x) = (1/m) Σ_j σ(w_j·x) + bias with w_j ~ N(0, I_d).

    Only the layer whose gradient is released is trained; the bias never is.
    """
    source = exhume.model(
        "two-layer",
        width=spec.width,
        activation=spec.activation,
        hidden_std=1.0,
        output_constant=spec.bias,
    )
    event = EventSpec.vector(spec.dimension)
    net = source.build(event, 1, fold(spec.seed, "weights")).double()
    nn.init.constant_(net.get_parameter("output.weight"), 1 / spec.width)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name == RELEASED[spec.layer])
    return net


def task_of(spec: PointSpec) -> Task:
    """Return the network with the square loss, in float64."""
    return Task(network(spec), loss="mse")


def batch_of(spec: PointSpec) -> Batch:
    """Draw the private batch: inputs of norm 1, labels ±1.

    Raises:
        InvalidInput: there are fewer dimensions, or images, than examples.
    """
    count, d = spec.examples, spec.dimension
    if count > d:
        msg = (
            f"{count} inputs cannot be independent in {d} dimensions; raise dimension "
            f"or lower batch_size"
        )
        raise InvalidInput(msg)
    inputs = _inputs(spec)
    inputs = inputs / inputs.norm(dim=1, keepdim=True)
    # Signs alternate, as in the paper: two inputs of one label are easier to confuse.
    labels = 1.0 - 2.0 * (torch.arange(count) % 2).double()
    return Batch(inputs, labels.unsqueeze(1), EventSpec.vector(d))


def _inputs(spec: PointSpec) -> Tensor:
    if spec.inputs == "basis":
        return torch.eye(spec.examples, spec.dimension, dtype=torch.float64)
    if spec.inputs == "images":
        return pictures(spec).inputs.double().flatten(1)
    shape = (spec.examples, spec.dimension)
    source = generator(spec.seed, "inputs")
    return torch.randn(shape, generator=source, dtype=torch.float64)


def pictures(spec: PointSpec) -> Batch:
    """Choose the private images of a point.

    Raises:
        InvalidInput: there are too few, or the dimension is not theirs.
    """
    source = build("data", spec.data)
    whole = source.load()
    if whole.spec.dimension != spec.dimension:
        msg = (
            f"the images of {spec.data['name']!r} have {whole.spec.dimension} numbers, "
            f"the setting has dimension {spec.dimension}; make them agree"
        )
        raise InvalidInput(msg)
    pool = torch.tensor(source.private_pool(whole))
    if len(pool) < spec.examples:
        msg = f"there are {len(pool)} images, {spec.examples} are asked for"
        raise InvalidInput(msg)
    order = torch.randperm(len(pool), generator=generator(spec.seed, "images"))
    return whole.select(pool[order[: spec.examples]])
