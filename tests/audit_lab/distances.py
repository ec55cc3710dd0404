"""Discrepancies of a user's own."""

import torch


def one_minus_cosine(update, observed):
    a, b = (
        torch.cat([t.flatten() for t in tree.values()]) for tree in (update, observed)
    )
    return 1 - torch.nn.functional.cosine_similarity(a, b, dim=0)


def weighted(update, observed):
    return sum(
        (place + 1) * (update[name] - observed[name]).square().sum()
        for place, name in enumerate(observed)
    )
