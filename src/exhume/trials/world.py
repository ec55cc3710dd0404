"""From plain data to the evaluator's side: data, model, prior and mechanism."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from exhume.config import build
from exhume.errors import InvalidInput
from exhume.keys import fold, generator
from exhume.problem.batch import Batch
from exhume.problem.losses import loss_named
from exhume.problem.mechanism import Mechanism
from exhume.problem.prior import Density
from exhume.problem.source import DataSource
from exhume.problem.task import Task
from exhume.problem.world import World
from exhume.runs.records import SettingSpec

__all__ = [
    "Client",
    "calibrated",
    "class_count",
    "client_of",
    "make_world",
    "mechanism_of",
    "release_key",
    "split",
]

#: fields of a spec that a client depends on
_CLIENT = (
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


@dataclass(frozen=True, eq=False)
class Client:
    """What all releases of one seed have in common, whatever the mechanism.

    Attributes:
        private: the private S.
        public: the other examples of the data, or None.
        task: model, loss, mode.
        prior: a density fitted to the public examples, or None.
    """

    private: Batch
    public: Batch | None
    task: Task
    prior: Density | None

    @cached_property
    def prior_variance(self) -> Tensor | None:
        """What a bound is if nothing is released, diag J_P⁻¹, of the event's shape."""
        if self.prior is None or "information" not in self.prior.supports:
            return None
        variances = torch.linalg.inv(self.prior.information().double()).diagonal()
        return variances.reshape(self.private.spec.shape)


def make_world(spec: SettingSpec) -> World:
    """Build the evaluator's side of a setting, the truth included."""
    client = client_of(spec)
    return World(
        client.task, client.private, mechanism_of(spec), client.public, client.prior
    )


def calibrated(world: World, spec: SettingSpec) -> World:
    """Return the world with its plans, made on as many public examples as asked for.

    Attacks, bounds and the prior have the others as well: who defends may know less.
    """
    key, public, few = release_key(spec), world.public, spec.public_examples
    if public is None or not 0 < few < len(public):
        world.plans(key)
        return world
    chosen = torch.randperm(len(public), generator=generator(spec.seed, "public"))
    part = public.select(chosen[:few].sort().values)
    return world.with_plans(key, world.mechanism.calibrate(world.task, part, key))


def release_key(spec: SettingSpec) -> int:
    """Return the key of the release that all attacks and bounds of a setting face."""
    return fold(spec.seed, "observe")


def mechanism_of(spec: SettingSpec) -> Mechanism:
    """Build the observation model and its defenses."""
    defenses = tuple(build("defense", options) for options in spec.defenses)
    return Mechanism(build("observation", spec.observation), defenses)


def client_of(spec: SettingSpec) -> Client:
    """Load the data, build the model and fit the prior; the latest two are kept."""
    named = {name: getattr(spec, name) for name in _CLIENT}
    return _client(json.dumps(named, sort_keys=True))


# Small caches: one process runs the trials of a seed after each other. They are keyed
# by plain data alone, so that a hit cannot change a result.
@lru_cache(maxsize=4)
def _loaded(options: str) -> tuple[DataSource, Batch]:
    source: DataSource = build("data", json.loads(options))
    return source, source.load()


@lru_cache(maxsize=2)
def _client(key: str) -> Client:
    spec = SettingSpec(**json.loads(key))
    source, whole = _loaded(json.dumps(spec.data, sort_keys=True))
    private, public = split(whole, source, spec.batch_size, fold(spec.seed, "split"))
    classes = class_count(spec.classes, whole.targets, spec.loss)
    model = build("model", spec.model).build(
        whole.spec, classes, fold(spec.seed, "weights")
    )
    dtype = getattr(torch, spec.dtype)
    task = Task(model.to(dtype), spec.loss, spec.mode)
    private, public = private.to(dtype), None if public is None else public.to(dtype)
    if spec.prior is None:
        return Client(private, public, task, None)
    if public is None:
        msg = (
            f"all {spec.batch_size} examples of the data are private, so none is left "
            f"to fit the prior to; add data, or set prior = 'none'"
        )
        raise InvalidInput(msg)
    return Client(private, public, task, build("prior", spec.prior).fit(public, task))


def split(
    batch: Batch, source: DataSource, batch_size: int, key: int
) -> tuple[Batch, Batch | None]:
    """Choose private examples at random; the others, less any copies, are public.

    Args:
        batch: the whole data set, as ``source.load()`` returned it.
        source: says which examples may become private.
        batch_size: B, number of private examples.
        key: equal keys give equal splits; other arguments of an audit do not matter.

    Returns:
        the private batch, in random order, and the public one, in the order of the data
        set; the latter is None if nothing is left.

    Raises:
        InvalidInput: fewer than B examples may become private.
    """
    pool = source.private_pool(batch)
    if not 1 <= batch_size <= len(pool):
        msg = (
            f"batch_size is {batch_size}, but {len(pool)} examples of the data may be "
            f"private; choose between 1 and {len(pool)}"
        )
        raise InvalidInput(msg)
    order = torch.randperm(len(pool), generator=generator(key, "split"))
    chosen = torch.tensor(pool)[order[:batch_size]]
    private = batch.select(chosen)
    others = torch.ones(len(batch), dtype=torch.bool)
    others[chosen] = False
    # A copy of a private example among the public ones would hand over the answer.
    others &= ~batch.found_in(private)
    rest = others.nonzero().flatten()
    return private, batch.select(rest) if len(rest) else None


def class_count(classes: int, targets: Tensor, loss: str = "cross-entropy") -> int:
    """Return the number K of outputs.

    Args:
        classes: as the settings give it; 0 takes it from the labels.
        targets: of the whole data set.
        loss: name of the loss.

    Raises:
        InvalidInput: there are more labels than the loss or ``classes`` has.
    """
    if targets.is_floating_point():
        return classes or int(targets[0].numel())
    return loss_named(loss).outputs_for(classes, int(targets.max()) + 1)
