"""From files and options of the command line to the problem that an attack gets."""

from __future__ import annotations

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

__all__ = ["check", "known", "local_steps", "observe", "problem_of"]


def local_steps(
    said: list[str] | None, before: Path | None, after: Path | None
) -> tuple[str, ...] | None:
    """Return what is said of local steps; two checkpoints imply some."""
    if said is None:
        return None if before is None and after is None else ()
    return tuple(said)


def observe(
    net: nn.Module,
    update: Path | None,
    data: str | None,
    said: Said,
    checkpoints: tuple[Path | None, Path | None],
) -> tuple[SharedObservation, Batch | None]:
    """Load or simulate what was shared; return it with the private batch, if given.

    Args:
        net: the client's network.
        update: an observation file, or plain gradients.
        data: the private batch, by path or name.
        said: what the user says.
        checkpoints: before and after the training, instead of ``update``.

    Raises:
        InvalidInput: there is nothing to attack, or twice something.
    """
    from exhume.observations.file import load

    shared = None if update is None else load(update)
    if checkpoints != (None, None):
        if shared is not None:
            msg = "--update and --before/--after both say what was shared; give one"
            raise InvalidInput(msg)
        shared = _difference(net, *checkpoints, said)
    if shared is None and data is None:
        msg = (
            "there is nothing to attack; give --update, or --before and --after, or "
            "--data to simulate one"
        )
        raise InvalidInput(msg)
    shared = shared and complete(shared, said)
    spec = said.facts().get("spec") if shared is None else shared.spec
    own = None if data is None else load_batch(data, spec and spec.shape)
    if shared is None:
        assert own is not None  # one of the two is given
        own = own.select(range(min(said.batch_size or 1, len(own))))
        return simulate(net, own, said), own
    return shared, own


def _difference(
    net: nn.Module, before: Path | None, after: Path | None, said: Said
) -> SharedObservation:
    """Load two checkpoints and say what else changed between them."""
    from exhume.observations.checkpoints import difference
    from exhume.observations.file import load_tensors

    if before is None or after is None:
        msg = (
            "an update is the change between two checkpoints; give --before and --after"
        )
        raise InvalidInput(msg)
    found = difference(
        load_tensors(before), load_tensors(after), net, said.observation()
    )
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
    examples = load_batch(public, shared.spec.shape)
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
