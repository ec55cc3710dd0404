"""Fresh weights from a local generator: PyTorch's default laws, no global state."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.event import EventSpec

__all__ = ["default_bound", "fresh", "require_classes", "require_image", "uniform_"]


@formula(
    r"W, b \sim \mathcal{U}\left(-\tfrac{1}{\sqrt{n}}, \tfrac{1}{\sqrt{n}}\right),"
    r"\quad n = \text{fan-in}",
    reference="LeCun, Bottou, Orr and Müller (1998); the default of PyTorch",
)
def default_bound(fan_in: int) -> float:
    """Return the half-width of the default law of linear and convolution weights.

    W, b ~ U(−1/√n, 1/√n) with n the fan-in: variance 1/(3n), range (0, 1].

    Args:
        fan_in: n ≥ 1, inputs that one output reads.
    """
    return 1 / math.sqrt(fan_in)


def fresh(build: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """Build a network on the CPU with weights drawn from a local generator.

    The modules are made on the meta device, where PyTorch's own initialisation neither
    costs time nor touches the global random state.

    Args:
        build: makes the network from layers of PyTorch, or from own ones that have a
            ``reset_parameters``.
        generator: source of the weights; parameters are drawn in module order.

    Raises:
        TypeError: a layer with parameters or buffers cannot initialise itself.
    """
    with torch.device("meta"):
        net = build()
    net = net.to_empty(device="cpu")
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            bound = default_bound(module.weight[0].numel())
            uniform_(module, bound, generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            _reset(module, generator)
    return net


def _reset(module: nn.Module, generator: torch.Generator) -> None:
    """Let a layer draw its own parameters; the global random state is as before."""
    reset = getattr(module, "reset_parameters", None)
    if reset is None:
        msg = (
            f"no initialisation is known for {type(module).__name__}; give it a method "
            f"reset_parameters"
        )
        raise TypeError(msg)
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - forgotten when the fork ends
        reset()


def uniform_(module: nn.Module, bound: float, generator: torch.Generator) -> None:
    """Fill every parameter of a module with draws from U(−bound, bound), in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-bound, bound, generator=generator)


def require_classes(classes: int) -> None:
    """Raise unless there is at least one output."""
    if classes < 1:
        msg = f"a network needs at least one output, got classes = {classes}"
        raise InvalidInput(msg)


def require_image(spec: EventSpec, net: str, least_side: int = 1) -> None:
    """Raise unless an example is an image that is large enough for a network.

    Args:
        spec: shape of an example.
        net: registered name, for the message.
        least_side: least height and width in pixels.
    """
    if spec.grid is None:
        msg = (
            f"the model {net!r} reads images, but the data are of kind {spec.kind!r} "
            f"with shape {list(spec.shape)}; use 'mlp' or 'two-layer'"
        )
        raise InvalidInput(msg)
    _, height, width = spec.grid
    if min(height, width) < least_side:
        msg = (
            f"the model {net!r} needs images of at least {least_side} x {least_side} "
            f"pixels, got {height} x {width}; use larger images or 'lenet-zhu'"
        )
        raise InvalidInput(msg)
