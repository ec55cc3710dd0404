"""The observation file: one ``.safetensors`` file that carries what was shared.

Tensors: ``gradient/<parameter>`` or ``update/<parameter>``; optionally
``reference/<parameter>`` and ``buffer/<name>`` (the weights at which it was computed),
``known/labels`` and ``known/batch-norm/<layer>/mean|variance`` (facts that the attacker
is given), and ``plan/<i>/<name>`` (arrays of the i-th defense's plan). The metadata
entry ``exhume`` is JSON, see :class:`exhume.observations.metadata.Metadata`. **The
private inputs are never in it**, and reading it never executes code: the observation
model and the defenses that it names are looked up among the registered ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from exhume.config import build, describe
from exhume.errors import ExhumeError, InvalidInput, shown
from exhume.files import read_header
from exhume.observations.metadata import FORMAT, DefenseRecord, Metadata, TaskRecord
from exhume.observations.metadata import parse as parse_metadata
from exhume.observations.shared import SharedObservation, Statistics
from exhume.problem.defense import Defense, Plan
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Unknown
from exhume.problem.observation import ObservationModel
from exhume.problem.task import Normalisation
from exhume.problem.tree import Tree

__all__ = ["load", "load_tensors", "save"]


def save(path: Path | str, shared: SharedObservation) -> Path:
    """Write an observation file, whole or not at all.

    Raises:
        InvalidInput: the name is not ``*.safetensors``, or event or mode is not set.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        msg = f"an observation file is called *.safetensors, got {path.name!r}"
        raise InvalidInput(msg)
    metadata = _metadata(shared).dump()
    # Clones: safetensors refuses views and tensors that share memory.
    tensors = {n: t.detach().cpu().clone().contiguous() for n, t in _tensors(shared)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(safetensors_torch.save(tensors, metadata=metadata))
    os.replace(partial, path)
    return path


def _tensors(shared: SharedObservation) -> list[tuple[str, Tensor]]:
    found = [(f"{shared.observation.kind}/{n}", t) for n, t in shared.values.items()]
    found += [(f"reference/{n}", t) for n, t in shared.reference.items()]
    found += [(f"buffer/{n}", t) for n, t in shared.buffers.items()]
    if shared.targets is not UNKNOWN:
        found.append(("known/labels", shared.targets))
    if shared.batch_statistics is not UNKNOWN:
        for layer, (mean, variance) in shared.batch_statistics.items():
            found.append((f"known/batch-norm/{layer}/mean", mean))
            found.append((f"known/batch-norm/{layer}/variance", variance))
    for i, plan in enumerate(shared.plans):
        found += [(f"plan/{i}/{n}", t) for n, t in plan.arrays.items()]
    return found


def _metadata(shared: SharedObservation) -> Metadata:
    spec, mode = shared.spec, shared.mode
    if spec is None or mode is None:
        msg = "an observation file says the event and the mode; set spec and mode"
        raise InvalidInput(msg)
    kind = shared.observation.kind
    if kind not in ("gradient", "update"):
        msg = (
            f"an observation file holds a gradient or an update, not {kind}; keep "
            f"trained weights as a plain checkpoint"
        )
        raise InvalidInput(msg)
    normalise = shared.normalise
    given = {
        "weights": bool(shared.reference),
        "labels": shared.targets is not UNKNOWN,
        "batch-size": shared.batch_size is not UNKNOWN,
        "batch-norm-statistics": shared.batch_statistics is not UNKNOWN,
        "defense": shared.defenses is not UNKNOWN,
    }
    if kind == "update":
        given["learning-rate"] = shared.observation.known_rate is not None
        given["batch-order"] = shared.observation.known_order is not None
    return Metadata(
        format=FORMAT,
        kind=kind,
        sign="gradient" if kind == "gradient" else "step",
        observation=None if kind == "gradient" else describe(shared.observation),
        task=TaskRecord(
            loss=str(shared.loss),
            mode=mode,
            event=spec.record(),
            normalise=normalise
            and {"mean": list(normalise.mean), "std": list(normalise.std)},
        ),
        reference_sha256=shared.reference_sha256,
        batch_size=None if shared.batch_size is UNKNOWN else shared.batch_size,
        defense=_defense_records(shared),
        facts=[fact for fact, is_given in given.items() if is_given],
        unknown=[fact for fact, is_given in given.items() if not is_given],
        released_in_clear=_in_clear(shared),
        made_by={"exhume": _version(), "torch": str(torch.__version__)},
    )


def _version() -> str:
    import exhume

    return exhume.__version__


def _in_clear(shared: SharedObservation) -> list[str]:
    if shared.defenses is UNKNOWN:
        return []
    covered = {name for plan in shared.plans for name in plan.covers}
    return [name for name in shared.values if name not in covered]


def _defense_records(shared: SharedObservation) -> list[DefenseRecord] | None:
    if shared.defenses is UNKNOWN:
        return None
    return [
        DefenseRecord(
            options=describe(defense),
            covers=list(plan.covers),
            numbers=dict(plan.numbers),
        )
        for defense, plan in zip(shared.defenses, shared.plans, strict=True)
    ]


def load_tensors(path: Path | str) -> Tree:
    """Read every tensor of a safetensors file.

    Raises:
        InvalidInput: not a file, a pickle, another format, truncated or invalid.
    """
    read_header(path)
    try:
        return safetensors_torch.load_file(path)
    except SafetensorError as error:
        msg = f"{str(path)!r} is not a valid safetensors file: {error}; write it again"
        raise InvalidInput(msg) from error


def load(path: Path | str) -> SharedObservation:
    """Read an observation file, or a plain file of gradients named as parameters.

    Raises:
        InvalidInput: not a safetensors file, truncated, of another format, without any
            gradient in it, or a name, option or plan in it is not valid.
    """
    what = repr(Path(path).name)
    metadata = parse_metadata(read_header(path).metadata, what=what)
    tensors = load_tensors(path)
    kind = metadata.kind if metadata else "gradient"
    values = _under(f"{kind}/", tensors) if metadata else dict(tensors)
    if not values:
        msg = f"{what} holds no {kind}; it has: {', '.join(tensors) or 'no tensors'}"
        raise InvalidInput(msg)
    if metadata is None:
        return SharedObservation(values=values)
    shared = SharedObservation(
        values=values,
        observation=_observation_model(metadata, what),
        spec=_spec(metadata.task.event, what),
        loss=metadata.task.loss,
        mode=metadata.task.mode,
        normalise=_normalisation(metadata.task.normalise, what),
        reference=_under("reference/", tensors),
        buffers=_under("buffer/", tensors),
        reference_sha256=metadata.reference_sha256,
        batch_size=UNKNOWN if metadata.batch_size is None else metadata.batch_size,
        targets=tensors.get("known/labels", UNKNOWN),
        batch_statistics=_statistics(_under("known/batch-norm/", tensors), what),
    )
    if metadata.defense is None:
        return shared
    stack = _defenses(metadata.defense, shared.values, tensors, what)
    return _fitting(replace(shared, **stack), what)


def _registered(kind: str, options: Mapping[str, Any] | str, where: str) -> Any:
    """Build what a file names, without importing anything for it."""
    try:
        return build(kind, options, own="refused")
    except ExhumeError as error:
        msg = f"{where}: {error}"
        raise InvalidInput(msg) from error


def _observation_model(metadata: Metadata, what: str) -> ObservationModel:
    model = _registered("observation", metadata.observation or "gradient", what)
    if model.kind != metadata.kind:
        msg = (
            f"{what} holds a {metadata.kind}, and its observation model describes "
            f"{model.kind}; write the file again"
        )
        raise InvalidInput(msg)
    return model


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Tree:
    return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}


