"""Measure one point: release, attack, bound; a pure function of plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from exhume.errors import ExhumeError, InvalidInput
from exhume.runs.executor import Job, measured
from exhume.theory.point import PointResult, PointSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from exhume.attacks.two_layer.view import TwoLayerView
    from exhume.problem.release import Observation
    from exhume.problem.task import Task
    from exhume.problem.world import World

__all__ = ["ARMS", "MEASURE", "measure"]

#: arm → options of the tensor attack
ARMS: dict[str, dict[str, Any]] = {
    "moments": {"subspace": "moments"},
    "svd": {"subspace": "svd"},
    "auto": {"subspace": "auto"},
    "polished": {"subspace": "auto", "polish": 20},
}


@measured(PointResult)
def measure(spec: PointSpec) -> PointResult:
    """Measure a point; never raises, whatever goes wrong inside."""
    return PointResult(spec=spec, status="done", **_found(spec))


#: how executors measure points
MEASURE = Job(measure, PointResult)


def _found(spec: PointSpec) -> dict[str, Any]:
    from exhume.observations.gradient import Gradient
    from exhume.problem.mechanism import Mechanism
    from exhume.problem.world import World
    from exhume.theory.network import RELEASED, batch_of, task_of
    from exhume.theory.stacks import stack

    batch = batch_of(spec)
    world = World(task_of(spec), batch, Mechanism(Gradient(), stack(spec)))
    observation = world.observe(spec.seed)
    found: dict[str, Any] = {
        "errors": {},
        "arrays": {},
        "notes": (),
        "gradient_norm": _norm(spec, world),
    }
    view = _view(spec, world, observation)
    for arm in spec.arms:
        try:
            error, guess = _attacked(spec, arm, view, batch.inputs)
        except ExhumeError as failure:
            found["notes"] += (f"{arm}: {failure}",)
            continue
        found["errors"][arm] = error
        if spec.inputs == "images":
            found["arrays"][arm] = guess.numpy()
    if spec.inputs == "images":
        found["similarity"] = _similarity(spec, found["arrays"])
        found["arrays"]["truth"] = batch.inputs.numpy()
    released = observation.values[RELEASED[spec.layer]]
    return found | (
        _floors(spec, world, released, found["notes"]) if spec.floor else {}
    )


def _view(spec: PointSpec, world: World, observation: Observation) -> TwoLayerView:
    """Read a release as every attack on a task does: dropped units, filled entries."""
    from exhume.attacks.two_layer.locate import locate
    from exhume.problem.knowledge import Fact
    from exhume.problem.threat import ThreatModel

    problem = ThreatModel("parameter-aware").reveal(world, observation)
    task: Task = problem.require(Fact.WEIGHTS)
    located = locate(problem, task, spec.examples)
    if isinstance(located, str):
        raise InvalidInput(located)
    return located.view


def _norm(spec: PointSpec, world: World) -> float:
    """Return ‖G‖ of the batch; for DP-SGD, which clips examples, their mean."""
    from exhume.theory.network import unit

    x, y = world.batch.inputs, world.batch.targets
    rows = [slice(i, i + 1) for i in range(len(x))]
    parts = rows if spec.row == "dp-sgd" else [slice(0, len(x))]
    norms = [
        float(next(iter(world.task.gradient(x[r], y[r]).values())).norm())
        / unit(spec.layer, spec.width, len(x[r]))
        for r in parts
    ]
    return sum(norms) / len(norms)


def _attacked(
    spec: PointSpec, arm: str, view: TwoLayerView, truth: Tensor
) -> tuple[float, Tensor]:
    """Run one arm on what a client released; return the error and the estimates."""
    from exhume.attacks.two_layer.recovery import recover_inputs
    from exhume.keys import fold
    from exhume.theory.distance import aligned, rms_distance

    found = recover_inputs(
        view,
        spec.examples,
        source=spec.layer,
        norm=1.0,
        key=fold(spec.seed, "attack", arm),
        **ARMS[arm],
    )
    # The hidden gradient of an odd activation does not tell a sign at all.
    signed = not (spec.layer == "hidden" and view.sigma.odd)
    guess = aligned(found.directions.to(truth), truth, signed=signed)
    return rms_distance(guess, truth), guess


def _similarity(
    spec: PointSpec, guesses: Mapping[str, np.ndarray]
) -> dict[str, list[float]]:
    """Return the SSIM of every image by arm, within the range of the data.

    The network saw images of norm 1, so lengths are those of the originals.
    """
    import torch

    from exhume.config import build
    from exhume.theory.network import pictures

    truth, ssim = pictures(spec), build("metric", {"name": "ssim"})
    lengths = truth.inputs.double().flatten(1).norm(dim=1, keepdim=True)
    found = {}
    for arm, guess in guesses.items():
        images = (torch.from_numpy(guess) * lengths).reshape(truth.inputs.shape)
        values = ssim(truth.spec.clamp(images), truth.inputs, truth.spec)
        if isinstance(values, torch.Tensor):
            found[arm] = values.tolist()
    return found


def _floors(
    spec: PointSpec, world: World, released: Tensor, notes: tuple[str, ...]
) -> dict[str, Any]:
    """Compute the exact lower bound, and for pruning the one without the mask."""
    from exhume.bounds.rates.exact import Floor, floor_at

    found: dict[str, Any] = {"notes": notes}
    if spec.row == "pruning":
        bare = floor_at(_told_mask(spec, world, None), spec.seed, unit_norm=True)
        found["unmasked"] = bare.rms if isinstance(bare, Floor) else None
        world = _told_mask(spec, world, released)
    floor = floor_at(world, spec.seed, unit_norm=True)
    if isinstance(floor, Floor):
        found["floor"] = floor.rms
    else:
        found["notes"] += (f"no lower bound: {floor.reason}",)
    return found


def _told_mask(spec: PointSpec, world: World, released: Tensor | None) -> World:
    """Return the world in which the pattern of zeros is public, or nothing is pruned.

    The choice of the largest entries jumps as the data move, so that it has no Fisher
    information. A mask that is given has, and an attacker who is given it and does not
    look at how it was chosen is bound by that.
    """
    import exhume
    from exhume.problem.mechanism import Mechanism
    from exhume.theory.network import RELEASED

    ratio = 0.0 if released is None else spec.ratio
    mask = exhume.defense("pruning", ratio=ratio, kind="random")
    before = world.mechanism.defenses[:-1]
    told = dataclasses.replace(
        world, mechanism=Mechanism(world.mechanism.observation, (*before, mask))
    )
    if released is not None and ratio > 0:
        plans = told.plans(spec.seed)
        arrays = {RELEASED[spec.layer]: released != 0}
        own = dataclasses.replace(plans[-1], arrays=arrays)
        told = told.with_plans(spec.seed, (*plans[:-1], own))
    return told
