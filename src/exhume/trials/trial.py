"""One trial: a pure function from plain data to plain data.

Every random choice is folded from the seed and a name, so a trial has the same bits in
one process, in many, and in any order.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exhume.config import build
from exhume.data.split import split
from exhume.errors import ExhumeError, InvalidInput, MissingKnowledge, Unsuited
from exhume.keys import fold, generator
from exhume.metrics.score import score
from exhume.problem.attack import Attack
from exhume.problem.batch import Batch
from exhume.problem.bound import Bound, BoundValue, NotApplicable
from exhume.problem.knowledge import Fact
from exhume.problem.mechanism import Mechanism
from exhume.problem.prior import Density
from exhume.problem.reconstruction import Outcome, Reconstruction
from exhume.problem.release import Observation
from exhume.problem.source import DataSource
from exhume.problem.task import Task
from exhume.problem.threat import ThreatModel
from exhume.problem.world import World
from exhume.runs.job import measured
from exhume.runs.records import TrialResult, TrialSpec
from exhume.trials.bound_record import record_of
from exhume.trials.calibrated import PlanMemory
from exhume.trials.facts import (
    collect_facts,
    collect_privacy,
    ordered_error,
    released_in_clear,
)
from exhume.trials.memorised import memorised

__all__ = [
    "class_count",
    "make_world",
    "prepare",
    "run_trial",
]

_Array = np.ndarray[Any, np.dtype[np.float32]]
_Arrays = dict[str, _Array]

#: fields of a spec that the data, the model and the prior depend on
_SHARED = (
    "data",
    "model",
    "loss",
    "mode",
    "dtype",
    "classes",
    "batch_size",
    "seed",
    "prior",
)


@measured(TrialResult, not_applicable=(MissingKnowledge, Unsuited))
def run_trial(spec: TrialSpec) -> TrialResult:
    """Run one attack or evaluate one bound; never raises, whatever goes wrong inside.

    An attack that lacks knowledge, or that does not fit the model, is
    ``not-applicable``; any other error makes a ``failed`` row that says what happened.
    """
    return _evaluate(spec)


@dataclass(frozen=True, eq=False)
class _Shared:
    """What trials of one seed have in common, whatever the defense and the attack."""

    private: Batch
    public: Batch | None
    task: Task
    prior: Density | None


def make_world(spec: TrialSpec) -> World:
    """Build the evaluator's side of a trial, the truth included."""
    shared = _shared(_key(spec, *_SHARED))
    return World(
        shared.task, shared.private, _mechanism(spec), shared.public, shared.prior
    )


def prepare(spec: TrialSpec) -> None:
    """Build the world of a trial and observe it once, to find errors early.

    Raises:
        ExhumeError: what would make every trial of this setting fail.
    """
    world = make_world(spec)
    try:
        _calibrate(world, spec)
        world.observe(fold(spec.seed, "observe"))
    except (ValueError, RuntimeError, IndexError) as error:  # how torch says "no fit"
        if isinstance(error, ExhumeError):
            raise
        msg = (
            f"the gradient of the private batch cannot be computed ({error}); check "
            f"that the model, the loss, the mode and the data fit together"
        )
        raise InvalidInput(msg) from error


def _calibrate(world: World, spec: TrialSpec) -> None:
    """Make the plans on as many public examples as the spec says.

    Attacks, bounds and the prior have the others as well: who defends may know less.
    """
    key, public = fold(spec.seed, "observe"), world.public
    few = spec.public_examples
    if key in world.calibrated or public is None or not 0 < few < len(public):
        return
    chosen = torch.randperm(len(public), generator=generator(spec.seed, "public"))
    part = public.select(chosen[:few].sort().values)
    world.calibrated[key] = world.mechanism.calibrate(world.task, part, key)


def _key(spec: TrialSpec, *names: str) -> str:
    return json.dumps({name: getattr(spec, name) for name in names}, sort_keys=True)


def _mechanism(spec: TrialSpec) -> Mechanism:
    defenses = tuple(build("defense", options) for options in spec.defenses)
    return Mechanism(build("observation", spec.observation), defenses)


# Small caches: one process runs the trials of a seed after each other. They are keyed
# by plain data alone, so that a hit cannot change a result.
@lru_cache(maxsize=4)
def _loaded(options: str) -> tuple[DataSource, Batch]:
    source: DataSource = build("data", json.loads(options))
    return source, source.load()


_PLANS = PlanMemory()


@lru_cache(maxsize=2)
def _shared(key: str) -> _Shared:
    spec = TrialSpec(**json.loads(key))
    private, public, task = _data_and_task(spec)
    if spec.prior is None:
        return _Shared(private, public, task, None)
    if public is None:
        raise _no_public(spec)
    return _Shared(private, public, task, build("prior", spec.prior).fit(public, task))


def _no_public(spec: TrialSpec) -> InvalidInput:
    return InvalidInput(
        f"all {spec.batch_size} examples of the data are private, so none is left to "
        f"fit the prior to; add data, or set prior = 'none'"
    )


