"""The safetensors format: uint64 length of a JSON header, the header, the tensors' bytes.

Format: https://huggingface.co/docs/safetensors. Read and written here directly, so that both go
block by block; the checks are those of the reference implementation.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from llama2np import kinds
from llama2np.checkpoint import CheckpointError
from llama2np.convert.dtypes import dtype_of
from llama2np.convert.json_file import parse_object
from llama2np.convert.mapped import map_file
from llama2np.convert.source import Stored, check_shape
from llama2np.output import brief

_LARGEST_HEADER = 100_000_000
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


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
    header = parse_object(data[8 : 8 + length], f"{path}: header")
    header.pop("__metadata__", None)
    start = 8 + length
    spans = {name: _span(f"{path}: {name}", entry) for name, entry in header.items()}
    _check_no_gaps(str(path), spans, size - start)
    return {
        name: Stored.view(
            np.frombuffer(data, dtype, (last - first) // dtype.itemsize, start + first).reshape(
                shape
            )
        )
        for name, (first, last, dtype, shape) in spans.items()
    }


def _span(where: str, entry: Any) -> tuple[int, int, np.dtype, tuple[int, ...]]:
    """Where a tensor begins and ends, its type and its shape."""
    try:
        first, last = entry["data_offsets"]
        shape, kind = tuple(entry["shape"]), entry["dtype"]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets") from None
    if not all(type(number) is int and 0 <= number < 2**48 for number in (first, last, *shape)):
        raise CheckpointError(
            f"{where}: shape {brief(shape)}, bytes {brief(first)} to {brief(last)}"
        )
    check_shape(shape, where)
    dtype = dtype_of(_DTYPES.get(kind, kind) if isinstance(kind, str) else brief(kind), where)
    needed = dtype.itemsize * math.prod(shape)
    if last - first != needed:
        raise CheckpointError(
            f"{where}: shape {shape} needs {needed:,} bytes, has {last - first:,}"
        )
    return first, last, dtype, shape


def _check_no_gaps(path: str, spans: Mapping[str, tuple[Any, ...]], size: int) -> None:
    """Each byte of the data belongs to one tensor: nothing overlaps, is hidden or missing."""
    end = 0
    for name, (first, last, *_) in sorted(spans.items(), key=lambda item: item[1][:2]):
        if first != end:
            problem = "overlaps with another" if first < end else "leaves a gap before it"
            raise CheckpointError(f"{path}: {name} {problem}: byte {first:,}, expected {end:,}")
        end = last
    if end != size:
        raise CheckpointError(
            f"{path}: the tensors need {end:,} bytes, the file has {size:,} for them: "
            "truncated download?"
        )


def header_for(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> bytes:
    """The start of a file that holds tensors of these shapes, one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers insists on it
    end = 0
    for name, shape in shapes.items():
        first, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {
            "dtype": _NAMES[dtype.name],
            "shape": list(shape),
            "data_offsets": [first, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
