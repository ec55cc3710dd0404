"""Does an observation fit the model, the facts and a recomputed gradient?

Peers that match tensors by position, or trust the scale, fail silently: a gradient of
other weights, with the other sign or in the other mode, gives noise that reads as
privacy. Here every contradiction is named before an attack runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from exhume.errors import Inconsistent
from exhume.problem.batch import Batch
from exhume.problem.finding import Finding
from exhume.problem.fingerprints import fingerprint_findings
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.recomputation import recomputation_findings
from exhume.problem.task import Task
from exhume.problem.tree import Tree, norm

__all__ = ["check_observation", "check_weights", "weights_sha256"]


def check_observation(
    problem: Problem,
    *,
    own: Batch | None = None,
    reference_sha256: str | None = None,
    key: int = 0,
) -> tuple[Finding, ...]:
    """Check names, shapes, types, values, weights, scale, sign and mode.

    Without private data, scale, sign and mode are checked against gradients of public
    (or random) examples, by laws that every gradient obeys. A client that passes its
    ``own`` batch gets the exact comparison.

    Args:
        problem: the observation with the model and the facts.
        own: the private batch, if it is at hand: the gradient is recomputed.
        reference_sha256: hash of the weights at which the gradient was computed.
        key: randomness of random examples.

    Returns:
        warnings and notes, one sentence each.

    Raises:
        Inconsistent: lists every contradiction, with what would explain it.
    """
    task: Task = problem.require(Fact.WEIGHTS)
    findings = [
        *_layout(problem.observed, task),
        *_values(problem.observed, task),
        *_weights(task, reference_sha256),
        *_facts(problem),
    ]
    _raise_errors(findings)
    findings += _compared(problem, own, key)
    _raise_errors(findings)
    return tuple(findings)


def _compared(problem: Problem, own: Batch | None, key: int) -> list[Finding]:
    """Compare with gradients: the client's own, or those of other examples."""
    if own is not None:
        model = problem.observation_model
        if model is UNKNOWN or model.kind == "gradient":
            return recomputation_findings(problem, own)
        computable = not model.opaque and problem.learning_rate is not UNKNOWN
        return recomputation_findings(problem, own) if computable else []
    one = problem.as_gradient()
    return [] if one is None else fingerprint_findings(one, key)


def _raise_errors(findings: list[Finding]) -> None:
    errors = tuple(f.sentence for f in findings if f.severity == "error")
    if errors:
        count = "1 problem" if len(errors) == 1 else f"{len(errors)} problems"
        msg = f"the observation does not fit the model: {count}"
        raise Inconsistent(msg, errors)


