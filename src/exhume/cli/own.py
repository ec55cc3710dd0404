"""Bring your own: a model by name, an update from a file, data from a path."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exhume.errors import InvalidInput, UnknownName

if TYPE_CHECKING:
    from torch import nn

    from exhume.cli.said import Said
    from exhume.observations.shared import SharedObservation
    from exhume.problem.batch import Batch
    from exhume.problem.event import EventSpec

__all__ = ["load_batch", "load_model", "simulate"]


def simulate(model: nn.Module, own: Batch, said: Said) -> SharedObservation:
    """Compute what a client with this model and batch would share."""
    from exhume.observations.gradient import Gradient
    from exhume.observations.shared import share
    from exhume.problem.mechanism import Mechanism
    from exhume.problem.task import Task

    facts = said.facts()
    if "mode" not in facts:
        msg = "the gradient depends on the mode of the model; give --mode eval or train"
        raise InvalidInput(msg)
    loss = facts.get("loss", "cross-entropy")
    task = Task(model, loss, facts["mode"], facts.get("normalise"))
    if said.schedule is not None and said.observation().known_rate is None:
        msg = "a client trains with a step size; give --schedule rate=0.1, say"
        raise InvalidInput(msg)
    mechanism = Mechanism(facts.get("observation", Gradient()))
    observation = mechanism.sample(task, own, key=0)
    return share(
        observation.values,
        task,
        own.spec,
        batch_size=len(own),
        targets=own.targets,
        batch_statistics=observation.batch_statistics,
        mechanism=mechanism,
    )


def load_model(reference: str, weights: Path | None) -> nn.Module:
    """Call ``package.module:function``; the working directory is on the path.

    Raises:
        InvalidInput: no such function, it fails, or returns no ``nn.Module``.
    """
    from torch import nn

    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        msg = f"--model is {reference!r}; expected package.module:function"
        raise InvalidInput(msg)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        model = function()
    except Exception as error:  # the user's code may raise anything; we say what
        kind = type(error).__name__
        msg = f"--model {reference} failed with {kind}: {error} (--debug shows where)"
        raise InvalidInput(msg) from error
    if not isinstance(model, nn.Module):
        msg = (
            f"--model {reference} returned {type(model).__name__}; expected a "
            f"torch.nn.Module"
        )
        raise InvalidInput(msg)
    if weights is not None:
        _load_weights(model, weights)
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    from exhume.observations.file import load_tensors
    from exhume.problem.consistency import check_weights

    tensors = load_tensors(path)
    buffers = dict(model.named_buffers())
    check_weights({n: t for n, t in tensors.items() if n not in buffers}, model)
    model.load_state_dict(tensors, strict=False)


def load_batch(
    where: str, like: EventSpec | None = None, event: str | None = None
) -> Batch:
    """Load examples from a registered source, a folder of images or an .npz file.

    Args:
        where: a name, a path, or name and options as in a settings file:
            ``{name = "mnist", path = "mnist"}``.
        like: one example; a folder of images is shrunk to its size.
        event: kind of the examples of a file, where it was named.
    """
    from exhume.config import build
    from exhume.files import refuse_pickle
    from exhume.registry import names

    path = Path(where)
    if where.lstrip().startswith("{"):
        given: dict[str, Any] = _table(where)
    elif where in names("data"):
        given = {"name": where}
    elif path.is_dir():
        given = {"name": "folder", "path": where}
        grid = None if like is None else like.grid
        if grid is not None:
            given |= {"size": grid[-1], "gray": grid[0] == 1}
    elif path.exists():
        refuse_pickle(path)
        given = {"name": "npz", "path": where, "event": event}
    else:
        known = ", ".join(names("data"))
        msg = f"there is no data called {where!r}, nor a path; known names: {known}"
        raise UnknownName(msg)
    return build("data", given).load()


def _table(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(f"data = {text}")["data"]
    except tomllib.TOMLDecodeError as error:
        msg = (
            f"{text!r} is no table of a settings file ({error}); expected something "
            f'like {{name = "mnist", path = "mnist"}}'
        )
        raise InvalidInput(msg) from error