def _spec(event: dict[str, Any], what: str) -> EventSpec:
    try:
        return EventSpec.from_record(event)
    except ExhumeError as error:
        msg = f"the metadata of {what}: {error}"
        raise InvalidInput(msg) from error


def _normalisation(
    record: dict[str, list[float]] | None, what: str
) -> Normalisation | None:
    if record is None:
        return None
    if set(record) != {"mean", "std"}:
        msg = f"normalise in {what} has {sorted(record)}; expected mean and std"
        raise InvalidInput(msg)
    return Normalisation(tuple(record["mean"]), tuple(record["std"]))


def _statistics(tensors: Tree, what: str) -> Statistics | Unknown:
    layers = dict.fromkeys(name.rsplit("/", 1)[0] for name in tensors)
    try:
        pairs = {n: (tensors[f"{n}/mean"], tensors[f"{n}/variance"]) for n in layers}
    except KeyError as error:
        msg = f"{what} lacks the tensor 'known/batch-norm/{error.args[0]}'"
        raise InvalidInput(msg) from error
    return pairs or UNKNOWN


def _defenses(
    records: list[DefenseRecord], values: Tree, tensors: Tree, what: str
) -> dict[str, Any]:
    shapes = {name: tuple(t.shape) for name, t in values.items()}
    defenses: list[Defense] = []
    plans: list[Plan] = []
    for i, record in enumerate(records):
        where = f"defense {i} in {what}"
        foreign = [n for n in record.covers if n not in values]
        if foreign:
            msg = f"{where} covers {shown(foreign[0])}, which it does not hold"
            raise InvalidInput(msg)
        defenses.append(_registered("defense", record.options, where))
        plans.append(
            Plan(
                defense=record.options["name"],
                shapes=shapes,
                covers=tuple(record.covers),
                numbers=record.numbers,
                arrays=_under(f"plan/{i}/", tensors),
            )
        )
    return {"defenses": tuple(defenses), "plans": tuple(plans)}


def _fitting(shared: SharedObservation, what: str) -> SharedObservation:
    """Return what was read if its plans are those of its defenses, or raise."""
    try:
        _ = shared.law
    except ExhumeError:
        raise
    except Exception as error:  # a plan from a file may lack, or hold, anything
        msg = (
            f"the plan of a defense in {what} does not fit it ({type(error).__name__}: "
            f"{error}); write the file again with exhume.observations.file.save"
        )
        raise InvalidInput(msg) from error
    return shared
