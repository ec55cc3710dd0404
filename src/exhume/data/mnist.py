"""MNIST and its relatives in the official IDX files, compressed or not."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, Self

import numpy as np

from exhume.data._files import (
    check_limit,
    evenly_spaced,
    existing_folder,
)
from exhume.errors import InvalidInput
from exhume.problem.batch import Batch, checked_batch
from exhume.problem.event import EventSpec
from exhume.problem.source import DataSource

__all__ = ["Mnist"]

_PREFIX: Final = {"train": "train", "test": "t10k"}
_UINT8: Final = 0x08


@dataclass(frozen=True, kw_only=True)
class Mnist(DataSource):
    """Grey images and labels; Fashion-MNIST and KMNIST have the same layout.

    Attributes:
        path: folder that holds ``train-images-idx3-ubyte`` and the other three files,
            with or without ``.gz``, relative to the working directory.
        split: ``test`` or ``train``.
        limit: keep at most this many examples, evenly spaced.
    """

    path: str
    split: Literal["test", "train"] = "test"
    limit: int | None = None

    licence: ClassVar[str] = "CC BY-SA 3.0 (MNIST)"
    bibtex: ClassVar[str] = """\
@article{lecun1998gradient,
  title = {Gradient-based learning applied to document recognition},
  author = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal = {Proceedings of the IEEE},
  volume = {86},
  number = {11},
  pages = {2278--2324},
  year = {1998}
}"""

    def __post_init__(self) -> None:
        check_limit(self.limit)

    @classmethod
    def examples(cls, folder: Path | None = None) -> tuple[Self, ...]:
        """Return six test images of 5 × 4 pixels, written to the folder."""
        pixels = np.arange(6 * 5 * 4, dtype=np.uint8).reshape(6, 5, 4)
        labels = np.arange(6, dtype=np.uint8)
        for what, array in {"images": pixels, "labels": labels}.items():
            if folder is not None:
                name = f"t10k-{what}-idx{array.ndim}-ubyte"
                sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
                head = bytes([0, 0, _UINT8, array.ndim]) + sizes
                (folder / name).write_bytes(head + array.tobytes())
        return (cls(path=str(folder or Path())),)

    def load(self) -> Batch:
        """Read the files, checking magic numbers and sizes."""
        folder = existing_folder(self.path, "the folder of the MNIST files")
        prefix = _PREFIX[self.split]
        images = _read_idx(_find(folder, f"{prefix}-images-idx3-ubyte"), axes=3)
        labels = _read_idx(_find(folder, f"{prefix}-labels-idx1-ubyte"), axes=1)
        if len(images) != len(labels):
            msg = (
                f"{folder} has {len(images)} images but {len(labels)} labels for the "
                f"split {self.split!r}; the files do not belong together"
            )
            raise InvalidInput(msg)
        keep = evenly_spaced(len(images), self.limit)
        spec = EventSpec.image(1, *images.shape[1:])
        return checked_batch(images[keep][:, None], labels[keep], spec, str(folder))


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    msg = f"{folder} holds neither {name}.gz nor {name}; get the official files"
    raise InvalidInput(msg)


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Read one IDX file: 0, 0, type, axes; sizes as big-endian int32; then bytes."""
    content = _bytes(path)
    if content[:4] != bytes([0, 0, _UINT8, axes]):
        msg = (
            f"{path} starts with {content[:4].hex() or 'nothing'}; an IDX file of "
            f"bytes with {axes} axes starts with 000008{axes:02x}"
        )
        raise InvalidInput(msg)
    header = 4 + 4 * axes
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    values = np.frombuffer(content, np.uint8)[header:]
    if len(values) != np.prod(shape, dtype=object) or min(shape) == 0:
        msg = (
            f"{path} holds {len(values)} values, but its header says {shape}; it is "
            f"empty or cut short, so get it again"
        )
        raise InvalidInput(msg)
    return values.reshape(shape)


def _bytes(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        msg = f"{path} cannot be decompressed ({error}); get it again"
        raise InvalidInput(msg) from error
