"""The change of the weights after fine-tuning, and the attacks on it."""

from __future__ import annotations

import numpy as np
import torch

from exhume.attacks.engine.candidates import (
    candidate_scores,
    correlations,
    merge_duplicates,
)
from exhume.keys import generator
from toys import GRAY, smooth


def noise(shape, key: int) -> torch.Tensor:
    local = generator(key, "fine-tuning", "noise")
    return torch.randn(shape, generator=local, dtype=torch.float64)


# --- candidates ----------------------------------------------------------------------


def test_correlations_are_those_of_numpy():
    a, b = smooth(GRAY, 3, 1).double(), smooth(GRAY, 4, 2).double()
    expected = np.corrcoef(a.flatten(1), b.flatten(1))[:3, 3:]
    torch.testing.assert_close(correlations(a, b), torch.from_numpy(expected))
    flat = torch.full((1, *GRAY.shape), 0.3, dtype=torch.float64)
    assert correlations(flat, b).tolist() == [[0.0] * 4]


def test_the_score_is_the_energy_of_a_candidate():
    features, weights = noise((3, 2, 50), 1), noise((3, 2), 2)
    blocks = features @ features.mT
    sums = torch.einsum("ic,icp->ip", weights, features)
    torch.testing.assert_close(
        candidate_scores(weights, blocks), sums.square().sum(dim=1)
    )


def test_copies_merge_and_strangers_do_not():
    own = smooth(GRAY, 3, 1).double()
    inputs = torch.cat([own, own[:1] + 0.01 * noise((1, *GRAY.shape), 3), own[1:2]])
    scores = torch.tensor([1.0, 5.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    found = merge_duplicates(inputs, scores)
    assert found.members == ((1, 4), (3, 0), (2,))
    assert found.scores.tolist() == [6.0, 4.0, 0.5]
    torch.testing.assert_close(found.inputs[0], own[1])
    torch.testing.assert_close(found.inputs[1], 0.75 * inputs[3] + 0.25 * inputs[0])
    nothing = merge_duplicates(inputs, 0 * scores)
    assert bool(torch.isfinite(nothing.inputs).all())


def test_a_common_centre_is_no_likeness():
    common = 10 * noise(GRAY.shape, 4)
    inputs = common + noise((2, *GRAY.shape), 5)
    scores = torch.ones(2, dtype=torch.float64)
    assert len(merge_duplicates(inputs, scores).members) == 1
    assert len(merge_duplicates(inputs, scores, centre=common).members) == 2
