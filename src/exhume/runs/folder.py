"""The folder of a run, and files in it that are whole at any time."""

from __future__ import annotations

import os
from pathlib import Path

from exhume.errors import InvalidInput

__all__ = ["made", "write_bytes", "write_text"]


def made(folder: Path) -> Path:
    """Make a folder unless it exists, and return it.

    Raises:
        InvalidInput: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"the folder {folder} cannot be made ({error}); choose another with out"
        raise InvalidInput(msg) from error
    return folder


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line ends, see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside and move it: a crash leaves the earlier one as it was.

    It is on disk when this returns.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
