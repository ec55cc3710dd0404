"""One trial: a pure function from plain data to plain data.

Every random choice is folded from the seed and a name, so a trial has the same bits in
one process, in many, and in any order.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exhume.config import build
from exhume.errors import InvalidInput, MissingKnowledge, Unsuited
from exhume.keys import fold
from exhume.metrics.score import score
from exhume.problem.attack import Attack
from exhume.problem.batch import Batch
from exhume.problem.bound import Binds, Bound, BoundValue, NotApplicable, RiskValue
from exhume.problem.knowledge import Fact
from exhume.problem.reconstruction import Outcome, Reconstruction
from exhume.problem.release import Observation
from exhume.problem.threat import ThreatModel, target_order
from exhume.problem.world import World
from exhume.runs.executor import Job, measured
from exhume.runs.records import TrialResult, TrialSpec, binds
from exhume.trials.memorised import memorised
from exhume.trials.placebo import placebo_of
from exhume.trials.setting import labels_identify_order, make_setting
from exhume.trials.world import client_of, release_key

__all__ = ["TRIAL", "ordered_error", "record_of", "run_trial", "trial_job", "whom"]

_PADDED = (
    "the bound is on the mean error of all numbers of an example, and some numbers of "
    "these examples are padding, which no error counts"
)

_Array = np.ndarray[Any, np.dtype[np.float32]]


@measured(TrialResult, not_applicable=(MissingKnowledge, Unsuited))
def run_trial(spec: TrialSpec, folder: Path | None = None) -> TrialResult:
    """Run one attack or evaluate one bound; never raises, whatever goes wrong inside.

    An attack that lacks knowledge, or that does not fit the model, is
    ``not-applicable``; any other error makes a ``failed`` row that says what happened.

    Args:
        spec: what to run.
        folder: of an audit, which keeps the results of trainings for all its trials;
            None trains in this process. The result is the same.
    """
    if (spec.attack is None) == (spec.bound is None):
        msg = "a trial needs exactly one of an attack and a bound"
        raise InvalidInput(msg)
    setting = make_setting(spec.released, folder)
    release = setting.release
    result = TrialResult(
        spec=spec,
        status="done",
        facts={**release.facts},
        privacy=release.privacy,
        released_in_clear=release.in_clear,
        event=setting.world.batch.spec.record(),
        headline=setting.world.batch.spec.error,
        true_labels=setting.world.batch.targets.tolist(),
    )
    if spec.bound is not None:
        return _bounded(result, setting.world)
    return _attacked(result, setting.world, release.observation)


def trial_job(folder: Path | None = None) -> Job[TrialSpec, TrialResult]:
    """Return the job of trials.

    Args:
        folder: of the run, where the results of trainings lie; None trains where a
            trial runs.
    """
    return Job(partial(run_trial, folder=folder), TrialResult)


#: trials that make all they need themselves
TRIAL = trial_job()


def _bounded(result: TrialResult, world: World) -> TrialResult:
    spec = result.spec
    assert spec.bound is not None
    bound: Bound = build("bound", spec.bound)
    # The key of the observation: a random mask must be the one that attacks face.
    value = bound(world, world.prior, release_key(spec))
    padded = world.batch.spec.mask(world.batch.inputs) is not None
    if padded and isinstance(value, BoundValue):
        value = NotApplicable(_PADDED)
    if isinstance(value, NotApplicable):
        return replace(result, status="not-applicable", reason=value.reason)
    arrays = {}
    if isinstance(value, BoundValue) and value.per_coordinate is not None:
        arrays["bound_map"] = _array(value.per_coordinate)
        unreleased = client_of(spec).prior_variance
        if unreleased is not None:
            arrays["prior_map"] = _array(unreleased)
    return replace(result, bound=record_of(value), arrays=arrays)


def record_of(value: BoundValue | RiskValue) -> dict[str, Any]:
    """Write a bound as plain data; its array goes elsewhere."""
    kept = [f.name for f in fields(value) if f.name != "per_coordinate"]
    record = {name: getattr(value, name) for name in kept}
    record |= {
        "assumptions": list(value.assumptions),
        "binds": value.binds.name,
        "details": {name: float(v) for name, v in value.details.items()},
    }
    if isinstance(value, BoundValue):
        record |= {
            "mse": value.mse,
            "mse_standard_error": value.mse_standard_error,
            "per_example": list(value.per_example),
        }
    return record


def whom(result: TrialResult) -> str:
    """Return whom a trial's bound binds, in words; "" without a bound."""
    name = binds(result)
    known = Binds.__members__.get(name)
    return name if known is None else known.value


def _attacked(
    result: TrialResult, world: World, observation: Observation
) -> TrialResult:
    spec = result.spec
    assert spec.attack is not None
    attack: Attack = build("attack", spec.attack)
    threat = ThreatModel(spec.threat)
    if attack.baseline:
        # A chance level is the evaluator's own: it shows what guessing achieves, so it
        # has the public data whatever the threat.
        threat = replace(threat, facts=threat.known | {Fact.PUBLIC_DATA, Fact.PRIOR})
    seen = placebo_of(world, spec.released) if spec.placebo else (world, observation)
    problem = threat.reveal(*seen)
    guess = attack(problem, key=fold(spec.seed, "attack"))
    told = replace(
        result,
        baseline=attack.baseline,
        recognises=attack.recognises,
        outcome=(guess.outcome.name, guess.outcome.value),
        adaptive=guess.adaptive,
        notes=guess.notes,
        cost={name: float(v) for name, v in asdict(guess.cost).items()},
    )
    if guess.outcome is Outcome.NOT_APPLICABLE:
        reason = guess.notes[0] if guess.notes else guess.outcome.value
        return replace(told, status="not-applicable", reason=reason)
    if spec.placebo:
        return _scored(told, guess, world.batch)
    # Only now, after the attack has ended, is the truth looked at.
    known = problem.restricted(attack.needs | attack.uses)
    inputs = world.batch.inputs.to(world.task.dtype)
    at_truth = attack.objective(known, inputs, world.batch.targets)
    told = replace(
        told,
        objective=_number(guess.objective),
        objective_at_truth=_number(at_truth),
        trace=tuple(
            (p.restart, p.iteration, float(p.cpu_seconds), float(p.objective))
            for p in guess.trace
        ),
    )
    return _remembered(_scored(told, guess, world.batch), guess, world)


def _remembered(
    result: TrialResult, guess: Reconstruction, world: World
) -> TrialResult:
    """Add what shows memorisation, where what was shared is what a training left."""
    if world.mechanism.observation.kind not in ("weights", "fine-tuning"):
        return result
    facts, found = memorised(world, guess.inputs)
    arrays = {name: _array(tensor) for name, tensor in found.items()}
    return replace(
        result, facts={**result.facts, **facts}, arrays={**result.arrays, **arrays}
    )


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _scored(result: TrialResult, guess: Reconstruction, batch: Batch) -> TrialResult:
    scores = score(guess, batch, result.spec.metrics)
    facts = dict(result.facts)
    ordered = ordered_error(guess, batch)
    if ordered is not None:
        facts["ordered_mse"] = ordered
    return replace(
        result,
        scores={name: list(values) for name, values in scores.values.items()},
        not_applicable=dict(scores.not_applicable),
        guessed_labels=scores.targets.tolist(),
        facts=facts,
        arrays={"truth": _array(batch.inputs), "guess": _array(scores.inputs)},
    )


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


def _array(tensor: Tensor) -> _Array:
    return tensor.detach().to("cpu", torch.float32).numpy().copy()
