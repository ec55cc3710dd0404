"""Chance level: centres of the public examples, of each known class its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.attacks.engine.start import placeholder_targets
from exhume.errors import Unsuited
from exhume.formula import formula
from exhume.keys import fold, generator
from exhume.problem.attack import Attack
from exhume.problem.batch import Batch
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import ObservationKind
from exhume.problem.reconstruction import Outcome, Reconstruction, Stopwatch

__all__ = ["PublicCentres", "shrunk_class_mean"]

# Public examples that are clustered: more move the centres little, and take minutes.
_MOST = 5000


@formula(
    r"\hat\mu_y = \frac{n_y \bar x_y + \kappa \bar x}{n_y + \kappa},\quad"
    r" \kappa = \frac{\sigma^2_\mathrm{within}}{\sigma^2_\mathrm{between}}",
    reference="best linear unbiased prediction, Robinson, Statistical Science 1991",
)
def shrunk_class_mean(inputs: Tensor, targets: Tensor, label: Tensor) -> Tensor:
    """Return the mean of a class, drawn to that of all where examples are few.

    Args:
        inputs: x, shape [n, *event].
        targets: classes, shape [n].
        label: y, a scalar; a class without examples has the mean of all.

    Returns:
        shape [*event].
    """
    whole = inputs.mean(dim=0)
    groups = [inputs[targets == y] for y in targets.unique()]
    several = [g for g in groups if len(g) > 1]
    own = inputs[targets == label]
    if len(own) == 0 or not several:
        return own.mean(dim=0) if len(own) else whole
    within = torch.stack([g.var(dim=0).mean() for g in several]).mean()
    between = torch.stack([(g.mean(dim=0) - whole).square().mean() for g in several])
    # The spread of sample means holds some of the spread within.
    noise = torch.stack([within / len(g) for g in several]).mean()
    pull = within / (between.mean() - noise).clamp_min(1e-12)
    return (len(own) * own.mean(dim=0) + pull * whole) / (len(own) + pull)


@dataclass(frozen=True, kw_only=True)
class PublicCentres(Attack):
    """Answer with centres of public examples: the best guess that looks at no update.

    Where labels are known, as many centres of each class as it has examples in the
    batch; else B centres of all. One centre is the mean, several are those of k-means.
    Matched to the truth as any answer is, B centres come nearer to it than B copies of
    the prior mean, and class means nearer than the mean of all: an attack that does no
    better has learned nothing from the update.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.BATCH_SIZE, Fact.PUBLIC_DATA})
    uses: ClassVar[frozenset[Fact]] = frozenset({Fact.LABELS})
    inverts: ClassVar[frozenset[ObservationKind]] = frozenset(
        {"gradient", "update", "fine-tuning", "weights"}
    )
    baseline: ClassVar[bool] = True

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Cluster the public examples; the observation is not used."""
        watch = Stopwatch()
        batch_size: int = problem.require(Fact.BATCH_SIZE)
        public = _sampled(problem.require(Fact.PUBLIC_DATA), key)
        if problem.spec.mask(public.inputs) is not None:
            msg = "public examples of unequal size have no centre"
            raise Unsuited(msg)
        targets, sentence = placeholder_targets(problem, batch_size)
        known = problem.targets is not UNKNOWN
        classes = known and targets.dim() == 1 and not targets.is_floating_point()
        inputs = (
            _of_classes(public, targets, key)
            if classes
            else _centres(public.inputs, batch_size, key)
        )
        like = next(t for t in problem.observed.values() if t.is_floating_point())
        return Reconstruction(
            inputs=problem.spec.clamp(inputs.to(like)),
            targets=targets,
            objective=None,
            outcome=Outcome.CLOSED_FORM,
            cost=watch.cost(),
            notes=(sentence,),
        )


def _sampled(public: Batch, key: int) -> Batch:
    if len(public) <= _MOST:
        return public
    source = generator(key, "public-centres")
    return public.select(torch.randperm(len(public), generator=source)[:_MOST])


def _of_classes(public: Batch, targets: Tensor, key: int) -> Tensor:
    """Return a centre for each label of the batch, in its order."""
    inputs, classes = public.inputs.double().cpu(), public.targets.cpu()
    found = inputs.new_zeros(len(targets), *inputs.shape[1:])
    for label in targets.unique():
        rows = (targets == label).nonzero().flatten().cpu()
        own = inputs[classes == label.cpu()]
        found[rows] = (
            shrunk_class_mean(inputs, classes, label.cpu())[None]
            if len(rows) == 1 or len(own) <= len(rows)
            else _centres(own, len(rows), fold(key, int(label)))
        )
    return found


def _centres(inputs: Tensor, count: int, key: int) -> Tensor:
    """Return k-means centres, repeated where there are fewer distinct examples."""
    flat = inputs.double().cpu().flatten(1)
    if count == 1:
        return inputs.double().cpu().mean(dim=0, keepdim=True)
    from sklearn.cluster import KMeans

    most = min(count, len(flat.unique(dim=0)))
    seed = fold(key, "public-centres") % 2**32
    fitted = KMeans(most, n_init="auto", random_state=seed).fit(flat.numpy())
    centres = torch.from_numpy(fitted.cluster_centers_)
    repeated = centres[torch.arange(count) % most]
    return repeated.reshape(count, *inputs.shape[1:])
