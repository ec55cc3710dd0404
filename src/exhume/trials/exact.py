"""The exact update F(S) of a setting: computed once, for all defenses that take it.

A training to the end costs more than most attacks on it. Its result therefore lies in a
file in the folder of the run: on the evaluator's side, beside results that hold the
private examples anyway, and never in what an attacker gets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from exhume.config import build
from exhume.errors import InvalidInput
from exhume.files import read_header
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.tree import Tree
from exhume.problem.world import World
from exhume.runs.records import SettingSpec
from exhume.trials.memory import Memory
from exhume.trials.world import calibrated, make_world, mechanism_of, release_key

__all__ = ["Exact", "exact_of", "exact_path", "exact_spec", "is_trained", "make_exact"]


@dataclass(frozen=True, eq=False)
class Exact:
    """What the clients of one run have computed, before any defense of the update.

    Attributes:
        clients: F(S) of each client, see :meth:`Mechanism.exact`.
        whole: what the observation model alone gives for the examples of all clients,
            the measure of noise and of releases.
    """

    clients: tuple[Tree, ...]
    whole: Tree

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor once, by a name of its own."""
        trees = {f"client.{k}": tree for k, tree in enumerate(self.clients)}
        if self.whole is not self.clients[0]:
            trees["whole"] = self.whole
        for part, tree in trees.items():
            yield from ((f"{part}/{name}", tensor) for name, tensor in tree.items())


def is_trained(spec: SettingSpec) -> bool:
    """Say whether F(S) is a training to the end, which is kept in a file."""
    observation: ObservationModel = build("observation", spec.observation)
    return observation.opaque is not None


def exact_spec(spec: SettingSpec) -> SettingSpec:
    """Return what F(S) depends on: settings that differ elsewhere share it."""
    mechanism = mechanism_of(spec)
    early = spec.defenses[: mechanism.shaping]
    public = spec.public_examples if early else 0
    if mechanism.aggregation is not None:
        early = (*early, spec.defenses[-1])
    return replace(spec, defenses=early, prior=None, public_examples=public)


def exact_path(folder: Path, spec: SettingSpec) -> Path:
    """Return the file of F(S) in the folder of a run."""
    return folder / "exact" / f"{exact_spec(spec).id}.safetensors"


def _bytes(exact: Exact) -> int:
    return sum(tensor.nbytes for _, tensor in exact.tensors())


_KEPT = Memory[Exact](_bytes)


def exact_of(world: World, spec: SettingSpec, folder: Path | None = None) -> Exact:
    """Return F(S): as it was kept, as it lies in a file, or computed now.

    Args:
        world: of the setting, with its plans.
        spec: of the setting.
        folder: of the run; None reads and writes no file.

    Raises:
        InvalidInput: a training fails, or its file is damaged.
    """
    key = exact_spec(spec).id
    found = _KEPT.get(key)
    if found is None:
        found = _read_or_compute(world, spec, folder)
        _KEPT.keep(key, found)
    return found


def _read_or_compute(world: World, spec: SettingSpec, folder: Path | None) -> Exact:
    if folder is None or world.mechanism.observation.opaque is None:
        return _compute(world, release_key(spec))
    path = exact_path(folder, spec)
    if path.exists():
        return _read(path)
    found = _compute(world, release_key(spec))
    _write(path, found)
    return found


def make_exact(spec: SettingSpec, folder: Path) -> None:
    """Compute F(S) and keep it in a file.

    Args:
        spec: of a setting that :func:`is_trained`.
        folder: of the run.

    Raises:
        ExhumeError: what would make every trial of this setting fail.
    """
    own = exact_spec(spec)
    exact_of(calibrated(make_world(own), own), own, folder)


def _compute(world: World, key: int) -> Exact:
    clients = world.exact(key)
    task, model = world.mechanism.transformed(world.task, world.plans(key))
    if world.mechanism.aggregation is None and model is world.mechanism.observation:
        return Exact(clients, clients[0])
    own = Candidate(world.batch.inputs.to(task.dtype), world.batch.targets)
    whole = world.mechanism.observation.forward(task, own)
    return Exact(clients, {name: tensor.detach() for name, tensor in whole.items()})


def _write(path: Path, exact: Exact) -> None:
    """Write a file, whole or not at all; it is on disk when this returns."""
    from safetensors.torch import save

    tensors = {n: t.cpu().clone().contiguous() for n, t in exact.tensors()}
    # The library sorts names, and sums over a tree depend on their order.
    metadata = {"order": json.dumps(list(tensors))}
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(save(tensors, metadata=metadata))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path) -> Exact:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        order = json.loads(read_header(path).metadata["order"])
        stored = load_file(path)
        trees: dict[str, Tree] = {}
        for label in order:
            part, name = label.split("/", 1)
            trees.setdefault(part, {})[name] = stored[label]
        whole = trees.pop("whole", None)
        clients = tuple(trees[f"client.{k}"] for k in range(len(trees)))
        return Exact(clients, clients[0] if whole is None else whole)
    except (InvalidInput, SafetensorError, KeyError, ValueError, IndexError) as error:
        msg = (
            f"{str(path)!r} is not the result of a training, or is damaged ({error}); "
            f"remove it, and it is computed again"
        )
        raise InvalidInput(msg) from error
