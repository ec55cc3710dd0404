"""One client and one release, made once for all that faces it, and measured.

Everything here lies on the evaluator's side: sizes, norms, noise, fit and privacy of a
setting depend on no attack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exhume.errors import ExhumeError, InvalidInput
from exhume.formula import formula
from exhume.observations.weights import Weights
from exhume.problem.observation import Candidate
from exhume.problem.release import Observation
from exhume.problem.tree import Tree, size
from exhume.problem.world import World
from exhume.runs.records import SettingFacts, SettingSpec
from exhume.trials.exact import Memory, exact_of, is_trained
from exhume.trials.world import calibrated, make_world, release_key

__all__ = [
    "DELTA",
    "Release",
    "Setting",
    "collect_facts",
    "collect_privacy",
    "cosine",
    "labels_identify_order",
    "make_setting",
    "prepare",
    "relative_noise",
    "released_in_clear",
]

#: δ of every ε in an audit: a convention, smaller than 1 / N of common data sets
DELTA = 1e-5


@dataclass(frozen=True, eq=False)
class Release:
    """One run of a client's mechanism, and what the evaluator measured of it.

    Attributes:
        observation: what the run produced.
        facts: numbers about the setting, see :func:`collect_facts`.
        privacy: what differential privacy promises, see :func:`collect_privacy`.
        in_clear: tensors that no defense touched.
    """

    observation: Observation
    facts: SettingFacts
    privacy: dict[str, Any]
    in_clear: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Setting:
    """One client, one release: the truth and what was shared of it.

    It stays with the evaluator; :meth:`ThreatModel.reveal` alone takes from it what an
    attacker gets.

    Attributes:
        spec: as plain data.
        world: the truth, with the plans of the release.
        release: what was shared, and its measures.
    """

    spec: SettingSpec
    world: World
    release: Release


_KEPT = Memory[Release]()


def make_setting(spec: SettingSpec, folder: Path | None = None) -> Setting:
    """Make a setting, or take the release that this process made of it before.

    Args:
        spec: as plain data.
        folder: of the run, which keeps the results of trainings; None trains here.

    Raises:
        ExhumeError: the client cannot compute, defend or release its update.
    """
    world, key = make_world(spec), release_key(spec)
    release = _KEPT.get(spec.id)
    if release is not None:
        return Setting(spec, world.with_plans(key, release.observation.plans), release)
    world = calibrated(world, spec)
    exact = exact_of(world, spec, folder)
    observation = world.observe(key, exact=exact.clients)
    release = Release(
        observation,
        collect_facts(world, observation, exact.whole),
        collect_privacy(world, observation),
        released_in_clear(observation),
    )
    held = [observation.values.values(), *observation.batch_statistics.values()]
    held += [plan.arrays.values() for plan in observation.plans]
    _KEPT.keep(spec.id, release, chain.from_iterable(held))
    return Setting(spec, world, release)


def prepare(spec: SettingSpec) -> None:
    """Build a setting and observe it once, to find errors early.

    A training to the end is left to its own job: here the model predicts once.

    Raises:
        ExhumeError: what would make every trial of this setting fail.
    """
    world = make_world(spec)
    try:
        world = calibrated(world, spec)
        if is_trained(spec):
            inputs = world.batch.inputs.to(world.task.dtype)
            with torch.no_grad():
                world.task.predict(inputs, world.task.parameters())
        else:
            exact = exact_of(world, spec)
            world.observe(release_key(spec), exact=exact.clients)
    except (ValueError, RuntimeError, IndexError) as error:  # how torch says "no fit"
        if isinstance(error, ExhumeError):
            raise
        msg = (
            f"the gradient of the private batch cannot be computed ({error}); check "
            f"that the model, the loss, the mode and the data fit together"
        )
        raise InvalidInput(msg) from error


# --- what is measured ----------------------------------------------------------------


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
    inputs, mask = world.batch.inputs, world.batch.spec.mask(world.batch.inputs)
    own = Candidate(inputs.to(world.task.dtype), world.batch.targets)
    variance = induced.law.variance_of(induced.task, induced.model, own)
    facts: SettingFacts = {
        "parameters": float(size(exact)),
        "dimension": float(world.batch.spec.dimension),
        "unknowns": float(inputs.numel() if mask is None else mask.sum()),
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
    clear = dict.fromkeys(observation.values if observation.plans else ())
    for plan in observation.plans:
        for name in plan.covers:
            clear.pop(name, None)
    return tuple(clear)
