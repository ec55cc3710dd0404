"""A folder of one's own images; subfolders are classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Self

import numpy as np
import torch
from torch import Tensor

from exhume.data._files import check_limit, evenly_spaced, existing_folder
from exhume.data._images import centre_square, luminance, resized, tensor
from exhume.errors import InvalidInput
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.source import DataSource

__all__ = ["Folder"]

_SUFFIXES: Final = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


@dataclass(frozen=True, kw_only=True)
class Folder(DataSource):
    """Images in the folder itself (one class) or in its subfolders (a class each).

    Classes and files are taken in alphabetical order; other files are ignored. Each
    image is cut to its central square and shrunk to ``size`` by averaging areas.

    Attributes:
        path: the folder, relative to the working directory.
        size: side in pixels.
        gray: one channel instead of three.
        limit: keep at most this many images, evenly spaced.
    """

    path: str
    size: int = 32
    gray: bool = False
    limit: int | None = None

    licence: ClassVar[str] = "as the images' owners say"

    def __post_init__(self) -> None:
        check_limit(self.limit)
        if self.size < 1:
            msg = f"size is {self.size}; expected at least 1 pixel"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls, folder: Path | None = None) -> tuple[Self, ...]:
        """Return four images of two classes, written to the folder."""
        if folder is not None:
            from PIL import Image

            for i, label in enumerate("abab"):
                (folder / label).mkdir(exist_ok=True)
                gradient = Image.linear_gradient("L").rotate(90 * i).resize((12, 10))
                gradient.save(folder / label / f"{i}.png")
        return (cls(path=str(folder or Path()), size=8),)

    def load(self) -> Batch:
        """Read the images."""
        found = _labelled_files(existing_folder(self.path, "a folder of images"))
        chosen = [found[i] for i in evenly_spaced(len(found), self.limit)]
        inputs = torch.stack([self._example(path) for path, _ in chosen])
        targets = torch.tensor([label for _, label in chosen])
        return Batch(inputs, targets, EventSpec.image(*inputs.shape[1:]))

    def _example(self, path: Path) -> Tensor:
        image = centre_square(tensor(_pixels(path)))
        side = image.shape[-1]
        if side < self.size:
            msg = (
                f"{path} has only {side} pixels along its shorter side, fewer than "
                f"size = {self.size}; choose a smaller size"
            )
            raise InvalidInput(msg)
        image = luminance(image) if self.gray else image.expand(3, -1, -1)
        return resized(image, self.size, self.size)


def _labelled_files(folder: Path) -> list[tuple[Path, int]]:
    direct = _images(folder)
    nested = {
        child: images
        for child in sorted(folder.iterdir())
        if child.is_dir() and (images := _images(child))
    }
    if direct and nested:
        msg = (
            f"{folder} holds images both directly and in subfolders, so their classes "
            f"are unclear; put every image in a subfolder, or none"
        )
        raise InvalidInput(msg)
    if not direct and not nested:
        known = ", ".join(sorted(s.removeprefix(".") for s in _SUFFIXES))
        msg = f"{folder} holds no image; known types: {known}"
        raise InvalidInput(msg)
    classes = [direct] if direct else list(nested.values())
    return [(path, i) for i, images in enumerate(classes) for path in images]


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )


def _pixels(path: Path) -> np.ndarray:
    """Read one image as [H, W] or [H, W, 3], uint8 or uint16."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith("I;16"):
                return np.asarray(upright).astype(np.uint16)
            if upright.mode in ("I", "F"):
                msg = f"{path} has pixels of mode {upright.mode!r}; use 8 or 16 bits"
                raise InvalidInput(msg)
            grey = upright.mode in ("1", "L", "LA")
            return np.asarray(upright.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        msg = f"{path} cannot be read as an image ({error}); remove or repair it"
        raise InvalidInput(msg) from error
