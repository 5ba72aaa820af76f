"""A GGUF file, mapped: metadata, and tensors by name. Nothing is copied. split.py joins parts."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from llama2np.files import open_regular
from llama2np.formats import kinds
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.dtypes import DTYPES
from llama2np.formats.gguf import split
from llama2np.formats.gguf.header import MAGIC, Info, parse
from llama2np.formats.gguf.metadata import Metadata
from llama2np.formats.gguf.types import GONE, TYPES, Type, numpy_type
from llama2np.formats.mapped import map_weights
from llama2np.formats.source import Stored
from llama2np.model.gguf_blocks import FORMATS, Blocks, dequantize
from llama2np.model.weights import Dense, Matrix
from llama2np.output import brief

ALIGNMENT = 32  # of the data and of each tensor, where general.alignment is missing


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a file: shape is (..., outputs, inputs), data its bytes, a view."""

    where: str  # the file and the tensor's name, for errors
    shape: tuple[int, ...]
    type: Type
    data: np.ndarray  # (bytes,) uint8

    @property
    def kind(self) -> str:
        """The number format: a NumPy type such as "float32", or a key of gguf_blocks.FORMATS.

        Raises CheckpointError for one that cannot be read.
        """
        if not self.type.kind:
            readable = ", ".join(each.name for each in TYPES.values() if each.kind)
            raise CheckpointError(
                f"{self.where}: is {self.type.name}, which cannot be read yet: get the model in "
                f"one of {readable}"
            )
        return self.type.kind

    def matrix(self) -> Matrix:
        """The tensor as a matrix, or as stacked matrices if it has more than two axes: a view."""
        if self.kind in FORMATS:
            return Blocks(self.data.reshape(*self.shape[:-1], -1), self.kind)
        return Dense(self.floats())

    def floats(self) -> np.ndarray:
        """The values of a tensor of float32, float16 or bfloat16: a view."""
        if self.kind not in DTYPES:
            raise CheckpointError(f"{self.where}: is {self.type.name}, expected F32, F16 or BF16")
        return self.array()

    def array(self) -> np.ndarray:
        """The values of a tensor whose kind is a NumPy type: a view."""
        return self.data.view(numpy_type(self.kind)).reshape(self.shape)

    def flat(self) -> GgufTensor:
        """Stacked matrices as one, (all rows, inputs); other tensors as they are."""
        if len(self.shape) < 3:
            return self
        return replace(self, shape=(math.prod(self.shape[:-1]), self.shape[-1]))

    def stored(self) -> Stored:
        """The tensor for `inspect` and `export`, whose rows are dequantized when they are read."""
        return Stored(self.shape, self.type.kind or self.type.name, self.data.size, self._rows)

    def _rows(self, start: int, end: int) -> np.ndarray:
        kind = self.kind
        rows = self.data.reshape(self.shape[0] if len(self.shape) > 1 else 1, -1)
        if len(self.shape) == 1:
            values = dequantize(rows, kind)[0] if kind in FORMATS else self.array()
            return values[start:end]
        if kind in FORMATS:
            rows = rows[start:end].reshape(end - start, *self.shape[1:-1], -1)
            return dequantize(rows, kind)
        return self.array()[start:end]


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a file has: its metadata, and its tensors in their order."""

    path: str
    version: int
    metadata: Metadata
    packed: Mapping[str, memoryview]  # type and value of each key, as they are in the file
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a GGUF file does."""
    try:
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read(path: str | os.PathLike[str]) -> GgufFile:
    """Open a GGUF file of version 2 or 3, mapped, with all parts if it is the first of several.

    Raises CheckpointError, and OSError.
    """
    return split.joined(_read_file(path), _read_file)


@kinds.reader("gguf", CheckpointError)
def _read_file(path: str | os.PathLike[str]) -> GgufFile:
    """One file, which may be a part."""
    with open_regular(path) as file:
        data = map_weights(file)
    try:
        header = parse(memoryview(data))
        alignment = header.metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {brief(alignment)}, expected a power of two")
        start = -(-header.size // alignment) * alignment
        places = _places(header.infos, alignment, max(len(data) - start, 0))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    tensors = {
        info.name: GgufTensor(
            f"{path}: {info.name}",
            info.axes[::-1],
            TYPES[info.number],
            data[start + info.offset : start + end],
        )
        for info, end in zip(header.infos, places, strict=True)
    }
    metadata = Metadata(str(path), header.metadata)
    packed = {key: memoryview(data)[first:end] for key, (first, end) in header.spans.items()}
    return GgufFile(str(path), header.version, metadata, packed, tensors)


def _places(infos: list[Info], alignment: int, size: int) -> list[int]:
    """The end of each tensor in the data of `size` bytes. Raises ValueError if it cannot be."""
    ends = []
    for info in infos:
        end = info.offset + _nbytes(info)
        if info.offset % alignment:
            raise ValueError(
                f"{brief(info.name)} is at byte {info.offset:,} of the data, expected a multiple "
                f"of {alignment}"
            )
        if end > size:
            raise ValueError(
                f"{brief(info.name)} needs the data up to byte {end:,}, the file has {size:,} "
                "bytes of data: truncated download?"
            )
        ends.append(end)
    if len({info.name for info in infos}) < len(infos):
        names = sorted(info.name for info in infos)
        twice = next(a for a, b in pairwise(names) if a == b)
        raise ValueError(f"the tensor {brief(twice)} occurs twice")
    by_place = sorted(zip((info.offset for info in infos), ends, infos, strict=True))
    for (_, end, _), (first, _, info) in pairwise(by_place):
        if first < end:
            raise ValueError(f"{brief(info.name)} overlaps with another tensor at byte {first:,}")
    return ends


def _nbytes(info: Info) -> int:
    """The size of a tensor. Raises ValueError for an unknown type or an impossible shape."""
    kind = TYPES.get(info.number)
    if kind is None:
        name = GONE.get(info.number, f"type {info.number}")
        known = ", ".join(each.name for each in TYPES.values())
        raise ValueError(f"{brief(info.name)} is {name}, expected one of {known}")
    row, values = info.axes[0], math.prod(info.axes)
    if not 0 < values < 2**47:
        raise ValueError(f"{brief(info.name)} claims the shape {brief(info.axes[::-1])}")
    if row % kind.values:
        raise ValueError(
            f"{brief(info.name)} is {kind.name} in rows of {row:,} values, expected a multiple of "
            f"{kind.values}"
        )
    return values // kind.values * kind.nbytes