def check_weights(reference: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise unless reference weights have the names and shapes of the model's.

    Raises:
        Inconsistent: lists every missing, extra and reshaped tensor.
    """
    findings = list(_compare(reference, dict(model.named_parameters()), {}))
    errors = tuple(finding.sentence for finding in findings)
    if errors:
        msg = f"the reference weights do not fit the model: {len(errors)} problem(s)"
        raise Inconsistent(msg, errors)


def weights_sha256(task: Task) -> str:
    r"""Hash the weights and buffers: equal hashes, equal networks, in any framework.

    SHA-256 over the entries sorted by name, each ``name \0 dtype \0 shape \0`` (dtype
    as in NumPy, shape joined by commas) followed by the raw little-endian bytes.
    BatchNorm counters and, in train mode, running statistics have no effect on the
    gradient and are left out.
    """
    digest = hashlib.sha256()
    entries = {
        **dict(task.model.named_parameters()),
        **dict(task.model.named_buffers()),
    }
    for name in sorted(entries):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = entries[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _weights(task: Task, expected: str | None) -> Iterator[Finding]:
    if expected is None:
        return
    actual = weights_sha256(task)
    if actual != expected:
        yield Finding(
            "error",
            f"the gradient was computed at other weights: they have the hash "
            f"{expected[:12]}…, the model's have {actual[:12]}…; load the checkpoint "
            f"of that round",
        )


def _layout(observed: Tree, task: Task) -> Iterator[Finding]:
    other = {
        **{n: "a buffer" for n, _ in task.model.named_buffers()},
        **{
            n: "frozen" for n, p in task.model.named_parameters() if not p.requires_grad
        },
    }
    yield from _compare(observed, task.parameters(), other)


def _compare(
    tree: Mapping[str, Tensor], like: Mapping[str, Tensor], other: Mapping[str, str]
) -> Iterator[Finding]:
    """Name every difference in names and shapes, with what would explain it."""
    renaming = None if tree.keys() == like.keys() else _renaming(tree, like)
    if renaming:
        yield Finding("error", renaming)
        return
    for name, tensor in like.items():
        shape = list(tensor.shape)
        if name not in tree:
            text = f"tensor {name!r} is missing (expected shape {shape})"
            yield Finding("error", text)
        elif list(tree[name].shape) != shape:
            hint = _shape_hint(tree[name], tensor)
            text = f"tensor {name!r} has shape {list(tree[name].shape)}, not {shape}"
            yield Finding("error", text + hint)
    for name in tree:
        if name not in like:
            why = f"; it is {other[name]} there" if name in other else ""
            text = f"tensor {name!r} is not a trainable parameter of the model{why}"
            yield Finding("error", text)


def _renaming(tree: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str | None:
    """Explain all differences in names by one prefix, or by lost names."""
    for longer, shorter, where in (
        (tree, like, "observation"),
        (like, tree, "model"),
    ):
        first, prefix = next(iter(shorter), ""), None
        for name in longer:
            if name.endswith(f".{first}"):
                prefix = name.removesuffix(first)
                break
        if prefix and {f"{prefix}{name}" for name in shorter} == set(longer):
            return (
                f"every name in the {where} starts with {prefix!r}, which the other "
                f"side lacks; rename the tensors (DataParallel and torch.compile add "
                f"such prefixes)"
            )
    same = [list(t.shape) for t in tree.values()] == [
        list(t.shape) for t in like.values()
    ]
    if same and not tree.keys() & like.keys():
        return (
            f"no name agrees ({next(iter(tree))!r}, … against {next(iter(like))!r}, …) "
            f"but the shapes do, in this order; name the tensors as the parameters of "
            f"the model, since order alone is not trusted"
        )
    return None


def _shape_hint(came: Tensor, expected: Tensor) -> str:
    if list(came.shape) == list(expected.shape)[::-1]:
        return "; it looks transposed (other frameworks store weights so)"
    if came.numel() == expected.numel():
        return "; it has as many values, so it was reshaped"
    return ""


def _values(observed: Tree, task: Task) -> Iterator[Finding]:
    for name, tensor in observed.items():
        if not tensor.is_floating_point():
            text = f"tensor {name!r} has type {tensor.dtype}; a gradient is floating"
            yield Finding("error", text)
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            text = f"tensor {name!r}: {bad} of {tensor.numel()} values are NaN or inf"
            yield Finding("error", text)
    floats = {n: t for n, t in observed.items() if t.is_floating_point()}
    if floats and float(norm({n: t.double() for n, t in floats.items()})) == 0.0:
        text = "every value is exactly zero, so nothing is observed"
        yield Finding("error", text)
    coarse = _coarser_than(task.dtype, floats)
    if coarse:
        yield Finding(
            "warning",
            f"every value is one of {coarse}, coarser than the model's "
            f"{str(task.dtype).removeprefix('torch.')}: the rounding acts as noise",
        )


def _coarser_than(dtype: torch.dtype, tree: Tree) -> str | None:
    """Name the coarsest type that holds every value exactly, if not the model's."""
    eps = torch.finfo(dtype).eps
    for coarse in (torch.bfloat16, torch.float16, torch.float32):
        if torch.finfo(coarse).eps <= eps:
            continue
        if all(torch.equal(t.to(coarse).double(), t.double()) for t in tree.values()):
            return str(coarse).removeprefix("torch.")
    return None


def _facts(problem: Problem) -> Iterator[Finding]:
    targets, size = problem.targets, problem.batch_size
    if targets is UNKNOWN or size is UNKNOWN:
        return
    if len(targets) != size:
        text = f"there are {len(targets)} labels, but the batch size is {size}"
        yield Finding("error", text)
