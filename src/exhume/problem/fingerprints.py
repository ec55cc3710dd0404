"""Laws that every gradient obeys: scale, sign and mode without the private data."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor

from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.finding import Finding
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.law import Law
from exhume.problem.recomputation import in_other_mode
from exhume.problem.task import Task
from exhume.problem.tree import Tree, norm

__all__ = ["fingerprint_findings", "output_bias", "scale_invariance"]

# Batches whose gradients show what is typical, and the largest size of one.
_PROBES, _PROBE_SIZE = 3, 8
# A norm this many times away from the typical one is worth a warning.
_UNUSUAL = 30.0
# Slack of exact laws, for rounding in float32.
_SLACK = 1e-3


def fingerprint_findings(problem: Problem, key: int = 0) -> list[Finding]:
    """Check norm, sign, scale and mode against gradients of public examples.

    Random inputs stand in where there are no public examples. Under a defense only the
    norm can be checked; while it is unknown whether there is one, contradictions are
    warnings, because a defense could explain them.

    Args:
        problem: the observation with model and facts.
        key: randomness of the random inputs.
    """
    task: Task = problem.require(Fact.WEIGHTS)
    observed = {n: t.to(task.dtype) for n, t in problem.observed.items()}
    probes = _probes(problem, task, key)
    findings = list(_norm_findings(problem, task, observed, probes))
    if not _undefended(problem):
        text = "the defense hides sign, scale and mode; only the norm was checked"
        return [*findings, Finding("note", text)]
    strong = [
        *_bias_findings(problem, task, observed, probes[0]),
        *_mode_findings(task, observed, probes[0]),
    ]
    if problem.law is UNKNOWN:
        doubt = "; or a defense acts that was not declared"
        strong = [Finding("warning", f.sentence + doubt) for f in strong]
    return findings + strong


def _undefended(problem: Problem) -> bool:
    law = problem.law
    return law is UNKNOWN or not (law.maps or law.variance or law.mask)


def _probes(problem: Problem, task: Task, key: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of public or random inputs with the known labels, or with all in turn."""
    size = problem.batch_size if problem.batch_size is not UNKNOWN else _PROBE_SIZE
    # Two examples at least: BatchNorm in train mode may need them.
    size = max(2, min(size, _PROBE_SIZE))
    rng = generator(key, "consistency")
    batches = []
    for _ in range(_PROBES):
        if problem.public is not UNKNOWN:
            index = torch.randint(len(problem.public), (size,), generator=rng)
            inputs = problem.public.inputs[index].to(task.dtype)
        else:
            shape = (size, *problem.spec.shape)
            inputs = torch.rand(shape, generator=rng, dtype=task.dtype)
            if problem.spec.low is not None and problem.spec.high is not None:
                inputs = inputs * (problem.spec.high - problem.spec.low)
                inputs = inputs + problem.spec.low
        inputs = inputs.to(task.device)
        batches.append((inputs, _targets(problem, task, inputs)))
    return batches


def _targets(problem: Problem, task: Task, inputs: Tensor) -> Tensor:
    known = problem.targets
    if known is not UNKNOWN:
        index = torch.arange(len(inputs)) % len(known)
        return known[index].to(task.device)
    with torch.no_grad():
        outputs = task.predict(inputs, task.parameters())
    if task.criterion.real:
        return torch.zeros_like(outputs)
    classes = task.criterion.class_count(outputs.shape[-1])
    return torch.arange(len(inputs), device=task.device) % classes


def _norm_findings(
    problem: Problem, task: Task, observed: Tree, probes: list[tuple[Tensor, Tensor]]
) -> Iterator[Finding]:
    law = Law() if problem.law is UNKNOWN else problem.law
    typical = median(float(norm(law.mean(task.gradient(*p)))) for p in probes)
    size = float(norm(observed))
    source = "random inputs" if problem.public is UNKNOWN else "public examples"
    seen = f"norm {size:.3g}, against {typical:.3g} for {source}"
    if size * _UNUSUAL < typical:
        yield Finding(
            "warning",
            f"the observation is very small ({seen}): the model has nearly fitted the "
            f"batch, or the update was multiplied by a learning rate; a weak "
            f"reconstruction will then not mean privacy",
        )
    elif size > _UNUSUAL * typical and not law.noisy:
        yield Finding(
            "warning",
            f"the observation is very large ({seen}): the loss was summed or scaled, "
            f"or the inputs have another range or normalisation",
        )
    else:
        yield Finding("note", f"the size of the observation is usual ({seen})")


@formula(
    r"\nabla_b L = \tfrac1B\sum_i (\mathrm{softmax}(f_i) - y_i),\quad"
    r" \sum_k \nabla_{b_k} L = 0,\quad \|\nabla_b L\|_1 \le 2",
    reference="derivative of the cross-entropy; Zhao et al., iDLG (2020), eq. 3",
)
def output_bias(task: Task, inputs: Tensor, targets: Tensor) -> str | None:
    """Find the bias that is added to the logits, by its gradient.

    Args:
        task: model with cross-entropy loss.
        inputs: any inputs, shape [B, *event].
        targets: class indices, shape [B].

    Returns:
        name of the parameter whose gradient is mean(softmax − one-hot), shape [K], or
        None if there is none.
    """
    with torch.no_grad():
        logits = task.predict(inputs, task.parameters())
    if logits.dim() != 2 or targets.dim() != 1:
        return None
    one_hot = torch.nn.functional.one_hot(targets, logits.shape[1])
    expected = (logits.softmax(dim=1) - one_hot).mean(dim=0)
    for name, value in task.gradient(inputs, targets).items():
        if value.shape == expected.shape and torch.allclose(
            value, expected, rtol=1e-3, atol=1e-6
        ):
            return name
    return None


