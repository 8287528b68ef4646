"""Named tensors as safetensors bytes, and a reader that checks the header before it believes it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

from poisonaudit.errors import InputRefused, StorageError
from poisonaudit.store.atomic import os_refusal

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 10_000_000
MAX_TENSORS = 100_000

_METADATA_KEY = "poisonaudit"
_DIGEST = "values_sha256"
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """What a header declares about one tensor.

    Attributes:
        dtype: safetensors name, e.g. `F32`.
        shape: as declared.
    """

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """A checked safetensors header: entries by name, and the file's metadata."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    """Serialise named tensors.

    The metadata goes under one key as sorted JSON: safetensors writes several keys in random order, and equal
    contents should have equal digests. A digest of the values goes with it, which `read_tensors` compares.

    Args:
        tensors: any dtypes and devices; copied to contiguous CPU tensors.
        metadata: JSON-able values.

    Returns:
        The safetensors file's bytes.
    """
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({**(metadata or {}), _DIGEST: _digest(plain)}, allow_nan=False, sort_keys=True)
    content: bytes = save(plain, {_METADATA_KEY: text})
    return content


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file whose header has been checked.

    Args:
        path: the file.

    Returns:
        Name -> CPU tensor.

    Raises:
        InputRefused: PA103, the file is damaged, or its values are not those that `tensors_to_bytes` wrote; see
            `read_checked` for the checks before.
    """
    from safetensors.torch import load

    data, header = read_checked(Path(path))
    try:
        tensors: dict[str, Tensor] = load(data)
    except Exception as error:
        raise InputRefused("PA103", damaged(Path(path), f"{type(error).__name__}")) from error
    written = _own_metadata(Path(path), header).get(_DIGEST)
    if written is not None and written != _digest(tensors):
        raise InputRefused("PA103", damaged(Path(path), "its values were changed after it was written"))
    return tensors


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata that `tensors_to_bytes` stored; other writers' metadata as plain strings.

    Args:
        path: a safetensors file.

    Returns:
        Key -> value.

    Raises:
        InputRefused: PA103, the metadata is damaged; see `read_checked` for the checks before.
    """
    header = read_checked(Path(path))[1]
    if _METADATA_KEY not in header.metadata:
        return dict(header.metadata)
    return {key: value for key, value in _own_metadata(Path(path), header).items() if key != _DIGEST}


def _own_metadata(path: Path, header: Header) -> dict[str, Any]:
    """What `tensors_to_bytes` stored, nothing from another writer."""
    try:
        body = json.loads(header.metadata.get(_METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise InputRefused("PA103", damaged(path, "its metadata is not JSON"))
    return body


def _digest(values: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of CPU tensors."""
    import torch

    found = hashlib.sha256()
    for name in sorted(values):
        value = values[name]
        found.update(f"{name}\0{value.dtype}{tuple(value.shape)}\0".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def read_checked(path: Path, accept: Callable[[Header], None] | None = None) -> tuple[bytes, Header]:
    """The file's bytes and its checked header; the same open file serves both.

    Args:
        path: a safetensors file.
        accept: called with the header before any value is read; raises to refuse the file.

    Returns:
        `(bytes, header)`.

    Raises:
        InputRefused: PA101, no such file; see `read_header` for the checks on its header.
        StorageError: PA503 it cannot be read.
    """
    if not path.is_file():
        raise InputRefused("PA101", f"{path} is not a file. Check the path.")
    try:
        with path.open("rb") as stream:
            header = read_header(path, stream)
            if accept is not None:
                accept(header)
            stream.seek(0)
            return stream.read(), header
    except OSError as error:
        raise StorageError("PA503", os_refusal("read", path, error)) from error


def read_header(path: Path, stream: BinaryIO) -> Header:
    """Read and check a safetensors header; no tensor value is touched.

    Args:
        path: for messages.
        stream: the open file, at its start.

    Returns:
        The declared entries and metadata.

    Raises:
        InputRefused: PA103 damaged, PA106 the header is beyond `MAX_HEADER_BYTES` or `MAX_TENSORS`.
    """
    size = os.fstat(stream.fileno()).st_size
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise InputRefused("PA103", damaged(path, f"it has {size} bytes"))
    (length,) = struct.unpack("<Q", prefix)
    if length > size - 8:
        raise InputRefused("PA103", damaged(path, f"it declares a header of {length} bytes and has {size}"))
    if length > MAX_HEADER_BYTES:
        raise InputRefused(
            "PA106",
            f"{path.name}: the header has {length} bytes, the cap is {MAX_HEADER_BYTES}. Save fewer tensors.",
        )
    try:
        body = json.loads(stream.read(length).decode("utf-8"), object_pairs_hook=_distinct_keys)
    except (ValueError, RecursionError) as error:
        raise InputRefused("PA103", damaged(path, f"its header is not JSON ({type(error).__name__})")) from None
    if not isinstance(body, dict):
        raise InputRefused("PA103", damaged(path, "its header is not a table of tensors"))
    metadata = body.pop("__metadata__", {})
    if len(body) > MAX_TENSORS:
        raise InputRefused(
            "PA106",
            f"{path.name}: {len(body)} tensors, the cap is {MAX_TENSORS}. Save the model's own state dict.",
        )
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputRefused("PA103", damaged(path, "its metadata is not a table of strings"))
    entries = {name: _entry(path, name, item) for name, item in body.items()}
    _check_extent(path, body, size - 8 - length)
    return Header(entries=entries, metadata=metadata)


def damaged(path: Path, reason: str) -> str:
    """Message of PA103."""
    return f"{path.name} is not a readable {path.suffix or 'tensor'} file: {reason}. Copy or save it again."


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError("a name occurs twice")
    return body


def _entry(path: Path, name: str, item: Any) -> TensorEntry:
    """Check one declared tensor: known dtype, whole-number shape, byte range of exactly that size."""
    entry = item if isinstance(item, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _whole_numbers(shape) or not _whole_numbers(offsets):
        raise InputRefused("PA103", damaged(path, f"the entry of {name[:60]!r} is malformed"))
    if dtype not in _BITS:
        raise InputRefused("PA103", damaged(path, f"{name[:60]!r} has the unknown dtype {dtype[:20]!r}"))
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _BITS[dtype] // 8:
        raise InputRefused("PA103", damaged(path, f"the byte range of {name[:60]!r} does not fit its shape"))
    return TensorEntry(dtype=dtype, shape=tuple(shape))


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value) and len(value) <= 64
    )


def _check_extent(path: Path, body: Mapping[str, Any], available: int) -> None:
    """Tensors must fill the rest of the file without gaps or overlaps."""
    reached = 0
    for start, end in sorted(tuple(item["data_offsets"]) for item in body.values()):
        if start != reached:
            raise InputRefused("PA103", damaged(path, "its tensors overlap or leave gaps"))
        reached = end
    if reached != available:
        raise InputRefused("PA103", damaged(path, f"it holds {available} bytes of values and declares {reached}"))
