"""Write and show the answer of one attack."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exhume.cli.console import columns, say
from exhume.errors import InvalidInput
from exhume.runs.settings import write_bytes

if TYPE_CHECKING:
    from exhume.problem.attack import Attack
    from exhume.problem.knowledge import Problem
    from exhume.problem.reconstruction import Reconstruction

__all__ = ["new_folder", "show", "write"]

Scores = Mapping[str, Sequence[float | None]]
_ANSWER = "reconstruction.safetensors"


def new_folder(out: Path | None, attack: str) -> Path:
    """Choose a folder that holds no answer yet; nothing is made or overwritten.

    Raises:
        InvalidInput: the folder asked for holds an answer already, or is a file.
    """
    if out is None:
        count, base = 1, Path("runs") / f"attack-{attack}"
        out = base
        while out.exists():
            count += 1
            out = base.with_name(f"{base.name}-{count}")
        return out
    if out.is_file() or (out / _ANSWER).exists():
        msg = f"{str(out)!r} holds an earlier answer or is a file; choose another --out"
        raise InvalidInput(msg)
    return out


def write(
    folder: Path,
    attack: Attack,
    problem: Problem,
    answer: Reconstruction,
    scores: Scores,
    findings: Sequence[str],
) -> None:
    """Write reconstruction.safetensors, attack.json, and a picture per example."""
    from dataclasses import asdict

    from safetensors.torch import save

    from exhume.config import describe
    from exhume.runs.records import dumps

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"inputs": answer.inputs, "targets": answer.targets}
    ready = {n: t.detach().cpu().clone().contiguous() for n, t in tensors.items()}
    record = {
        "attack": describe(attack),
        "outcome": answer.outcome.value,
        "objective": answer.objective,
        "adaptive": answer.adaptive,
        "notes": list(answer.notes),
        "cost": asdict(answer.cost),
        "scores": scores,
        "checked": list(findings),
    }
    write_bytes(folder / "attack.json", dumps(record).encode())
    write_bytes(folder / _ANSWER, save(ready))
    _pictures(folder, problem, answer)


def _pictures(folder: Path, problem: Problem, answer: Reconstruction) -> None:
    for i, example in enumerate(answer.inputs.detach().cpu().double().numpy()):
        picture = problem.spec.draw(example, example)
        path = folder / f"example-{i}"
        if picture.png:
            encoded = picture.png.partition(",")[2]
            write_bytes(path.with_suffix(".png"), base64.b64decode(encoded))
        elif picture.svg:
            write_bytes(path.with_suffix(".svg"), picture.alone().encode())


def show(answer: Reconstruction, scores: Scores, folder: Path) -> None:
    """Print how the attack ended, and the scores per example."""
    say(f"outcome: {answer.outcome.value}")
    if answer.objective is not None:
        say(f"objective: {answer.objective:.6g}")
    for note in answer.notes:
        say(f"note: {note}")
    say(f"labels: {', '.join(map(str, answer.targets.tolist()))}")
    say(f"cost: {answer.cost.cpu_seconds:.1f} CPU seconds")
    if scores:
        heading = ("example", *scores)
        count = max(map(len, scores.values()))
        rows = (
            (str(i), *(_number(values[i]) for values in scores.values()))
            for i in range(count)
        )
        columns([heading, *rows])
    say(f"answer: {folder / _ANSWER}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
