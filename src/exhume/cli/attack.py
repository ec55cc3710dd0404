"""``exhume attack``: run one attack on a shared update with a model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from exhume.cli.observed import Files, check, known, local_steps, observe, problem_of
from exhume.cli.own import load_model
from exhume.cli.said import Said, options

if TYPE_CHECKING:
    from exhume.problem.batch import Batch

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
Before = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.safetensors",
        help="Checkpoint before the training; with --after it takes the place of "
        "--update.",
    ),
]
After = Annotated[
    Path | None,
    typer.Option(metavar="FILE.safetensors", help="Checkpoint after the training."),
]
Trained = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.safetensors",
        help="One trained checkpoint, attacked by itself, instead of --update.",
    ),
]
Schedule = Annotated[
    list[str] | None,
    _says(
        "Of several local steps: epochs=5, batch_size=10, rate=0.05, optimiser=adam, "
        "…; repeatable. A rate or order that is not said stays unknown. "
        "name=fine-tuning says that the training went on to a low loss.",
        metavar="KEY=VALUE",
    ),
]
Mode = Annotated[str | None, _says("eval or train.")]
Shape = Annotated[str | None, _says("Of one example: 3,32,32 or 100.")]
Event = Annotated[
    str | None,
    _says("Kind of the examples (exhume list events), if the shape does not tell it."),
]
Range = Annotated[str | None, _says("Of its values: 0,1 or none.", "--range")]
Loss = Annotated[str | None, _says("cross-entropy (if omitted), logistic or mse.")]
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
    before: Before = None,
    after: After = None,
    trained: Trained = None,
    public: Public = None,
    prior: Prior = None,
    threat: Threat = None,
    option: Options = None,
    seed: Seed = 0,
    out: Out = None,
    mode: Mode = None,
    shape: Shape = None,
    event: Event = None,
    range_: Range = None,
    loss: Loss = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = None,
    labels: Labels = None,
    scale: Scale = None,
    no_defense: NoDefense = False,
    schedule: Schedule = None,
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
        event=event,
        range_=range_,
        loss=loss,
        mean=mean,
        std=std,
        labels=labels,
        batch_size=batch_size,
        scale=scale,
        no_defense=no_defense,
        schedule=local_steps(schedule, before, after, trained),
    )
    folder = new_folder(out, name)
    net = load_model(model, weights)
    shared, own = observe(net, Files(update, before, after, trained), data, said)
    problem = problem_of(shared, net, known(shared, net, own, public, prior), threat)
    given = any((update, before, trained))
    findings = check(problem, own if given else None, shared.reference_sha256)
    with Console(stderr=True).status(f"{name} is running (Ctrl-C stops it)"):
        answer = chosen(problem, key=seed)
    scores = _scores(answer, own)
    write(folder, chosen, problem, answer, scores, findings)
    show(answer, scores, folder)


def _scores(answer: Any, own: Batch | None) -> dict[str, list[float | None]]:
    if own is None:
        return {}
    from exhume.metrics.score import score

    return {name: list(values) for name, values in score(answer, own).values.items()}
