"""What a training has left in the weights: private images against images never seen."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.attacks.engine.candidates import correlations
from exhume.formula import formula
from exhume.problem.batch import Batch
from exhume.problem.world import World
from exhume.runs.records import Memorised

__all__ = [
    "LEVELS",
    "best_correlations",
    "memorised",
    "nearest_candidates",
    "null_level",
    "recovered",
]

#: correlations above which an example counts as recovered
LEVELS = (0.9, 0.8, 0.7)

_HELD_OUT = 2000  # images never trained on that are compared, at most


@formula(
    r"\max_j \mathrm{NCC}(x_i - \bar x, \hat x_j - \bar x)",
    reference="Haim et al., NeurIPS 2022, section 5 (nearest candidate)",
)
def best_correlations(examples: Tensor, guesses: Tensor, centre: Tensor) -> Tensor:
    """Return the correlation of every example with the candidate nearest to it.

    Args:
        examples: x, shape [N, *event].
        guesses: x̂, all candidates of an attack, shape [M, *event].
        centre: the mean image of the data, which all images share.

    Returns:
        shape [N], in [−1, 1].
    """
    return nearest_candidates(examples, guesses, centre)[0]


def nearest_candidates(
    examples: Tensor, guesses: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the candidate that correlates best with every example.

    The best of two examples may be the same candidate, and it need not be the one that
    a matching by squared error gives: candidates are found up to their contrast.

    Args:
        examples: x, shape [N, *event].
        guesses: x̂, all candidates of an attack, shape [M, *event].
        centre: the mean image of the data.

    Returns:
        the correlations, in [−1, 1], and the indices of the candidates; shape [N] each.
    """
    best = correlations(examples - centre, guesses - centre).max(dim=1)
    return best.values, best.indices


@formula(r"\frac{1}{N} \#\{i : c_i > t\}", reference="definition")
def recovered(correlation: Tensor, level: float) -> float:
    """Return the share of examples whose best correlation is above a level.

    Args:
        correlation: c, shape [N].
        level: t in [−1, 1].
    """
    return float((correlation > level).double().mean())


@formula(r"\max_i c_i \ \text{over examples never trained on}", reference="definition")
def null_level(correlation: Tensor) -> float:
    """Return the best correlation that chance reaches; above it is memorisation.

    Args:
        correlation: c of examples that were not trained on, shape [N].
    """
    return float(correlation.max())


def memorised(world: World, guesses: Tensor) -> tuple[Memorised, dict[str, Tensor]]:
    """Compare candidates with the private examples and with the public ones.

    Args:
        world: the evaluator's side.
        guesses: all candidates that an attack returned, shape [M, *event].

    Returns:
        facts: ``recovered_0.9`` …, ``held_out_0.9`` … (shares), ``held_out`` (how many
        examples were never trained on) and ``null_level``; and of every private example
        its ``best_correlation`` [B], the index ``best_index`` [B] of the candidate that
        has it, and this ``best_candidate`` [B, *event]. Without public examples there
        is no null, and both are empty.
    """
    public: Batch | None = world.public
    if public is None or not torch.isfinite(guesses).all():
        return {}, {}
    unseen = public.inputs[:_HELD_OUT].double()
    centre, found = public.inputs.double().mean(dim=0), guesses.detach().double().cpu()
    own, index = nearest_candidates(world.batch.inputs.double(), found, centre)
    null = best_correlations(unseen, found, centre)
    facts: Memorised = {"held_out": float(len(unseen)), "null_level": null_level(null)}
    for level in LEVELS:
        facts[f"recovered_{level}"] = recovered(own, level)
        facts[f"held_out_{level}"] = recovered(null, level)
    return facts, {
        "best_correlation": own,
        "best_index": index,
        "best_candidate": found[index],
    }
