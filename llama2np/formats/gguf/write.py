"""Write GGUF files: header.py describes the format."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llama2np.atomic import replacing
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.file import ALIGNMENT, GgufFile
from llama2np.formats.gguf.header import ARRAY, MAGIC, NUMBERS, STRING
from llama2np.formats.gguf.quantize import FLOATS, QUANTIZED, quantize
from llama2np.formats.gguf.types import TYPES
from llama2np.formats.source import Stored
from llama2np.model.gguf_blocks import FORMATS
from llama2np.output import brief

# {type: general.file_type}: what most of the matrices are
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
FILE_TYPES |= {"Q4_0": 2, "Q4_1": 3, "Q4_K": 14, "Q5_0": 8, "Q5_1": 9, "Q6_K": 18, "Q8_0": 7}
_OF_32 = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # in blocks of 32 in place of 256
_ALWAYS_FLOAT = ("ffn_gate_inp", "position_embd", "token_types")  # llama.cpp expects float32
_VERSION = 3
_NUMBERS = {each.name: number for number, each in TYPES.items()}
_SIZES = {each.name: (each.values, each.nbytes) for each in TYPES.values()}

Progress = Callable[[int], object]  # called with the number of values written since its last call


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written: its name and type in the file. raw: its bytes, if they are known.

    Stacked matrices are stored as one, (all rows, inputs); `shape` is then that of the stack.
    """

    name: str
    type: str
    stored: Stored
    raw: np.ndarray | None = None
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.shape or self.stored.shape)

    @property
    def nbytes(self) -> int:
        """The size in the file."""
        values, size = _SIZES[self.type]
        return math.prod(self.shape) // values * size

    def parts(self) -> Iterator[np.ndarray]:
        """Yield the bytes of the tensor in blocks. Raises ValueError."""
        if self.raw is not None:
            yield self.raw
            return
        for block in self.stored.blocks():
            yield quantize(block.reshape(-1, block.shape[-1]), self.type)


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, bytes],
    tensors: Sequence[NewTensor],
    progress: Progress = int,
) -> int:
    """Write a file, block by block, and return its size. After an error no part of it is left.

    metadata: the values as `packed` makes them. Raises CheckpointError for values that a type
    cannot represent, and OSError.
    """
    head = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    head += [part for key, value in metadata.items() for part in (_string(key), value)]
    offset = 0
    for tensor in tensors:
        axes = tensor.shape[::-1]
        form, number = f"<I{len(axes)}QIQ", _NUMBERS[tensor.type]
        head += [_string(tensor.name), struct.pack(form, len(axes), *axes, number, offset)]
        offset += _padded(tensor.nbytes)
    start = b"".join(head)
    start += bytes(_padded(len(start)) - len(start))
    with replacing(path, len(start) + offset) as file:
        file.write(start)
        for tensor in tensors:
            try:
                for part in tensor.parts():
                    file.write(part)
                    progress(math.prod(tensor.shape) * part.nbytes // max(tensor.nbytes, 1))
            except CheckpointError:
                raise
            except ValueError as error:
                raise CheckpointError(f"{tensor.name} {error}") from None
            file.write(bytes(_padded(tensor.nbytes) - tensor.nbytes))
    return len(start) + offset


def packed(value: Any) -> bytes:
    """A value of metadata with its type: a bool, int, float, str, array, or sequence of str."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, np.ndarray):
        kind = next(k for k, form in NUMBERS.items() if np.dtype(form) == value.dtype)
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + value.tobytes()
    texts = [_string(text) for text in value]
    return struct.pack("<IIQ", ARRAY, STRING, len(texts)) + b"".join(texts)


def type_for(name: str, shape: tuple[int, ...], kind: str, is_head: bool) -> str:
    """The type of a tensor in a file of `kind`, as llama.cpp chooses it.

    Norms and biases are F32, and some small matrices. The classifier, also if it is the embedding
    (`is_head`), has at least 6 bits: Q6_K, or Q8_0. A matrix whose rows are no whole number of
    blocks has another format, at last F16.
    """
    if len(shape) == 1 or any(word in name for word in _ALWAYS_FLOAT):
        return "F32"
    if is_head and kind in QUANTIZED:
        kind = "Q8_0" if kind == "Q8_0" else "Q6_K"
    for found in (kind, _OF_32.get(kind, "")):
        if found in FLOATS or (found and shape[-1] % FORMATS[found].values == 0):
            return found
    return "F16"


def check_type(kind: str) -> None:
    """Raise ValueError for a type that cannot be written."""
    if kind not in FILE_TYPES:
        raise ValueError(f"type must be {' or '.join(FILE_TYPES)}, not {brief(kind)}")


def requantized(file: GgufFile, kind: str) -> tuple[dict[str, bytes], list[NewTensor]]:
    """The metadata and tensors of a file, for another one of that type.

    What has this type already is copied.
    """
    metadata = {key: bytes(value) for key, value in file.packed.items()}
    metadata.pop("general.alignment", None)
    metadata["general.file_type"] = packed(FILE_TYPES[kind])
    head = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
    made = []
    for name, tensor in file.tensors.items():
        new_type = type_for(name, tensor.shape, kind, name == head)
        new = NewTensor(name, new_type, tensor.flat().stored(), shape=tensor.shape)
        made.append(replace(new, raw=tensor.data) if new.type == tensor.type.name else new)
    return metadata, made


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
