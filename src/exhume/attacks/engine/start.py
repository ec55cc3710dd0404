"""Guesses without a look at the observation, and where iterative attacks start."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.observations.update import Update
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import ObservationModel
from exhume.problem.reconstruction import Outcome, Reconstruction
from exhume.problem.relaxation import Relaxation, Units
from exhume.registry import find

__all__ = [
    "StartKind",
    "centre",
    "drawn_variable",
    "initial",
    "initial_with_note",
    "placeholder_targets",
]

StartKind = Literal[
    "prior-mean", "normal", "raw-normal", "uniform", "public", "analytic", "surrogate"
]

# Kinds that are random examples without a meaning of their own.
_RANDOM = ("normal", "raw-normal", "uniform")
# Iterations of the attack that a start is worth.
_ROUGH = 300


def centre(problem: Problem) -> Tensor:
    """Return the prior mean, else the centre of the range, else zeros.

    Returns:
        one example, shape [*event], in the precision of the observation.
    """
    spec, like = problem.spec, _float_tensor(problem)
    if problem.prior is not UNKNOWN and "mean" in problem.prior.supports:
        return spec.clamp(problem.prior.mean().to(like).reshape(spec.shape))
    middle = (
        0.0 if spec.low is None or spec.high is None else (spec.low + spec.high) / 2
    )
    return torch.full(spec.shape, middle, dtype=like.dtype, device=like.device)


def placeholder_targets(problem: Problem, batch_size: int) -> tuple[Tensor, str]:
    """Return known labels, or a constant that ignores the observation.

    The constant is the commonest public label (or the mean public target), else 0.

    Returns:
        targets [B, ...] and a sentence about where they come from.
    """
    if problem.targets is not UNKNOWN:
        return problem.targets, "The labels are given."
    device = _float_tensor(problem).device
    if problem.public is UNKNOWN:
        zeros = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return zeros, "The labels are not known; label 0 stands in for them."
    public = problem.public.targets.to(device)
    if public.is_floating_point():
        typical = public.mean(dim=0)
        sentence = "The targets are not known; the mean public target stands in."
    else:
        typical = public.mode().values
        sentence = "The labels are not known; the commonest public label stands in."
    return typical.expand(batch_size, *typical.shape).clone(), sentence


def _float_tensor(problem: Problem) -> Tensor:
    return next(t for t in problem.observed.values() if t.is_floating_point())


def initial(
    problem: Problem, kind: str, batch_size: int, generator: torch.Generator
) -> Tensor:
    """Return starting inputs, shape [B, *event], in the units of the data.

    * ``prior-mean``: the prior mean, else the centre of the range, else zeros.
    * ``normal``: N(0, 1) in normalised units, as papers draw it: the model's own
      normalisation, else mean ½ and standard deviation ¼ of the range.
    * ``raw-normal``: N(0, 1) in the units of the data, range or not (Zhu et al. 2019).
    * ``uniform``: over the range, or over [−1, 1].
    * ``public``: random public examples.
    * ``analytic``: the closed form of the attack ``analytic-linear``; the prior mean
      where that does not apply.
    * ``surrogate``: a short run of the attack ``surrogate-model`` with a ``bezier``
      path on an update; as ``normal`` where a gradient was observed.

    Args:
        problem: what the attacker sees.
        kind: one of the above.
        batch_size: B.
        generator: source of randomness, on the CPU.

    Raises:
        InvalidInput: the kind is not known.
        MissingKnowledge: public examples are asked for and not given.
    """
    return initial_with_note(problem, kind, batch_size, generator)[0]


def drawn_variable(
    relaxation: Relaxation, kind: str, count: int, random: torch.Generator
) -> Tensor | None:
    """Return z of a random start where random examples are g(z) for no z, else None.

    Args:
        relaxation: x = g(z).
        kind: of start; one that is not random is made of examples and encoded.
        count: B.
        random: source of randomness, on the CPU.
    """
    if relaxation.onto or kind not in _RANDOM:
        return None
    return relaxation.draw(random, count)


def initial_with_note(
    problem: Problem, kind: str, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, str]:
    """Return starting inputs as :func:`initial` does, and a sentence or ""."""
    if kind not in get_args(StartKind):
        known = ", ".join(get_args(StartKind))
        msg = f"the start is {kind!r}; known: {known}"
        raise InvalidInput(msg)
    middle = centre(problem)
    shape = (batch_size, *problem.spec.shape)
    if kind == "prior-mean":
        return middle.expand(shape).clone(), ""
    if kind == "public":
        return _public(problem, batch_size, generator).to(middle), ""
    if kind == "surrogate" and isinstance(_model(problem), Update):
        return _surrogate(problem, generator).to(middle), ""
    if kind == "analytic":
        return _analytic(problem, batch_size, generator, middle)
    if kind == "uniform":
        low, high = problem.spec.low, problem.spec.high
        low, high = (-1.0, 1.0) if low is None or high is None else (low, high)
        draw = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * draw).to(middle), ""
    draw = torch.randn(shape, generator=generator, dtype=torch.float64).to(middle)
    if kind == "raw-normal":
        return draw, ""
    units = Units.standard(problem.require(Fact.WEIGHTS), problem.spec)
    return units.to_data(draw).to(middle), ""


def _public(problem: Problem, count: int, generator: torch.Generator) -> Tensor:
    inputs = problem.require(Fact.PUBLIC_DATA).inputs
    order = torch.randperm(len(inputs), generator=generator)
    return inputs[order.repeat(-(-count // len(inputs)))[:count]].clone()


def _model(problem: Problem) -> ObservationModel | None:
    known = problem.knows(Fact.LOCAL_SCHEDULE)
    return problem.require(Fact.LOCAL_SCHEDULE) if known else None


def _surrogate(problem: Problem, generator: torch.Generator) -> Tensor:
    key = int(torch.randint(2**31, (), generator=generator))
    attack = find("attack", "surrogate-model")(path="bezier", iterations=_ROUGH)
    answer: Reconstruction = attack(problem, key)
    return answer.inputs


def _analytic(
    problem: Problem, count: int, generator: torch.Generator, middle: Tensor
) -> tuple[Tensor, str]:
    key = int(torch.randint(2**31, (), generator=generator))
    answer: Reconstruction = find("attack", "analytic-linear")()(problem, key)
    if answer.outcome is Outcome.NOT_APPLICABLE:
        sentence = "The closed form does not apply here: started at the prior mean."
        return middle.expand(count, *middle.shape).clone(), sentence
    return _in_order(problem, answer, count).to(middle), ""


def _in_order(problem: Problem, answer: Reconstruction, count: int) -> Tensor:
    """Bring estimates into the order of the known labels, repeating where too few."""
    available = list(range(len(answer.inputs)))
    known = problem.targets
    chosen: list[int] = []
    for i in range(count):
        pool = [k for k in available if k not in chosen] or available
        if known is not UNKNOWN and known.dim() == 1 and answer.targets.dim() == 1:
            same = [k for k in pool if answer.targets[k] == known[i]]
            same = same or [k for k in available if answer.targets[k] == known[i]]
            pool = same or pool
        chosen.append(pool[0])
    return answer.inputs[torch.tensor(chosen)]
