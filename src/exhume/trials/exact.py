"""The exact update F(S) of a setting: computed once, for all defenses that take it.

A training to the end costs more than most attacks on it. So it is a job of its own, and
its result lies in a file in the folder of the run: on the evaluator's side, beside
results that hold the private examples anyway, and never in what an attacker gets.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Generic, Literal, TypeVar

from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from exhume.config import build
from exhume.errors import InvalidInput
from exhume.files import read_header
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.tree import Tree, detached
from exhume.problem.world import World
from exhume.runs.executor import Job, measured
from exhume.runs.records import SettingSpec
from exhume.runs.settings import made, write_bytes, write_text
from exhume.trials.world import calibrated, make_world, mechanism_of, release_key

__all__ = [
    "Exact",
    "Memory",
    "TrainingResult",
    "Trainings",
    "exact_of",
    "exact_spec",
    "is_trained",
    "run_training",
    "training_job",
    "training_specs",
]


Value = TypeVar("Value")


class Memory(Generic[Value]):
    """Results of pure functions by key, so that a hit cannot change a result.

    Args:
        limit: bytes that are kept at most; the values longest unused give way.
    """

    def __init__(self, limit: int = 2**28) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, tuple[Value, int]] = OrderedDict()

    def get(self, key: str) -> Value | None:
        """Return what is kept under a key, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keep(self, key: str, value: Value, tensors: Iterable[Tensor]) -> None:
        """Keep a value, which holds these tensors."""
        self._kept[key] = value, sum(tensor.nbytes for tensor in tensors)
        self._kept.move_to_end(key)
        while sum(held for _, held in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)


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
        for k, tree in enumerate(self.clients):
            for name, tensor in tree.items():
                yield f"client.{k}/{name}", tensor
        if self.whole is not self.clients[0]:
            for name, tensor in self.whole.items():
                yield f"whole/{name}", tensor


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


def training_specs(specs: Iterable[SettingSpec]) -> list[SettingSpec]:
    """List the trainings that settings wait for, each once."""
    settings = {spec.id: spec for spec in specs if is_trained(spec)}
    found = map(exact_spec, settings.values())
    return list({spec.id: spec for spec in found}.values())


_KEPT = Memory[Exact]()


def exact_of(world: World, spec: SettingSpec, folder: Path | None = None) -> Exact:
    """Return F(S): as this process kept it, as a training left it, or computed now.

    Args:
        world: of the setting, with its plans.
        spec: of the setting.
        folder: of the run, see :class:`Trainings`; None trains here.

    Raises:
        InvalidInput: the training fails or has failed, or its file is damaged.
    """
    key = exact_spec(spec).id
    found = _KEPT.get(key)
    if found is None:
        found = Trainings(folder).read(key) if folder and is_trained(spec) else None
        found = found or _compute(world, release_key(spec))
        _KEPT.keep(key, found, dict(found.tensors()).values())
    return found


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingResult:
    """How a training ended; F(S) is in its file.

    Attributes:
        spec: what the training depends on, see :func:`exact_spec`.
        status: ``done`` or ``failed``.
        reason: one sentence if failed, else "".
        seconds: wall time.
        versions: of exhume, torch, numpy and Python.
    """

    spec: SettingSpec
    status: Literal["done", "failed"]
    reason: str = ""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)


@measured(TrainingResult)
def run_training(spec: SettingSpec, folder: Path) -> TrainingResult:
    """Train as a setting says and keep F(S) in its file; never raises.

    Args:
        spec: what the training depends on, see :func:`exact_spec`.
        folder: of the run.
    """
    exact = _compute(calibrated(make_world(spec), spec), release_key(spec))
    Trainings(folder).write(spec.id, exact)
    _KEPT.keep(spec.id, exact, dict(exact.tensors()).values())
    return TrainingResult(spec=spec, status="done")


def training_job(folder: Path) -> Job[SettingSpec, TrainingResult]:
    """Return the job of trainings, whose results go to the folder of the run."""
    return Job(partial(run_training, folder=folder), TrainingResult)


class Trainings:
    """The trainings of a run: a file for F(S) of each, or for why it failed.

    The private examples could be read from these files.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "exact"
        self._results: dict[str, TrainingResult] = {}

    def path(self, key: str) -> Path:
        """Return the file of F(S)."""
        return self._folder / f"{key}.safetensors"

    def finished(self) -> set[str]:
        """List the trainings that need not run again."""
        return {file.stem for file in self._folder.glob("*.safetensors")}

    def get(self, key: str) -> TrainingResult | None:
        """Return how a training ended, if it ended in this run."""
        return self._results.get(key)

    def put(self, result: TrainingResult) -> None:
        """Keep why a training failed, for the trials that wait for it."""
        self._results[result.spec.id] = result
        why = self._why(result.spec.id)
        if result.status == "failed":
            write_text(made(self._folder) / why.name, result.reason)
        else:
            why.unlink(missing_ok=True)

    def _why(self, key: str) -> Path:
        return self._folder / f"{key}.failed.txt"

    def write(self, key: str, exact: Exact) -> None:
        """Write F(S), whole or not at all."""
        tensors = {n: t.cpu().clone().contiguous() for n, t in exact.tensors()}
        # The library sorts names, and sums over a tree depend on their order.
        order = {"order": json.dumps(list(tensors))}
        content = safetensors_torch.save(tensors, metadata=order)
        write_bytes(made(self._folder) / self.path(key).name, content)

    def read(self, key: str) -> Exact | None:
        """Read F(S); None if the training has not ended.

        Raises:
            InvalidInput: it failed, or its file is damaged.
        """
        path = self.path(key)
        if not path.exists():
            why = self._why(key)
            if why.exists():
                raise InvalidInput(why.read_text(encoding="utf-8"))
            return None
        try:
            order = json.loads(read_header(path).metadata["order"])
            return _assembled(order, safetensors_torch.load_file(path))
        except (InvalidInput, SafetensorError, LookupError, ValueError) as error:
            msg = (
                f"{str(path)!r} is not the result of a training, or is damaged "
                f"({error}); remove it, and run again"
            )
            raise InvalidInput(msg) from error


def _assembled(order: list[str], stored: Tree) -> Exact:
    trees: dict[str, Tree] = {}
    for label in order:
        part, name = label.split("/", 1)
        trees.setdefault(part, {})[name] = stored[label]
    whole = trees.pop("whole", None)
    clients = tuple(trees[f"client.{k}"] for k in range(len(trees)))
    return Exact(clients, clients[0] if whole is None else whole)


def _compute(world: World, key: int) -> Exact:
    clients = world.exact(key)
    task, model = world.mechanism.transformed(world.task, world.plans(key))
    if world.mechanism.aggregation is None and model is world.mechanism.observation:
        return Exact(clients, clients[0])
    own = Candidate(world.batch.inputs.to(task.dtype), world.batch.targets)
    whole = world.mechanism.observation.forward(task, own)
    return Exact(clients, detached(whole))
