"""What a training has left in the weights: private examples against those unseen."""

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

_HELD_OUT = 2000  # examples never trained on that are compared, at most


@formula(
    r"\max_j \mathrm{NCC}(x_i - \bar x, \hat x_j - \bar x)",
    reference="Haim et al., NeurIPS 2022, section 5 (nearest candidate)",
)
def best_correlations(
    examples: Tensor, guesses: Tensor, centre: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return the correlation of every example with the candidate nearest to it.

    Args:
        examples: x, shape [N, *event].
        guesses: x̂, all candidates of an attack, shape [M, *event].
        centre: the mean example of the data, which all examples share.
        mask: numbers of each example that count, shape [N, *event]; None for all.

    Returns:
        shape [N], in [−1, 1].
    """
    return nearest_candidates(examples, guesses, centre, mask)[0]


def nearest_candidates(
    examples: Tensor, guesses: Tensor, centre: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the candidate that correlates best with every example.

    The best of two examples may be the same candidate, and it need not be the one that
    a matching by squared error gives: candidates are found up to their contrast.

    Args:
        examples: x, shape [N, *event].
        guesses: x̂, all candidates of an attack, shape [M, *event].
        centre: the mean example of the data.
        mask: numbers of each example that count, shape [N, *event]; None for all.

    Returns:
        the correlations, in [−1, 1], and the indices of the candidates; shape [N] each.
    """
    own, others = examples - centre, guesses - centre
    if mask is None:
        best = correlations(own, others).max(dim=1)
    else:
        each = zip(own, mask, strict=True)
        rows = [correlations(x[m][None], others[:, m]) for x, m in each]
        best = torch.cat(rows).max(dim=1)
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
    unseen = public.select(range(min(len(public), _HELD_OUT)))
    centre, found = public.mean(), guesses.detach().double().cpu()
    (x, mask), (z, other) = _counted(world.batch), _counted(unseen)
    own, index = nearest_candidates(x, found, centre, mask)
    null = best_correlations(z, found, centre, other)
    facts: Memorised = {"held_out": float(len(unseen)), "null_level": null_level(null)}
    for level in LEVELS:
        facts[f"recovered_{level}"] = recovered(own, level)
        facts[f"held_out_{level}"] = recovered(null, level)
    return facts, {
        "best_correlation": own,
        "best_index": index,
        "best_candidate": found[index],
    }


def _counted(batch: Batch) -> tuple[Tensor, Tensor | None]:
    return batch.inputs.double(), batch.spec.mask(batch.inputs)
