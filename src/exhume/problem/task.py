"""What the client trains: model f, weights Θ, loss L, and the mode it runs in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from exhume.errors import InvalidInput
from exhume.problem.losses import Loss, loss_named
from exhume.problem.tree import Tree, detached

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Normalisation", "Task"]

_BatchNorm = nn.modules.batchnorm._BatchNorm
_Dropout = nn.modules.dropout._DropoutNd


@dataclass(frozen=True)
class Normalisation:
    """Fixed affine map (x − mean) / std applied to inputs before the model.

    Attributes:
        mean: one value per channel (images) or one for all.
        std: likewise, positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            msg = (
                f"normalisation needs as many means as positive stds, got mean "
                f"{self.mean} and std {self.std}"
            )
            raise InvalidInput(msg)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return (x − mean) / std, channel by channel."""
        mean, std = self._like(inputs)
        return (inputs - mean) / std

    def undo(self, normalised: Tensor) -> Tensor:
        """Return x = std · z + mean, channel by channel."""
        mean, std = self._like(normalised)
        return std * normalised + mean

    def _like(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.mean) not in (1, inputs.shape[1]):
            msg = (
                f"normalisation has {len(self.mean)} means, but the inputs have "
                f"{inputs.shape[1]} channels; give one per channel, or one for all"
            )
            raise InvalidInput(msg)
        shape = (1, -1) + (1,) * (inputs.dim() - 2)
        mean, std = inputs.new_tensor(self.mean), inputs.new_tensor(self.std)
        return mean.reshape(shape), std.reshape(shape)


@dataclass(frozen=True, eq=False)
class Task:
    """A model with its loss and mode, called statelessly; the user's model is copied.

    Attributes:
        model: the network f(·; Θ); a snapshot is taken, later changes do not matter.
        loss: name of a loss, or a :class:`~exhume.problem.losses.Loss` of the user's
            own; losses are means over the batch.
        criterion: the loss itself.
        mode: ``eval`` or ``train``; in ``train`` BatchNorm uses the batch's own
            statistics and never updates the running ones.
        normalise: optional fixed map applied to inputs first.

    Raises:
        InvalidInput: not a module, unknown loss or mode, a model without trainable
            parameters, or dropout in train mode (its hidden masks are a defense, not
            part of a task).
    """

    model: nn.Module
    loss: str | Loss = "cross-entropy"
    mode: Literal["eval", "train"] = "eval"
    normalise: Normalisation | None = None
    criterion: Loss = field(init=False, repr=False)
    running_statistics: Mapping[str, tuple[Tensor, Tensor]] = field(
        init=False, repr=False
    )
    _tied: bool = field(init=False, repr=False)
    _recurrent: bool = field(init=False, repr=False)
    _normalised: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            msg = (
                f"the model is a {type(self.model).__name__}; expected a "
                f"torch.nn.Module (its source makes one: .build(spec, classes, key))"
            )
            raise InvalidInput(msg)
        named = self.loss if isinstance(self.loss, Loss) else loss_named(self.loss)
        object.__setattr__(self, "criterion", named)
        if self.mode not in ("eval", "train"):
            msg = f"the mode is {self.mode!r}; expected 'eval' or 'train'"
            raise InvalidInput(msg)
        running: dict[str, tuple[Tensor, Tensor]] = {}
        recurrent = normalised = False
        for name, module in self.model.named_modules():
            recurrent |= isinstance(module, nn.LSTM)
            normalised |= isinstance(module, _BatchNorm)
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                running[name] = _value(module.running_mean), _value(module.running_var)
        object.__setattr__(self, "running_statistics", running)
        object.__setattr__(self, "model", _snapshot(self.model, self.mode))
        # Not in every call of the model, where looking costs as much as a layer.
        object.__setattr__(self, "_tied", _has_tied_tensors(self.model))
        object.__setattr__(self, "_recurrent", recurrent)
        object.__setattr__(self, "_normalised", normalised)
        if not self.parameters():
            msg = "the model has no trainable parameters, so there is no gradient"
            raise InvalidInput(msg)

    def parameters(self) -> Tree:
        """Return the trainable parameters Θ by name (the snapshot's own tensors)."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""
        return next(iter(self.parameters().values())).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(iter(self.parameters().values())).device

    def to(self, dtype: torch.dtype) -> Task:
        """Return the same task in another precision (float64 for exact work)."""
        task = self.with_model(copy.deepcopy(self.model).to(dtype))
        running = {
            name: (mean.to(dtype), var.to(dtype))
            for name, (mean, var) in self.running_statistics.items()
        }
        object.__setattr__(task, "running_statistics", running)
        return task

    def with_model(self, model: nn.Module) -> Task:
        """Return the task with a variant of its own model, e.g. with a layer more.

        Loss, mode, normalisation and the running statistics, which the model of a task
        in train mode no longer has, stay.
        """
        task = Task(model, self.loss, self.mode, self.normalise)
        object.__setattr__(task, "running_statistics", self.running_statistics)
        return task

    def predict(self, inputs: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs f(x; Θ), shape [B, K], differentiable in both.

        Attention runs on its MATH kernel, and LSTMs outside of oneDNN: the others lack
        a second or a forward derivative.

        Raises:
            InvalidInput: the model draws random numbers, so that f is no function.
        """
        x = inputs if self.normalise is None else self.normalise(inputs)
        state = dict(parameters)
        if self.mode == "train":
            # Some layers update buffers when called (a power iteration, say).
            state |= {name: b.clone() for name, b in self.model.named_buffers()}
        before = torch.get_rng_state()
        onednn = _without_onednn() if self._recurrent else nullcontext()
        with sdpa_kernel(SDPBackend.MATH), onednn:
            outputs = functional_call(self.model, state, (x,), tie_weights=self._tied)
        if not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
            msg = (
                "the model draws random numbers when it is called (a functional "
                "dropout without `training=self.training`?); make it deterministic"
            )
            raise InvalidInput(msg)
        return outputs

    def loss_value(
        self, inputs: Tensor, targets: Tensor, parameters: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the scalar L(Θ; S), a mean over the batch.

        Args:
            inputs: x, shape [B, *event].
            targets: class indices [B], or probabilities [B, K], or real targets.
            parameters: Θ by name.
        """
        outputs = self.predict(inputs, parameters)
        if targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        return self.criterion(outputs, targets)

    def gradient(
        self,
        inputs: Tensor,
        targets: Tensor,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Tree:
        """Return ∇_Θ L(Θ; S) by name, differentiable in inputs, targets and Θ.

        The autograd route: fastest for one candidate. Inside ``torch.func`` transforms
        use :meth:`gradient_func`.

        Args:
            inputs: x, shape [B, *event].
            targets: y.
            parameters: other weights Θ; None for the task's own.
        """
        given = self.parameters() if parameters is None else parameters
        moving = parameters is not None and any(p.requires_grad for p in given.values())
        parameters = {
            name: p if p.requires_grad and moving else p.detach().requires_grad_()
            for name, p in given.items()
        }
        with torch.enable_grad():
            value = self.loss_value(inputs, targets, parameters)
            differentiable = moving or inputs.requires_grad or targets.requires_grad
            grads = torch.autograd.grad(
                value,
                list(parameters.values()),
                create_graph=differentiable,
                materialize_grads=True,
            )
        return dict(zip(parameters, grads, strict=True))

    def gradient_func(
        self,
        inputs: Tensor,
        targets: Tensor,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Tree:
        """Return ∇_Θ L(Θ; S) by name, composable with ``torch.func`` transforms.

        Args:
            inputs: x, shape [B, *event].
            targets: y.
            parameters: other weights Θ, differentiable too; None for the task's own.
        """
        if parameters is None:
            parameters = detached(self.parameters())
        return torch.func.grad(lambda theta: self.loss_value(inputs, targets, theta))(
            dict(parameters)
        )

    def output_size(self, inputs: Tensor) -> int:
        """Return the number K of outputs for inputs of this shape."""
        with torch.no_grad():
            return int(
                self.predict(
                    inputs[:1].repeat(2, *[1] * (inputs.dim() - 1)), self.parameters()
                ).shape[-1]
            )

    def batch_statistics(self, inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and biased variance at the input of every BatchNorm layer.

        Differentiable in ``inputs``; empty if the model has no BatchNorm.

        Returns:
            name of the layer → (mean [C], variance [C]).
        """
        if not self._normalised:
            return {}
        with self._recorded_statistics() as statistics:
            self.predict(inputs, detached(self.parameters()))
        return statistics

    @contextmanager
    def _recorded_statistics(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        statistics: dict[str, tuple[Tensor, Tensor]] = {}

        def record(name: str) -> Any:
            def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                x = args[0]
                axes = [axis for axis in range(x.dim()) if axis != 1]
                variance, mean = torch.var_mean(x, axes, correction=0)
                statistics[name] = (mean, variance)

            return hook

        handles = [
            module.register_forward_pre_hook(record(name))
            for name, module in self.model.named_modules()
            if isinstance(module, _BatchNorm)
        ]
        try:
            yield statistics
        finally:
            for handle in handles:
                handle.remove()


def _value(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.detach().clone()


def _has_tied_tensors(model: nn.Module) -> bool:
    """Whether a parameter or buffer has several names."""
    seen = set()
    for named in (model.named_parameters, model.named_buffers):
        for _, tensor in named(remove_duplicate=False):
            if id(tensor) in seen:
                return True
            seen.add(id(tensor))
    return False


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Switch oneDNN off for LSTMs, whose float32 kernel has no forward derivative."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def _snapshot(model: nn.Module, mode: str) -> nn.Module:
    """Copy a model so that calling it changes nothing, in the requested mode."""
    net = copy.deepcopy(model).train(mode == "train")
    for name, module in net.named_modules():
        if mode == "eval":
            continue
        randomness = _hidden_randomness(module)
        if randomness:
            msg = (
                f"the model runs in train mode with {randomness} ({name!r}): its mask "
                f"is hidden randomness; switch it off or use mode='eval'"
            )
            raise InvalidInput(msg)
        if isinstance(module, _BatchNorm):
            # Without running statistics there is nothing to update in place, which
            # torch.func forbids; the batch's own statistics are used either way.
            module.track_running_stats = False
            module.running_mean = module.running_var = None
            module.num_batches_tracked = None
    return net


def _hidden_randomness(module: nn.Module) -> str | None:
    """Name what makes a module random in train mode, or return None."""
    if isinstance(module, _Dropout) and module.p > 0:
        return f"dropout, p = {module.p}"
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and module.dropout > 0:
        return f"dropout, p = {module.dropout}"
    if isinstance(module, nn.RReLU) and module.lower < module.upper:
        return "randomised slopes"
    return None
