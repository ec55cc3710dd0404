"""Reading files that others wrote: never executing code, one sentence when broken."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from exhume.errors import InvalidInput
from exhume.files import kind_of

__all__ = [
    "check_limit",
    "evenly_spaced",
    "existing",
    "existing_folder",
    "read_npz",
]


def existing(path: str, what: str) -> Path:
    """Return a path that exists.

    Args:
        path: absolute, or relative to the working directory.
        what: what it should hold, for the message.
    """
    found = Path(path).expanduser()
    if not found.exists():
        msg = (
            f"there is nothing at {path!r}; expected {what} (relative paths start at "
            f"the working directory, {Path.cwd()})"
        )
        raise InvalidInput(msg)
    return found


def existing_folder(path: str, what: str) -> Path:
    """Return a path that exists and is a folder."""
    found = existing(path, what)
    if not found.is_dir():
        msg = f"{path!r} is a file; expected {what}"
        raise InvalidInput(msg)
    return found


def check_limit(limit: int | None) -> None:
    """Raise unless a limit on the number of examples is None or positive."""
    if limit is not None and limit < 1:
        msg = f"limit is {limit}; expected at least 1, or none"
        raise InvalidInput(msg)


def evenly_spaced(count: int, limit: int | None) -> np.ndarray:
    """Choose at most ``limit`` of ``count`` indices, spread evenly.

    Files sorted by class keep all their classes, which the first ones would not.

    >>> evenly_spaced(10, 4).tolist()
    [0, 2, 5, 7]
    """
    if limit is None or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def read_npz(path: Path, keys: tuple[str, ...]) -> list[np.ndarray]:
    """Read plain arrays from an ``.npz`` file; pickled objects are refused.

    Args:
        path: the file.
        keys: names of the arrays to read, in order.

    Raises:
        InvalidInput: no such array, a damaged file, or a pickle.
    """
    # A file of torch.save is a zip archive too, with a pickle inside.
    if not zipfile.is_zipfile(path) or kind_of(path) == "pickle":
        msg = (
            f"{path} is not an .npz archive (or it is cut short); save arrays with "
            f"numpy.savez, since pickle files are never loaded"
        )
        raise InvalidInput(msg)
    with np.load(path, allow_pickle=False) as archive:
        for key in keys:
            if key not in archive.files:
                held = ", ".join(archive.files) or "nothing"
                msg = f"{path} has no array {key!r}; it holds: {held}"
                raise InvalidInput(msg)
        return [_read_array(archive, key, path) for key in keys]


def _read_array(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    reason: object = "it is not in NumPy's format"
    try:
        found = archive[key]
        # A member without NumPy's magic number comes back as raw bytes.
        if isinstance(found, np.ndarray):
            return found
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = error
    msg = (
        f"the array {key!r} of {path} cannot be read ({reason}); save plain numeric "
        f"arrays with numpy.savez, since pickled objects are never loaded"
    )
    raise InvalidInput(msg)
