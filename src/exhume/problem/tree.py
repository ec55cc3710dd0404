"""Named trees of tensors: an update is a ``dict[str, Tensor]``, never a list."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from exhume.errors import Inconsistent

__all__ = [
    "Tree",
    "add",
    "check_finite",
    "check_same_layout",
    "detached",
    "dot",
    "flatten",
    "leaves",
    "norm",
    "scale",
    "size",
    "subtract",
    "unflatten",
]

Tree = dict[str, Tensor]


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tree:
    """Add two trees of the same layout, tensor by tensor."""
    return {name: a[name] + b[name] for name in a}


def subtract(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tree:
    """Subtract tree ``b`` from tree ``a``, tensor by tensor."""
    return {name: a[name] - b[name] for name in a}


def scale(factor: float | Tensor, tree: Mapping[str, Tensor]) -> Tree:
    """Multiply every tensor of a tree by one number."""
    return {name: factor * tensor for name, tensor in tree.items()}


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Return the inner product ⟨a, b⟩ over all tensors, as a scalar tensor."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def norm(tree: Mapping[str, Tensor]) -> Tensor:
    """Return the Euclidean norm ‖tree‖₂ over all tensors, as a scalar tensor."""
    return torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(t) for t in tree.values()])
    )


def detached(tree: Mapping[str, Tensor]) -> Tree:
    """Return a tree without its history: the same values, and no derivative."""
    return {name: tensor.detach() for name, tensor in tree.items()}


def leaves(tree: Mapping[str, Tensor]) -> Tree:
    """Return a tree at which a derivative can be taken, by autograd."""
    return {name: tensor.detach().requires_grad_() for name, tensor in tree.items()}


def size(tree: Mapping[str, Tensor]) -> int:
    """Return the number of coordinates P."""
    return sum(tensor.numel() for tensor in tree.values())


def flatten(tree: Mapping[str, Tensor]) -> Tensor:
    """Concatenate all tensors into one vector, shape [P], in the tree's order."""
    return torch.cat([tensor.reshape(-1) for tensor in tree.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Tree:
    """Undo :func:`flatten`: cut a vector [P] into the layout of ``like``."""
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {
        name: part.reshape(tensor.shape)
        for part, (name, tensor) in zip(parts, like.items(), strict=True)
    }


def check_same_layout(
    tree: Mapping[str, Tensor], like: Mapping[str, Tensor], *, what: str
) -> None:
    """Raise unless two trees have the same names and shapes.

    Args:
        tree: the tree that came.
        like: the tree that was expected.
        what: how to call ``tree`` in the message, e.g. "the update".

    Raises:
        Inconsistent: lists every missing, extra and reshaped tensor.
    """
    problems = []
    for name in {**like, **tree}:
        if name not in like:
            problems.append(f"tensor {name!r} is not a parameter of the model")
            continue
        expected = list(like[name].shape)
        if name not in tree:
            problems.append(f"tensor {name!r} is missing (expected shape {expected})")
        elif list(tree[name].shape) != expected:
            found = list(tree[name].shape)
            problems.append(f"tensor {name!r} has shape {found}, expected {expected}")
    if problems:
        summary = f"{what} does not fit the model: {len(problems)} problem(s)"
        raise Inconsistent(summary, tuple(problems))


def check_finite(tree: Mapping[str, Tensor], *, what: str) -> None:
    """Raise if a tensor holds NaN or infinity, naming each such tensor."""
    bad = []
    for name, t in tree.items():
        if count := int((~torch.isfinite(t)).sum()):
            values = f"{count} of {t.numel()} values are NaN or infinite"
            bad.append(f"tensor {name!r}: {values}")
    if bad:
        msg = f"{what} is not finite"
        raise Inconsistent(msg, tuple(bad))
