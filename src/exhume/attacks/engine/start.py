"""Where iterative attacks start."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from exhume.attacks.engine.centre import centre
from exhume.attacks.relaxations.units import standard_units
from exhume.errors import InvalidInput
from exhume.observations.update import Update
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import ObservationModel
from exhume.problem.reconstruction import Outcome, Reconstruction
from exhume.problem.relaxation import Relaxation
from exhume.registry import find

__all__ = ["StartKind", "drawn_variable", "initial", "initial_with_note"]

StartKind = Literal[
    "prior-mean", "normal", "raw-normal", "uniform", "public", "analytic", "surrogate"
]

# Kinds that are random examples without a meaning of their own.
_RANDOM = ("normal", "raw-normal", "uniform")
# Iterations of the attack that a start is worth.
_ROUGH = 300


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
    units = standard_units(problem.require(Fact.WEIGHTS), problem.spec)
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
