"""CIFAR-10 in its official binary version, or as an .npz of uint8 images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, Self

import numpy as np

from exhume.data._files import (
    check_limit,
    evenly_spaced,
    existing,
    read_npz,
)
from exhume.errors import InvalidInput
from exhume.problem.batch import Batch, checked_batch
from exhume.problem.event import EventSpec
from exhume.problem.source import DataSource

__all__ = ["Cifar10"]

_CLASSES: Final = 10
_SHAPE: Final = (3, 32, 32)
_RECORD: Final = 1 + 3 * 32 * 32
_FILES: Final = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
_PICKLE: Final = (
    "is the Python version of CIFAR-10, which is a pickle and could run any code when "
    "loaded; take the binary version (cifar-10-binary.tar.gz) and unpack it"
)


@dataclass(frozen=True, kw_only=True)
class Cifar10(DataSource):
    """Colour images of 10 classes, 32 x 32.

    Attributes:
        path: folder with ``data_batch_1.bin`` … ``test_batch.bin`` (or its parent), or
            an ``.npz`` file with ``{split}_images`` [N, 32, 32, 3] and
            ``{split}_labels`` [N]; relative to the working directory.
        split: ``test`` or ``train``.
        limit: keep at most this many examples, evenly spaced.
    """

    path: str
    split: Literal["test", "train"] = "test"
    limit: int | None = None

    licence: ClassVar[str] = "CIFAR-10 has no stated licence; for research"
    bibtex: ClassVar[str] = """\
@techreport{krizhevsky2009learning,
  title = {Learning Multiple Layers of Features from Tiny Images},
  author = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year = {2009}
}"""

    def __post_init__(self) -> None:
        check_limit(self.limit)

    @classmethod
    def examples(cls, folder: Path | None = None) -> tuple[Self, ...]:
        """Return ten test images of one colour each, written to the folder."""
        if folder is not None:
            records = [
                bytes([label]) + bytes([20 * label]) * math.prod(_SHAPE)
                for label in range(_CLASSES)
            ]
            (folder / "test_batch.bin").write_bytes(b"".join(records))
        return (cls(path=str(folder or Path())),)

    def load(self) -> Batch:
        """Read the images and labels."""
        path = existing(self.path, "the folder of CIFAR-10's binary version")
        read = _read_folder if path.is_dir() else _read_archive
        images, labels = read(path, self.split)
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= _CLASSES:
            msg = f"{path} is empty or has labels outside 0 … 9; it is not CIFAR-10"
            raise InvalidInput(msg)
        keep = evenly_spaced(len(images), self.limit)
        spec = EventSpec.image(*_SHAPE)
        return checked_batch(images[keep], labels[keep], spec, str(path))


def _read_folder(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    inner = path / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else path
    missing = [name for name in _FILES[split] if not (folder / name).is_file()]
    python = path / "cifar-10-batches-py"
    if missing and (python.is_dir() or (path / "data_batch_1").is_file()):
        msg = f"{path} {_PICKLE}"
        raise InvalidInput(msg)
    if missing:
        msg = f"{folder} lacks {', '.join(missing)} of CIFAR-10's binary version"
        raise InvalidInput(msg)
    parts = [_records(folder / name) for name in _FILES[split]]
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, *_SHAPE), records[:, 0]


def _records(path: Path) -> np.ndarray:
    values = np.frombuffer(path.read_bytes(), np.uint8)
    if len(values) % _RECORD:
        msg = (
            f"{path} has {len(values)} bytes, not a multiple of {_RECORD} (one label "
            f"and one image); it is cut short, so get it again"
        )
        raise InvalidInput(msg)
    return values.reshape(-1, _RECORD)


def _read_archive(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    if path.name.endswith((".tar.gz", ".tgz", ".tar")):
        msg = f"{path} is an archive; take the binary version of CIFAR-10 and unpack it"
        raise InvalidInput(msg)
    if path.suffix != ".npz":
        msg = f"{path} {_PICKLE}, or give a folder or an .npz file"
        raise InvalidInput(msg)
    images, labels = read_npz(path, (f"{split}_images", f"{split}_labels"))
    fits = images.shape[1:] == (32, 32, 3) and images.dtype == np.uint8
    whole = np.issubdtype(labels.dtype, np.integer)
    if not fits or not whole or labels.shape != images.shape[:1]:
        msg = (
            f"{path} holds images of shape {list(images.shape)} and type "
            f"{images.dtype}, labels of shape {list(labels.shape)} and type "
            f"{labels.dtype}; expected uint8 [N, 32, 32, 3] and integers [N]"
        )
        raise InvalidInput(msg)
    return np.moveaxis(images, 3, 1), labels
