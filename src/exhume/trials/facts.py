"""Numbers about a setting, on the evaluator's side: sizes, norms, noise, fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.observations.weights import Weights
from exhume.problem.batch import Batch
from exhume.problem.observation import Candidate
from exhume.problem.reconstruction import Reconstruction
from exhume.problem.release import Observation
from exhume.problem.threat import target_order
from exhume.problem.tree import Tree, size
from exhume.problem.world import World
from exhume.runs.records import SettingFacts

__all__ = [
    "DELTA",
    "collect_facts",
    "collect_privacy",
    "cosine",
    "labels_identify_order",
    "ordered_error",
    "relative_noise",
    "released_in_clear",
]

#: δ of every ε in an audit: a convention, smaller than 1 / N of common data sets
DELTA = 1e-5


@formula(r"\sqrt{\textstyle\sum_j v_j} / \lVert g \rVert_2", reference="definition")
def relative_noise(variance: Mapping[str, Tensor], update: Tree) -> float:
    """Return the root-mean-square norm of the noise over the norm of the exact update.

    √(Σⱼ vⱼ) / ‖g‖, which is σ√P / ‖g‖ for isotropic noise.

    Args:
        variance: v by name, scalars or tensors of the parameter's shape.
        update: the exact update g by name.

    Returns:
        a ratio ≥ 0; infinite if the update is zero and there is noise.
    """
    power = sum(
        float(torch.broadcast_to(v, update[name].shape).double().sum())
        for name, v in variance.items()
    )
    if power == 0:
        return 0.0
    norm = _norm(update)
    return math.sqrt(power) / norm if norm > 0 else math.inf


@formula(
    r"\langle a, b \rangle / (\lVert a \rVert_2 \lVert b \rVert_2)",
    reference="definition",
)
def cosine(first: Tree, second: Tree) -> float:
    """Return the cosine of the angle between two trees, 0 if either vanishes."""
    product = sum(float((first[n].double() * second[n].double()).sum()) for n in first)
    norms = _norm(first) * _norm(second)
    return product / norms if norms > 0 else 0.0


def _norm(tree: Tree) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tree.values()))


def labels_identify_order(targets: Tensor) -> bool:
    """Say whether the labels tell the examples apart (always so for one example)."""
    rows = targets.reshape(len(targets), -1)
    return len(torch.unique(rows, dim=0)) == len(rows)


def collect_facts(world: World, observation: Observation, exact: Tree) -> SettingFacts:
    """Measure a setting; nothing here depends on an attack.

    Args:
        world: the evaluator's side.
        observation: one run of its mechanism.
        exact: what would have been released without a defense.
    """
    induced = world.mechanism.induced(world.task, observation.plans, observation.values)
    own = Candidate(world.batch.inputs.to(world.task.dtype), world.batch.targets)
    variance = induced.law.variance_of(induced.task, induced.model, own)
    facts: SettingFacts = {
        "parameters": float(size(exact)),
        "dimension": float(world.batch.spec.dimension),
        "unknowns": float(_unknowns(world.batch)),
        "public_examples": float(0 if world.public is None else len(world.public)),
        "gradient_norm": _norm(exact),
        "released_norm": _norm(observation.values),
        "cosine_to_exact": cosine(observation.values, exact),
        "relative_noise": relative_noise(variance, exact),
        "batch_norm_layers": float(len(observation.batch_statistics)),
        "labels_identify_order": float(labels_identify_order(world.batch.targets)),
    }
    if world.prior is not None and world.prior.fit_check is not None:
        facts["prior_fit"] = float(world.prior.fit_check)
    model = world.mechanism.observation
    if isinstance(model, Weights):
        left = model.left(induced.task, own, exact)
        facts["stationarity" if model.weight_decay else "training_loss"] = left
    return facts


def _unknowns(batch: Batch) -> int:
    """Count the numbers of all examples, without padding."""
    mask = batch.spec.mask(batch.inputs)
    return batch.inputs.numel() if mask is None else int(mask.sum())


def collect_privacy(world: World, observation: Observation) -> dict[str, Any]:
    """Account for the privacy of one release at δ = :data:`DELTA`, as plain data.

    Neighbours differ by one unit that is added or removed; ε is ∞ without a guarantee,
    and None where no accountant answers, with the reason in either case.
    """
    from exhume.bounds.accounting import epsilon

    guarantee = world.mechanism.guarantee(observation.plans)
    try:
        found = asdict(epsilon(guarantee, DELTA))
    except InvalidInput as error:
        found = {"value": None, "delta": DELTA, "reasons": (str(error),)}
        found |= {"unit": guarantee.unit, "adjacency": "add-or-remove"}
        found |= {"sampling_rate": 1.0, "steps": 1}
    return {
        "epsilon": found.pop("value"),
        **found,
        "reasons": list(found["reasons"]),
    }


def released_in_clear(observation: Observation) -> tuple[str, ...]:
    """List the tensors that no defense touched; none to list without a defense."""
    if not observation.plans:
        return ()
    touched = {name for plan in observation.plans for name in plan.covers}
    return tuple(name for name in observation.values if name not in touched)


def ordered_error(guess: Reconstruction, batch: Batch) -> float | None:
    """Return the mean squared error with examples paired by label, not by likeness.

    Bounds hold for this error: the best assignment uses the truth, and can fall below
    them.

    Args:
        guess: an attack's answer.
        batch: the truth; its padding is left out.

    Returns:
        the error per coordinate, or None where labels do not pair the examples.
    """
    if guess.inputs.shape != batch.inputs.shape:
        return None
    estimate, truth = guess.inputs.detach().double(), batch.inputs.double()
    if len(batch) > 1:
        if guess.targets.shape != batch.targets.shape:
            return None
        found, wanted = target_order(guess.targets), target_order(batch.targets)
        same = guess.targets[found].to(batch.targets) == batch.targets[wanted]
        if not bool(same.all()) or not labels_identify_order(batch.targets):
            return None
        estimate, truth = estimate[found], truth[wanted]
    difference, mask = estimate - truth, batch.spec.mask(truth)
    counted = difference if mask is None else difference[mask]
    return float(counted.square().mean())
