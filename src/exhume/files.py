"""Files told apart by their first bytes; reading one never executes code."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from exhume.errors import InvalidInput

__all__ = [
    "Header",
    "TensorEntry",
    "kind_of",
    "read_header",
    "refuse_pickle",
    "require_file",
]

FileKind = Literal["safetensors", "npz", "npy", "pickle", "sqlite", "text", "unknown"]

# Longest header that the safetensors library accepts, in bytes.
_HEADER_LIMIT = 100_000_000

# What a header of the wrong structure raises as it is taken apart.
_MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)

#: safetensors type → bits per value
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class TensorEntry:
    """Type and shape of one stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself: tensors by name, and metadata."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str] = field(default_factory=dict)


def require_file(path: Path | str) -> Path:
    """Return the path of an existing, non-empty file.

    Raises:
        InvalidInput: it does not exist, is a folder, or is empty.
    """
    path = Path(path)
    if not path.exists():
        msg = f"there is no file {str(path)!r}; check the path"
    elif path.is_dir():
        msg = f"{str(path)!r} is a folder; give the path of a file"
    elif path.stat().st_size == 0:
        msg = f"the file {str(path)!r} is empty; write it again"
    else:
        return path
    raise InvalidInput(msg)


def kind_of(path: Path) -> FileKind:
    """Tell the format of a file from its content, whatever its name says."""
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"SQLite format 3\0"):
        return "sqlite"
    if start.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    # First the length of a header, below 2³², then the header: no pickle looks so.
    if start[4:9] == b"\0\0\0\0{":
        return "safetensors"
    # A pickle of protocol 2 or later starts with PROTO (0x80) and its number.
    if len(start) > 1 and start[0] == 0x80 and start[1] <= 5:
        return "pickle"
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    return "text" if _is_text(path) else "unknown"


def _zip_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except zipfile.BadZipFile:
        return "npz" if path.suffix == ".npz" else "unknown"
    if any(name.rsplit("/", 1)[-1] == "data.pkl" for name in members):
        return "pickle"
    return "npz" if any(name.endswith(".npy") for name in members) else "unknown"


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        block = file.read(4096)
    return b"\0" not in block and block.decode("utf-8", errors="ignore") != ""


def refuse_pickle(path: Path) -> None:
    """Raise if a file is a Python pickle (``.pt``, ``.pth``, ``.pkl``).

    Raises:
        InvalidInput: says why, and how to convert the file.
    """
    if kind_of(path) == "pickle":
        msg = (
            f"{str(path)!r} is a Python pickle, which can execute code when it is "
            f"loaded, so exhume never opens one; convert it where you trust it, with "
            f"safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
            f"'FILE.safetensors')"
        )
        raise InvalidInput(msg)


def read_header(path: Path | str) -> Header:
    """Read names, types, shapes and metadata of a safetensors file, but no tensor.

    Uses the standard library alone: eight little-endian bytes give the length of a
    JSON header, the tensors follow without gaps.

    Raises:
        InvalidInput: not a file, a pickle, another format, or truncated.
    """
    path = require_file(path)
    refuse_pickle(path)
    kind = kind_of(path)
    if kind != "safetensors":
        text = {"text": "text", "unknown": "of an unknown format"}.get(kind, f"{kind}")
        msg = f"{str(path)!r} is {text}, not a safetensors file; give one"
        raise InvalidInput(msg)
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or length > min(_HEADER_LIMIT, total - 8):
            raise _not_safetensors(path, "its header is cut off or is no header")
        raw = file.read(length)
    try:
        header = _parse(json.loads(raw))
    except _MALFORMED as error:
        raise _not_safetensors(path, "its header is not valid") from error
    tensors, metadata, end = header
    if end != total - 8 - length:
        reason = (
            f"the header promises {end} bytes of tensors, {total - 8 - length} came"
        )
        raise _not_safetensors(path, reason)
    return Header(tensors, metadata)


def _parse(raw: dict[str, Any]) -> tuple[dict[str, TensorEntry], dict[str, str], int]:
    metadata = {str(k): str(v) for k, v in raw.pop("__metadata__", {}).items()}
    tensors, end = {}, 0
    for name, entry in raw.items():
        name.encode()  # JSON can escape half a character, which no name holds
        tensors[name] = TensorEntry(entry["dtype"], tuple(map(int, entry["shape"])))
        start, stop = map(int, entry["data_offsets"])
        if (stop - start) * 8 != tensors[name].size * _BITS[entry["dtype"]]:
            msg = f"size of {name}"
            raise ValueError(msg)
        end = max(end, stop)
    return tensors, metadata, end


def _not_safetensors(path: Path, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{str(path)!r} is not a complete safetensors file: {reason}; copy or write "
        f"it again"
    )
