"""``exhume attack``: run one attack on a shared update with a model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from exhume.cli.console import say, warn
from exhume.cli.own import Said, complete, load_batch, load_model, options, simulate
from exhume.errors import InvalidInput

if TYPE_CHECKING:
    from torch import nn

    from exhume.observations.shared import SharedObservation
    from exhume.problem.batch import Batch
    from exhume.problem.knowledge import Problem

__all__ = ["attack"]


def _says(text: str, *names: str, **rules: Any) -> Any:
    """Make an option about what the file does not say itself."""
    panel = "What the file does not say"
    return typer.Option(*names, help=text, rich_help_panel=panel, **rules)


Name = Annotated[str, typer.Argument(help="An attack, see: exhume list attacks.")]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="Function that returns the client's torch.nn.Module.",
    ),
]
Update = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.safetensors",
        help="Observation file, or plain gradients named as the parameters.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|NAME",
        help="Your private batch (.npz, image folder or data source): the update is "
        "checked against its gradient, or simulated without --update, and the answer "
        "is scored. The attack never sees it.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.safetensors",
        help="Weights for the model; an observation file may bring its own.",
    ),
]
Public = Annotated[
    str | None,
    typer.Option(metavar="PATH|NAME", help="Public examples that the attacker has."),
]
Prior = Annotated[
    str | None, typer.Option(help="Prior to fit to --public; gaussian if omitted.")
]
Threat = Annotated[
    str | None, typer.Option(help="Hide what this threat model does not know.")
]
Options = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Option of the attack; repeatable."),
]
Seed = Annotated[int, typer.Option(help="All randomness of the attack.")]
Out = Annotated[
    Path | None,
    typer.Option(help="New folder for the answer; runs/attack-NAME if omitted."),
]
Mode = Annotated[str | None, _says("eval or train.")]
Shape = Annotated[str | None, _says("Of one example: 3,32,32 or 100.")]
Range = Annotated[str | None, _says("Of its values: 0,1 or none.", "--range")]
Loss = Annotated[str | None, _says("cross-entropy (if omitted) or mse.")]
Mean = Annotated[str | None, _says("Of the normalisation: 0.5 or one per channel.")]
Std = Annotated[str | None, _says("Likewise.")]
BatchSize = Annotated[int | None, _says("Number of examples.", min=1)]
Labels = Annotated[str | None, _says("Of the batch, if known: 3,5.")]
Scale = Annotated[
    float | None,
    _says("Multiple of the mean gradient in the file, e.g. minus the learning rate."),
]
NoDefense = Annotated[
    bool,
    _says("The gradient was released as computed, which is checked.", "--no-defense"),
]


def attack(
    name: Name,
    model: Model,
    update: Update = None,
    data: Data = None,
    weights: Weights = None,
    public: Public = None,
    prior: Prior = None,
    threat: Threat = None,
    option: Options = None,
    seed: Seed = 0,
    out: Out = None,
    mode: Mode = None,
    shape: Shape = None,
    range_: Range = None,
    loss: Loss = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = None,
    labels: Labels = None,
    scale: Scale = None,
    no_defense: NoDefense = False,
) -> None:
    """Attack an update that was shared, with your own model.

    First the update is checked: names, shapes, weights, scale, sign and mode.
    The answer goes to reconstruction.safetensors, attack.json and pictures.
    """
    from exhume.cli.answer import new_folder, show, write
    from exhume.config import build

    chosen = build("attack", {"name": name, **options(option or [])})
    said = Said(
        mode=mode,
        shape=shape,
        range_=range_,
        loss=loss,
        mean=mean,
        std=std,
        labels=labels,
        batch_size=batch_size,
        scale=scale,
        no_defense=no_defense,
    )
    folder = new_folder(out, name)
    net = load_model(model, weights)
    shared, own = _observe(net, update, data, said)
    problem = _problem(shared, net, _known(shared, net, own, public, prior), threat)
    findings = _check(problem, own if update else None, shared.reference_sha256)
    with Console(stderr=True).status(f"{name} is running (Ctrl-C stops it)"):
        answer = chosen(problem, key=seed)
    scores = _scores(answer, own)
    write(folder, chosen, problem, answer, scores, findings)
    show(answer, scores, folder)


def _observe(
    net: nn.Module, update: Path | None, data: str | None, said: Said
) -> tuple[SharedObservation, Batch | None]:
    from exhume.observations.file import load

    if update is None and data is None:
        msg = "there is nothing to attack; give --update, or --data to simulate one"
        raise InvalidInput(msg)
    shared = None if update is None else complete(load(update), said)
    spec = said.facts().get("spec") if shared is None else shared.spec
    own = None if data is None else load_batch(data, spec and spec.shape)
    if shared is None:
        assert own is not None  # one of the two is given
        own = own.select(range(min(said.batch_size or 1, len(own))))
        return simulate(net, own, said), own
    return shared, own


def _known(
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


def _problem(
    shared: SharedObservation,
    net: nn.Module,
    known: dict[str, Any],
    threat: str | None,
) -> Problem:
    from exhume.problem.threat import ThreatModel

    problem = shared.problem(net, **known)
    return problem if threat is None else problem.restricted(ThreatModel(threat).known)


def _check(problem: Problem, own: Batch | None, sha256: str | None) -> list[str]:
    from exhume.problem.consistency import check_observation

    findings = check_observation(problem, own=own, reference_sha256=sha256)
    for finding in findings:
        if finding.severity == "warning":
            warn(finding.sentence)
        else:
            say(f"checked: {finding.sentence}")
    return [finding.sentence for finding in findings]


def _scores(answer: Any, own: Batch | None) -> dict[str, list[float | None]]:
    if own is None:
        return {}
    from exhume.metrics.score import score

    return {name: list(values) for name, values in score(answer, own).values.items()}
