"""The safetensors format: uint64 length of a JSON header, the header, the tensors' bytes.

Format: https://huggingface.co/docs/safetensors. This module reads and writes it directly, so that
both work block by block. It rejects the files that the safetensors package rejects; tests compare
the two.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from llama2np.formats import kinds
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.dtypes import bfloat16
from llama2np.formats.mapped import map_file
from llama2np.formats.safetensors_header import BITS, Entry, entries
from llama2np.formats.source import Stored
from llama2np.output import brief

_LARGEST_HEADER = 100_000_000  # the format's own limit
_MOST_DIMENSIONS = 64
_NAMES = {  # our names of the types that can be read
    **{"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "BOOL": "bool"},
    **{"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
}
_THEIRS = {ours: theirs for theirs, ours in _NAMES.items()}


@dataclass(slots=True)
class _Rows:
    """Reads the rows of a tensor. Small: a header of 100 MB may have two million of them."""

    data: Any  # the mapped file
    path: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # offset in the file

    def __call__(self, first: int, end: int) -> np.ndarray:
        """Rows first to end; the one value of a scalar is a row."""
        if self.dtype in BITS:
            raise CheckpointError(f"{self.path}: tensors of type {self.dtype} cannot be read here")
        dtype = bfloat16() if self.dtype == "bfloat16" else np.dtype(self.dtype)
        width = math.prod(self.shape[1:])
        start = self.start + first * width * dtype.itemsize
        values = np.frombuffer(self.data, dtype, (end - first) * width, start)
        return values.reshape(end - first, *self.shape[1:])


@kinds.reader("safetensors", CheckpointError)
def read(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """The tensors of a .safetensors file, mapped. Raises CheckpointError, and OSError."""
    data = map_file(path)
    size, length = len(data), int.from_bytes(data[:8], "little")
    if size < 8 or length > min(size - 8, _LARGEST_HEADER):
        raise CheckpointError(
            f"{path}: not a safetensors file: claims a header of {length:,} bytes, "
            f"the file has {size:,}"
        )
    stored = partial(_stored, data, str(path), 8 + length)
    found: dict[str, Any] = {}
    try:
        for name, entry in entries(memoryview(data)[8 : 8 + length]):
            try:
                found[name] = stored(name, entry)
            except ValueError:
                found[name] = entry  # allowed, if another tensor of the same name follows
        for name, tensor in found.items():
            if isinstance(tensor, Entry):
                stored(name, tensor)
        _check_no_gaps(found, 8 + length, size)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return found


def _stored(data: Any, path: str, start: int, name: str, entry: Entry) -> Stored:
    """The tensor of an entry. Raises ValueError if it is not consistent."""
    shape, size = entry.shape, entry.last - entry.first
    bits = BITS[entry.dtype]
    if len(shape) <= _MOST_DIMENSIONS and bits * math.prod(shape) != 8 * size:
        needed = -(-bits * math.prod(shape) // 8)
        raise ValueError(f"{name}: shape {brief(shape)} needs {needed:,} bytes, has {size:,}")
    # NumPy's limits, which apply to arrays without values, too.
    if len(shape) > _MOST_DIMENSIONS or -(-bits // 8) * math.prod(n or 1 for n in shape) >= 2**63:
        raise ValueError(f"{name}: claims {len(shape):,} dimensions, shape {brief(shape)}")
    if entry.last > len(data) - start:
        raise ValueError(
            f"the tensors need at least {entry.last:,} bytes, the file has {len(data) - start:,} "
            "for them: truncated download?"
        )
    dtype = _NAMES.get(entry.dtype, entry.dtype)
    return Stored(shape, dtype, size, _Rows(data, path, dtype, shape, start + entry.first))


def _check_no_gaps(found: Mapping[str, Stored], start: int, size: int) -> None:
    """Raise ValueError unless each byte of the data belongs to exactly one tensor."""
    firsts = np.fromiter((tensor.read.start for tensor in found.values()), np.int64)  # type: ignore[attr-defined]
    lasts = firsts + np.fromiter((tensor.nbytes for tensor in found.values()), np.int64)
    order = np.lexsort((lasts, firsts))
    firsts, ends = firsts[order], np.concatenate([[start], lasts[order]])
    wrong = np.flatnonzero(firsts != ends[:-1])
    if wrong.size:
        first, end, at = firsts[wrong[0]] - start, ends[wrong[0]] - start, order[wrong[0]]
        problem = "overlaps with another" if first < end else "leaves a gap before it"
        name = next(islice(found, int(at), None))
        raise ValueError(f"{name} {problem}: byte {first:,}, expected {end:,}")
    if ends[-1] != size:
        raise ValueError(
            f"the tensors need {ends[-1] - start:,} bytes, the file has {size - start:,} for them"
        )


def header_for(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> bytes:
    """The header of a file with tensors of these shapes, one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires it
    end = 0
    for name, shape in shapes.items():
        first, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {
            "dtype": _THEIRS[dtype.name],
            "shape": list(shape),
            "data_offsets": [first, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
