"""From files and options of the command line to the problem that an attack gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exhume.cli.console import say, warn
from exhume.cli.own import load_batch, simulate
from exhume.cli.said import Said, complete
from exhume.errors import InvalidInput

if TYPE_CHECKING:
    from torch import nn

    from exhume.observations.shared import SharedObservation
    from exhume.problem.batch import Batch
    from exhume.problem.knowledge import Problem

__all__ = ["Files", "check", "known", "local_steps", "observe", "problem_of"]


def local_steps(
    said: list[str] | None,
    before: Path | None,
    after: Path | None,
    trained: Path | None,
) -> tuple[str, ...] | None:
    """Return what is said of a training; checkpoints imply that there was one."""
    if trained is not None:
        return ("name=weights", *(said or ()))
    if said is None:
        return None if before is None and after is None else ()
    return tuple(said)


@dataclass(frozen=True)
class Files:
    """Where what was shared is: at most one of update, before and after, trained.

    Attributes:
        update: an observation file, or plain gradients.
        before: checkpoint before a training.
        after: checkpoint after it.
        trained: one trained checkpoint.

    Raises:
        InvalidInput: several of them are given, or half a pair.
    """

    update: Path | None = None
    before: Path | None = None
    after: Path | None = None
    trained: Path | None = None

    def __post_init__(self) -> None:
        pair = (self.before, self.after)
        if (None in pair) and pair != (None, None):
            msg = "an update is a change between checkpoints; give --before and --after"
            raise InvalidInput(msg)
        if sum(x is not None for x in (self.update, self.before, self.trained)) > 1:
            msg = (
                "--update, --before with --after, and --trained each say what was "
                "shared; give one of them"
            )
            raise InvalidInput(msg)


def observe(
    net: nn.Module, files: Files, data: str | None, said: Said
) -> tuple[SharedObservation, Batch | None]:
    """Load or simulate what was shared; return it with the private batch, if given.

    Args:
        net: the client's network.
        files: what was shared.
        data: the private batch, by path or name.
        said: what the user says.

    Raises:
        InvalidInput: there is nothing to attack.
    """
    shared = _loaded(net, files, said)
    if shared is None and data is None:
        msg = (
            "there is nothing to attack; give --update, or --before and --after, or "
            "--trained, or --data to simulate one"
        )
        raise InvalidInput(msg)
    shared = shared and complete(shared, said)
    spec = said.facts().get("spec") if shared is None else shared.spec
    kind = said.event if shared is None or shared.spec is None else shared.spec.kind
    own = None if data is None else load_batch(data, spec, kind)
    if own is not None and said.event not in (None, own.spec.kind):
        msg = (
            f"--event says {said.event!r}, and {data} holds examples of kind "
            f"{own.spec.kind!r}; leave --event out, or give event = {said.event!r} "
            f"among the options of the data"
        )
        raise InvalidInput(msg)
    if shared is None:
        assert own is not None  # one of the two is given
        own = own.select(range(min(said.batch_size or 1, len(own))))
        return simulate(net, own, said), own
    return shared, own


def _loaded(net: nn.Module, files: Files, said: Said) -> SharedObservation | None:
    from exhume.observations.file import load, load_tensors
    from exhume.observations.shared import SharedObservation
    from exhume.problem.consistency import check_weights

    if files.update is not None:
        return load(files.update)
    if files.trained is not None:
        tensors = load_tensors(files.trained)
        buffers = {n: t for n, t in tensors.items() if n in dict(net.named_buffers())}
        weights = {n: t for n, t in tensors.items() if n not in buffers}
        check_weights(weights, net)
        return SharedObservation(
            values=weights,
            observation=said.observation(),
            reference=weights,
            buffers=buffers,
        )
    if files.before is None or files.after is None:
        return None
    return _difference(net, files.before, files.after, said)


def _difference(
    net: nn.Module, before: Path, after: Path, said: Said
) -> SharedObservation:
    """Load two checkpoints and say what else changed between them."""
    from exhume.observations.checkpoints import difference
    from exhume.observations.file import load_tensors

    found = difference(
        load_tensors(before), load_tensors(after), net, said.observation()
    )
    if sentence := said.assumed():
        warn(sentence)
    for finding in found.findings:
        (warn if finding.severity == "warning" else say)(f"between: {finding.sentence}")
    return found.shared


def known(
    shared: SharedObservation,
    net: nn.Module,
    own: Batch | None,
    public: str | None,
    prior: str | None,
) -> dict[str, Any]:
    """Load public examples, less any private ones, and fit the prior to them."""
    from exhume.config import build

    if public is None:
        if prior is not None:
            msg = f"the prior {prior!r} is fitted to public examples; give --public too"
            raise InvalidInput(msg)
        return {}
    assert shared.spec is not None  # `complete` or `simulate` set it
    examples = load_batch(public, shared.spec, shared.spec.kind)
    if examples.spec.shape != shared.spec.shape:
        msg = (
            f"the public examples have shape {list(examples.spec.shape)}, the private "
            f"ones {list(shared.spec.shape)}; use data of one shape"
        )
        raise InvalidInput(msg)
    if own is not None:
        others = (~examples.found_in(own)).nonzero().flatten()
        if len(others) == 0:
            msg = "every public example is a private one; give others with --public"
            raise InvalidInput(msg)
        examples = examples.select(others)
    density = build("prior", prior or "gaussian").fit(examples, shared.task(net))
    return {"public": examples, "prior": density}


def problem_of(
    shared: SharedObservation,
    net: nn.Module,
    known: dict[str, Any],
    threat: str | None,
) -> Problem:
    """Put observation, model and knowledge together; hide what a threat hides."""
    from exhume.problem.threat import ThreatModel

    problem = shared.problem(net, **known)
    return problem if threat is None else problem.restricted(ThreatModel(threat).known)


def check(problem: Problem, own: Batch | None, sha256: str | None) -> list[str]:
    """Check what was shared against the model, and print what was found."""
    from exhume.problem.consistency import check_observation

    findings = check_observation(problem, own=own, reference_sha256=sha256)
    for finding in findings:
        if finding.severity == "warning":
            warn(finding.sentence)
        else:
            say(f"checked: {finding.sentence}")
    return [finding.sentence for finding in findings]
