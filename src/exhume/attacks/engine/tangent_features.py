"""Inner products of tangent features ∇_Θ f, without the Jacobian where layers allow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exhume.attacks.engine.linear_layer import LinearLayer, dense_layers
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.observations.fine_tuning import tangent_features
from exhume.problem.event import EventSpec
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = [
    "DenseFeatures",
    "LayerRows",
    "PlainFeatures",
    "TangentFeatures",
    "layered_gram",
    "layered_moment",
    "make_features",
]


@dataclass(frozen=True, eq=False)
class LayerRows:
    """What one linear layer contributes: ∂f/∂W = δ hᵀ and ∂f/∂b = δ, row by row.

    Attributes:
        slopes: δ = ∂f/∂z, shape [R, o].
        inputs: h, what the layer receives, shape [R, i].
        weight: v_W, the observed values of the weight, weighed, shape [o, i].
        bias: v_b, shape [o]; None without a bias.
        precisions: what the squares of weight and bias count.
    """

    slopes: Tensor
    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    precisions: tuple[float, float]


@formula(
    r"K_{rs} = \sum_l \langle \delta_l^r, \delta_l^s \rangle"
    r" \left( \langle h_{l-1}^r, h_{l-1}^s \rangle + [\text{bias}] \right)",
    reference="chain rule for a multilayer perceptron; Novak et al., ICML 2022",
)
def layered_gram(first: Sequence[LayerRows], second: Sequence[LayerRows]) -> Tensor:
    """Return the inner products of tangent features from slopes and layer inputs.

    Args:
        first: all trainable layers, R rows each.
        second: the same layers for other inputs, S rows each.

    Returns:
        K, shape [R, S].
    """
    parts = []
    for one, other in zip(first, second, strict=True):
        on_weight, on_bias = one.precisions
        inside = on_weight * (one.inputs @ other.inputs.T)
        if one.bias is not None:
            inside = inside + on_bias
        parts.append((one.slopes @ other.slopes.T) * inside)
    return torch.stack(parts).sum(dim=0)


@formula(
    r"c_r = \langle \phi_r, v \rangle = \sum_l \langle \delta_l^r,"
    r" V_l h_{l-1}^r + u_l \rangle",
    reference="chain rule for a multilayer perceptron",
)
def layered_moment(layers: Sequence[LayerRows]) -> Tensor:
    """Return the inner products of tangent features with the observation.

    Args:
        layers: all trainable layers.

    Returns:
        c, shape [R].
    """
    parts = []
    for layer in layers:
        image = layer.inputs @ layer.weight.T
        if layer.bias is not None:
            image = image + layer.bias
        parts.append((layer.slopes * image).sum(dim=1))
    return torch.stack(parts).sum(dim=0)


@dataclass(frozen=True, eq=False)
class TangentFeatures(ABC):
    """Features φ_r with r = (example, weights Θ_t, output), and an observation v.

    Attributes:
        task: the model.
        points: the weights Θ_t at which features are taken.
        values: v by name.
        precisions: what the square of an entry counts; a number or a tensor by name.
    """

    task: Task
    points: tuple[Tree, ...]
    values: Tree
    precisions: Mapping[str, Tensor]

    @property
    def energy(self) -> float:
        """‖v‖², entries weighed."""
        parts = [(self.precisions[n] * t.square()).sum() for n, t in self._entries()]
        return float(torch.stack(parts).sum())

    def _entries(self) -> list[tuple[str, Tensor]]:
        return list(self.values.items())

    @abstractmethod
    def products(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return K = ⟨φ_r, φ_s⟩, [R, R], and c = ⟨φ_r, v⟩, [R]; differentiable in x.

        The rows of one example follow each other: R = M · (points · outputs).

        Args:
            inputs: x, shape [M, *event].
        """

    @abstractmethod
    def cross(self, first: Tensor, second: Tensor) -> Tensor:
        """Return ⟨φ_r(x), φ_s(z)⟩, shape [R, S]; differentiable in both.

        Args:
            first: x, shape [M, *event].
            second: z, shape [N, *event].
        """