def _bias_findings(
    problem: Problem, task: Task, observed: Tree, probe: tuple[Tensor, Tensor]
) -> Iterator[Finding]:
    name = output_bias(task, *probe) if task.criterion.softmax else None
    if name is None:
        return
    bias = observed[name].double()
    size, total = float(bias.abs().sum()), float(bias.sum())
    if size == 0:
        return
    if abs(total) > _SLACK * size:
        yield Finding(
            "error",
            f"the gradient of the output bias {name!r} sums to {total:.3g}, but that "
            f"of a cross-entropy sums to 0: another loss, or other weights",
        )
        return
    if size > 2 * (1 + _SLACK):
        yield Finding("error", _too_large(problem, name, size))
    yield from _sign_findings(problem, name, bias, _SLACK * size)


def _too_large(problem: Problem, name: str, size: float) -> str:
    text = (
        f"the output bias {name!r} has a gradient of absolute sum {size:.3g}, but the "
        f"mean cross-entropy gives at most 2: the loss was summed or scaled by at "
        f"least {size / 2:.3g}"
    )
    batch_size = problem.batch_size
    if batch_size is not UNKNOWN and 2 < size <= 2 * batch_size:
        text += f"; if it was summed, divide by the batch size (--scale {batch_size})"
    return text


def _sign_findings(
    problem: Problem, name: str, bias: Tensor, slack: float
) -> Iterator[Finding]:
    """Only labels that are in the batch can have a negative entry."""
    flipped = (
        f"the sign of the output bias {name!r} is that of a step, weights after minus "
        f"before, not of a gradient: divide the update by minus the learning rate "
        f"(--scale -LR)"
    )
    if problem.targets is not UNKNOWN and problem.targets.dim() == 1:
        absent = torch.ones_like(bias, dtype=torch.bool)
        absent[problem.targets] = False
        negative = absent & (bias < -slack)
        if bool(negative.any()):
            step = bool((bias[absent] < slack).all())
            classes = ", ".join(map(str, negative.nonzero().flatten().tolist()))
            wrong = (
                f"the labels contradict the update: class {classes} must be in the "
                f"batch, because the output bias {name!r} is negative there"
            )
            yield Finding("error", flipped if step else wrong)
        return
    size = problem.batch_size
    if size is UNKNOWN or int((bias < -slack).sum()) <= size:
        return
    few = int((bias > slack).sum()) <= size
    wrong = (
        f"the output bias {name!r} is negative for {int((bias < -slack).sum())} classes"
        f", more than the batch of {size} can hold; check the batch size"
    )
    yield Finding("error", flipped if few else wrong)


@formula(
    r"\rho = \frac{\sqrt{\sum_c \langle W_c, G_c\rangle^2}}"
    r"{\sqrt{\sum_c \|W_c\|^2\|G_c\|^2}}",
    reference="scale invariance: Ioffe and Szegedy (2015), section 3.3",
)
def scale_invariance(weight: Tensor, gradient: Tensor) -> float:
    """Alignment of weight and gradient per output channel; 0 before a BatchNorm.

    A BatchNorm in train mode divides by the batch's own deviation, so scaling a filter
    changes nothing and its gradient is orthogonal to it. In eval mode it is not.

    Args:
        weight: W, shape [C, ...].
        gradient: G, same shape.

    Returns:
        ρ in [0, 1]; 0 for a zero gradient.
    """
    w = weight.detach().flatten(1).double()
    g = gradient.detach().flatten(1).double()
    inner = (w * g).sum(dim=1)
    scale = w.norm(dim=1) * g.norm(dim=1)
    tiny = torch.finfo(torch.float64).tiny
    return float(inner.norm() / scale.norm().clamp_min(tiny))


def _mode_findings(
    task: Task, observed: Tree, probe: tuple[Tensor, Tensor]
) -> Iterator[Finding]:
    other = in_other_mode(task, len(probe[0]))
    if other is None:
        return
    train, evaluation = (task, other) if task.mode == "train" else (other, task)
    weights = {n: p.detach() for n, p in task.parameters().items() if p.dim() > 1}
    in_train, in_eval = train.gradient(*probe), evaluation.gradient(*probe)
    votes: list[bool] = []
    for name, weight in weights.items():
        low = scale_invariance(weight, in_train[name])
        high = scale_invariance(weight, in_eval[name])
        if low * 10 < high:
            middle = max(low, 1e-6) ** 0.5 * high**0.5
            votes.append(scale_invariance(weight, observed[name]) < middle)
    if not votes:
        return
    for_train = sum(votes) / len(votes)
    agreement = for_train if task.mode == "train" else 1 - for_train
    if agreement < 0.5:
        yield Finding(
            "error",
            f"the update looks like one in {other.mode} mode, not {task.mode}: "
            f"{len(votes)} weights before BatchNorm layers have gradients that are "
            f"{'' if task.mode == 'eval' else 'not '}orthogonal to them; set the mode "
            f"to {other.mode!r}",
        )
