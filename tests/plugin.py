"""An installed package that adds members, as a user would write it."""

from __future__ import annotations

from pathlib import Path

from exhume import registry

__all__ = ["write_package"]


def write_package(
    folder: Path, members: dict[tuple[str, str], str], name: str = "my_lab"
) -> None:
    """Write a package and its metadata where the Python path finds both.

    Args:
        folder: to be on the Python path.
        members: text of each file by kind and file name.
        name: of the package.
    """
    for (kind, file), text in members.items():
        room = registry.KINDS[kind][0].rpartition(".")[2]
        path = folder / name / room / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    metadata = folder / f"{name}-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n", encoding="utf-8"
    )
    points = f"[exhume]\n{name} = {name}\n"
    (metadata / "entry_points.txt").write_text(points, encoding="utf-8")