@dataclass(frozen=True, eq=False)
class DenseFeatures(TangentFeatures):
    """Of a network whose trainable weights are those of linear layers.

    Attributes:
        layers: all of them.
    """

    layers: tuple[LinearLayer, ...]

    def products(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and c from the slopes and inputs of each layer."""
        rows = self.rows(inputs)
        return layered_gram(rows, rows), layered_moment(rows)

    def cross(self, first: Tensor, second: Tensor) -> Tensor:
        """Return K between two sets of inputs."""
        return layered_gram(self.rows(first), self.rows(second))

    def rows(self, inputs: Tensor) -> list[LayerRows]:
        """Return what each layer contributes, R rows each."""
        graph = inputs.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            point = inputs if graph else inputs.detach().requires_grad_()
            parts = [self._at(point, theta, graph=graph) for theta in self.points]
        found = []
        for k, layer in enumerate(self.layers):
            slopes = torch.cat([part[k][0] for part in parts], dim=1)
            received = torch.cat([part[k][1] for part in parts], dim=1)
            slopes, received = slopes.flatten(0, 1), received.flatten(0, 1)
            if not graph:
                slopes, received = slopes.detach(), received.detach()
            found.append(self._layer(layer, slopes, received))
        return found

    def _layer(self, layer: LinearLayer, slopes: Tensor, received: Tensor) -> LayerRows:
        own = {layer.weight: None, layer.bias: None}
        counts = {n: self.precisions[n] for n in own if n is not None}
        weighed = {n: w * self.values[n] for n, w in counts.items()}
        bias = None if layer.bias is None else weighed[layer.bias]
        on_bias = 0.0 if layer.bias is None else float(counts[layer.bias])
        precisions = (float(counts[layer.weight]), on_bias)
        return LayerRows(slopes, received, weighed[layer.weight], bias, precisions)

    def _at(
        self, inputs: Tensor, theta: Tree, *, graph: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Return δ [M, C, o] and h [M, C, i] of every layer at one Θ."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def recorder(name: str):  # noqa: ANN202
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                seen[name] = (args[0], output)

            return hook

        handles = [
            self.task.model.get_submodule(layer.module).register_forward_hook(
                recorder(layer.module)
            )
            for layer in self.layers
        ]
        try:
            outputs = self.task.predict(inputs, theta)
        finally:
            for handle in handles:
                handle.remove()
        ends = [seen[layer.module][1] for layer in self.layers]
        count = outputs.shape[1]
        slopes = [
            torch.autograd.grad(
                outputs[:, c].sum(),
                ends,
                create_graph=graph,
                retain_graph=True,
                materialize_grads=True,
            )
            for c in range(count)
        ]
        return [
            (
                torch.stack([s[k] for s in slopes], dim=1),
                seen[layer.module][0][:, None].expand(-1, count, -1),
            )
            for k, layer in enumerate(self.layers)
        ]


@dataclass(frozen=True, eq=False)
class PlainFeatures(TangentFeatures):
    """Of any network: the gradient of every example and output is formed."""

    def products(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return K = GGᵀ and c = Gv from the rows G of gradients."""
        rows = self._rows(inputs)
        entries = [self.precisions[n].sqrt() * t for n, t in self._entries()]
        whole = torch.cat([t.flatten() for t in entries])
        return rows @ rows.T, rows @ whole

    def cross(self, first: Tensor, second: Tensor) -> Tensor:
        """Return G(x) G(z)ᵀ."""
        return self._rows(first) @ self._rows(second).T

    def _rows(self, inputs: Tensor) -> Tensor:
        """Return the weighed gradients, shape [R, P]."""
        parts = [tangent_features(self.task, inputs, theta) for theta in self.points]
        columns = []
        for name in self.values:
            rows = torch.cat([part[name] for part in parts], dim=1).flatten(0, 1)
            columns.append((rows * self.precisions[name].sqrt()).flatten(1))
        return torch.cat(columns, dim=1)


def make_features(
    task: Task,
    points: Sequence[Tree],
    values: Tree,
    precisions: Mapping[str, Tensor],
    spec: EventSpec,
) -> TangentFeatures:
    """Return features in the cheapest form that fits the model and the weights.

    Args:
        task: the model, in the precision of the computation.
        points: weights Θ_t at which features are taken, all trainable tensors by name.
        values: v by name.
        precisions: weight of every entry, by name.
        spec: shape of an example.

    Raises:
        InvalidInput: BatchNorm in train mode couples the examples.
    """
    if task.mode == "train" and task.running_statistics:
        msg = (
            "BatchNorm in train mode couples the examples, so that none has a tangent "
            "feature of its own; use mode = 'eval'"
        )
        raise InvalidInput(msg)
    even = {n: t.flatten()[0] for n, t in precisions.items()}
    layers = dense_layers(task, spec)
    flat = all(bool((precisions[n] == even[n]).all()) for n in precisions)
    if layers is None or not flat:
        return PlainFeatures(task, tuple(points), values, precisions)
    return DenseFeatures(task, tuple(points), values, even, layers)