def _data_and_task(spec: TrialSpec) -> tuple[Batch, Batch | None, Task]:
    source, whole = _loaded(json.dumps(spec.data, sort_keys=True))
    private, public = split(whole, source, spec.batch_size, fold(spec.seed, "split"))
    classes = class_count(spec.classes, whole.targets, spec.loss)
    model = build("model", spec.model).build(
        whole.spec, classes, fold(spec.seed, "weights")
    )
    dtype = getattr(torch, spec.dtype)
    task = Task(model.to(dtype), spec.loss, spec.mode)
    return private.to(dtype), None if public is None else public.to(dtype), task


def class_count(classes: int, targets: Tensor, loss: str = "cross-entropy") -> int:
    """Return the number K of outputs.

    Args:
        classes: as the settings give it; 0 takes it from the labels.
        targets: of the whole data set.
        loss: ``logistic`` has one output for two classes.

    Raises:
        InvalidInput: there are more labels than classes.
    """
    if targets.is_floating_point():
        return classes or int(targets[0].numel())
    found = int(targets.max()) + 1
    if loss == "logistic":
        return _one_output(classes, found)
    if classes and classes < found:
        msg = (
            f"classes is {classes}, but the data has labels up to {found - 1}; "
            f"set classes to at least {found}, or 0 to take it from the data"
        )
        raise InvalidInput(msg)
    return classes or max(found, 2)


def _one_output(classes: int, found: int) -> int:
    if classes in (0, 1) and found <= 2:
        return 1
    got = f"labels up to {found - 1}" if found > 2 else f"classes = {classes}"
    msg = (
        f"the loss 'logistic' is for two classes and one output, got {got}; use "
        f"'cross-entropy', or data with labels 0 and 1 and classes = 0"
    )
    raise InvalidInput(msg)


def _evaluate(spec: TrialSpec) -> TrialResult:
    if (spec.attack is None) == (spec.bound is None):
        msg = "a trial needs exactly one of an attack and a bound"
        raise InvalidInput(msg)
    world = make_world(spec)
    calibrated = _key(spec, *_SHARED, "observation", "defenses", "public_examples")
    world.calibrated.update(_PLANS.of(calibrated))
    _calibrate(world, spec)
    observation = world.observe(fold(spec.seed, "observe"))
    _PLANS.keep(calibrated, world.calibrated)
    setting = TrialResult(
        spec=spec,
        status="done",
        facts=collect_facts(world, observation),
        privacy=collect_privacy(world, observation),
        released_in_clear=released_in_clear(observation),
        true_labels=world.batch.targets.tolist(),
    )
    if spec.bound is not None:
        return _bounded(setting, world)
    return _attacked(setting, world, observation)


def _bounded(setting: TrialResult, world: World) -> TrialResult:
    spec = setting.spec
    assert spec.bound is not None
    bound: Bound = build("bound", spec.bound)
    # The key of the observation: a random mask must be the one that attacks face.
    value = bound(world, world.prior, fold(spec.seed, "observe"))
    if isinstance(value, NotApplicable):
        return replace(setting, status="not-applicable", reason=value.reason)
    arrays = {}
    if isinstance(value, BoundValue) and value.per_coordinate is not None:
        arrays = {"bound_map": _array(value.per_coordinate)}
        arrays |= _prior_map(_key(spec, *_SHARED))
    return replace(setting, bound=record_of(value), arrays=arrays)


@lru_cache(maxsize=2)
def _prior_map(key: str) -> _Arrays:
    """Return what every bound becomes if nothing is released: the diagonal of J_P⁻¹."""
    shared = _shared(key)
    if shared.prior is None or "information" not in shared.prior.supports:
        return {}
    variances = torch.linalg.inv(shared.prior.information().double()).diagonal()
    return {"prior_map": _array(variances.reshape(shared.private.spec.shape))}


def _threat(spec: TrialSpec, attack: Attack) -> ThreatModel:
    """Return what an attack is told; a chance level is the evaluator's own.

    It shows what guessing achieves, so it has the public data whatever the threat.
    """
    threat = ThreatModel(spec.threat)
    if not attack.baseline:
        return threat
    guessing = threat.known | {Fact.PUBLIC_DATA, Fact.PRIOR}
    return replace(threat, facts=guessing)


def _attacked(
    setting: TrialResult, world: World, observation: Observation
) -> TrialResult:
    spec = setting.spec
    assert spec.attack is not None
    attack: Attack = build("attack", spec.attack)
    problem = _threat(spec, attack).reveal(world, observation)
    guess = attack(problem, key=fold(spec.seed, "attack"))
    told = replace(
        setting,
        baseline=attack.baseline,
        outcome=(guess.outcome.name, guess.outcome.value),
        adaptive=guess.adaptive,
        notes=guess.notes,
        cost={name: float(v) for name, v in asdict(guess.cost).items()},
    )
    if guess.outcome is Outcome.NOT_APPLICABLE:
        reason = guess.notes[0] if guess.notes else guess.outcome.value
        return replace(told, status="not-applicable", reason=reason)
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
    scores = score(guess, batch)
    facts = dict(result.facts)
    ordered = ordered_error(guess, batch.targets, batch.inputs)
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


def _array(tensor: Tensor) -> _Array:
    return tensor.detach().to("cpu", torch.float32).numpy().copy()
