"""``exhume advise``: which defense keeps an error, for how much utility."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exhume.cli.console import say, warn
from exhume.cli.progress import Bar

__all__ = ["advise"]


def advise(
    min_error: Annotated[
        str,
        typer.Option(
            help="Error that no attack shall get below: a mean squared error per "
            "number of the data (0.02, for data in [0, 1]), or a PSNR (17dB); for "
            "data whose attacks are ranked by another error, a mean of that."
        ),
    ],
    max_loss: Annotated[
        str,
        typer.Option(help="Utility to lose at most: 0.03 or 3%."),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="Folder of a comparison; the embedded one if omitted, which is run "
            "if it has not been.",
        ),
    ] = None,
) -> None:
    """Recommend a defense from a comparison at equal utility."""
    from exhume.compare import CompareSettings, load, run
    from exhume.compare.run import SETTINGS_FILE
    from exhume.compare.wording import parse_error, parse_loss

    _, loss = parse_error(min_error), parse_loss(max_loss)
    if folder is None:
        settings = CompareSettings.shipped()
        place = settings.folder()
        if not (place / SETTINGS_FILE).is_file():
            warn(f"there is no comparison in {place} yet, so it is run now", "note")
        sentence = f"what has finished is kept in {place}; run this again"
        with Bar(lambda _: sentence) as bar:
            done = run(settings, progress=bar)
    else:
        done = load(folder)
    error = parse_error(min_error, done.metric)
    advice = done.advise(min_error=error, max_loss=loss)
    for sentence in advice.sentences:
        if sentence:
            say(sentence)
    say(f"report: {done.report}")
    if advice.stack:
        from exhume.runs.settings import toml_value

        say(f"defenses = {toml_value(list(advice.stack))}")
    elif not advice.holds:
        raise typer.Exit(1)
