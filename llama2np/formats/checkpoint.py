"""llama2.c's .bin files: versions 0 and 1 in float32, version 2 in Q8_0, as the header says.

Formats: llama2.c's export.py (`legacy_export`, `version1_export`, `version2_export`). Everything
is little-endian. The size of a file must match its header to the byte before anything in it is
used. The file is then mapped: no weight is copied. Settings without a field in llama2.c's headers
are stored in the padding at their end.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from llama2np import advice
from llama2np.arguments import whole
from llama2np.atomic import replacing
from llama2np.files import open_regular
from llama2np.formats import kinds
from llama2np.formats.mapped import map_weights
from llama2np.model.config import Config
from llama2np.model.weights import LAYER_SHAPES, MATRICES, SHAPES, Dense, Int8, Weights
from llama2np.output import printable
from llama2np.store.names import located

MAGIC = 0x616B3432  # "ak42": the first word of every version but 0
_HEADER_SIZE = {0: 28, 1: 256, 2: 256}
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
# Versions 1 and 2 have at byte 64: a magic number, the size in bytes of the following fields, and
# the fields as float32. A field of zero means Config's default; llama2.c writes only zeros here.
_EXTENSION_MAGIC = b"l2np"
_EXTENSION_START, _EXTENSION_HEAD = 64, 8
_EXTENSION_FIELDS = ("rope_theta", "norm_eps")
_MAX = 2**27 - 1  # no real network has a larger number in its header; text read as numbers has

# Tensors in file order. Tensors of layers are stacked: all wq, then all wk ...
_FILE_ORDER = {
    0: "embedding attn_norm wq wk wv wo ffn_norm w_gate w_down w_up final_norm rope_tables",
    1: "attn_norm ffn_norm final_norm embedding wq wk wv wo w_gate w_down w_up",
}
_FILE_ORDER[2] = _FILE_ORDER[1]
LAYER_TENSORS = tuple(LAYER_SHAPES)  # each is a stack of the tensors of all layers

# A tensor in a file: float32 values, or int8 values and their float32 scales.
Tensor = np.ndarray | tuple[np.ndarray, np.ndarray]


class CheckpointError(ValueError):
    """A model file that cannot be used. The text has the file, what was expected and found."""

    def __init__(self, text: str):
        super().__init__(printable(text))


class CheckpointWarning(UserWarning):
    """A contradiction in a model file. The text says which of the two values is used."""

    def __init__(self, text: str):
        super().__init__(printable(text))


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a .bin. Raises ValueError for a group size that does not fit."""

    version: int
    config: Config
    tied: bool  # whether the classifier is the embedding
    group_size: int = 0  # number of values that share a scale; only in version 2

    def __post_init__(self) -> None:
        for name in ("version", "group_size"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        dim, hidden_dim, group = self.config.dim, self.config.hidden_dim, self.group_size
        if self.version == 2 and (group < 1 or dim % group or hidden_dim % group):
            # runq.c computes such files wrongly (llama2.c #532)
            raise ValueError(
                f"group size {group} does not divide dim={dim} and hidden_dim={hidden_dim}"
            )
        if self.version == 0 and (extra := _extension(self.config)):
            values = ", ".join(f"{name}={value:g}" for name, value in extra.items())
            raise ValueError(f"version 0 has no field for {values}: use --version 1")

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield (name, shape) of each tensor, in file order."""
        c = self.config
        # cos and sin, which are not used
        shapes: dict[str, tuple[int, ...]] = {"rope_tables": (2, c.seq_len, c.head_dim // 2)}
        for name, numbers in SHAPES.items():
            shape = tuple(int(getattr(c, number)) for number in numbers)
            shapes[name] = (c.n_layers, *shape) if name in LAYER_SHAPES else shape
        for name in _FILE_ORDER[self.version].split():
            yield name, shapes[name]
        if not self.tied:
            yield "classifier", shapes["classifier"]

    def quantized(self, name: str) -> bool:
        """Whether the tensor of that name is int8 with scales."""
        return self.version == 2 and name in MATRICES

    def size(self, name: str, shape: tuple[int, ...]) -> int:
        """The size of a tensor in bytes."""
        values = math.prod(shape)
        return values + 4 * (values // self.group_size) if self.quantized(name) else 4 * values

    @property
    def file_size(self) -> int:
        """The size of the whole file in bytes."""
        tensors = sum(self.size(name, shape) for name, shape in self.tensors())
        return _HEADER_SIZE[self.version] + tensors

    def to_bytes(self) -> bytes:
        """The header as bytes of a file."""
        numbers = [getattr(self.config, name) for name in _FIELDS]
        if max(numbers) > _MAX:
            name = _FIELDS[numbers.index(max(numbers))]
            hint = ": choose another, --seq-len N" if name == "seq_len" else ""
            raise ValueError(f"{name}={max(numbers):,}, a .bin holds at most {_MAX:,}{hint}")
        if self.version == 0:
            numbers[5] *= 1 if self.tied else -1
            return struct.pack("<7i", *numbers)
        packed = struct.pack("<Ii7iB", MAGIC, self.version, *numbers, self.tied)
        if self.version == 2:
            packed += struct.pack("<i", self.group_size)
        if extra := _extension(self.config):
            fields = np.array([extra.get(name, 0) for name in _EXTENSION_FIELDS], "<f4").tobytes()
            packed = packed.ljust(_EXTENSION_START, b"\0")
            packed += _EXTENSION_MAGIC + struct.pack("<I", len(fields)) + fields
        return packed.ljust(_HEADER_SIZE[self.version], b"\0")


@kinds.reader("model", CheckpointError)
def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a .bin, and compare the size of the file with it.

    Raises CheckpointError, and OSError if the file cannot be opened.
    """
    with _opened(path) as file:
        return _read_header(path, file)


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    return open_regular(located(path))


def _read_header(path: str | os.PathLike[str], file: BinaryIO) -> Header:
    header = _parse_header(path, file.read(max(_HEADER_SIZE.values())))
    _check_size(path, header, os.fstat(file.fileno()).st_size)
    return header


def _check_size(path: str | os.PathLike[str], header: Header, size: int) -> None:
    if size != header.file_size:
        hint = "truncated download?" if size < header.file_size else "not a checkpoint, or damaged"
        raise CheckpointError(f"{path}: needs {header.file_size:,} bytes, has {size:,}: {hint}")


def load(path: str | os.PathLike[str]) -> tuple[Config, Weights]:
    """Map a checkpoint. Raises CheckpointError, and OSError if the file cannot be opened."""
    header, tensors = open_tensors(path)

    named: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name in LAYER_TENSORS:
            for i in range(header.config.n_layers):
                named[f"layers.{i}.{name}"] = _weight(tensor, i)
        elif name != "rope_tables":
            named[name] = _weight(tensor)
    named.setdefault("classifier", named["embedding"])
    return header.config, Weights(named)


@kinds.reader("model", CheckpointError)
def open_tensors(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    """Map a checkpoint; return its header and its tensors by name. Raises the errors of `load`."""
    with _opened(path) as file:  # opened once, so that header and data are of the same file
        header = _read_header(path, file)
        data, offset, tensors = map_weights(file), _HEADER_SIZE[header.version], {}
    _check_size(path, header, len(data))
    for name, shape in header.tensors():
        end = offset + header.size(name, shape)
        view = _quantized_view if header.quantized(name) else _float32_view
        tensors[name] = view(data[offset:end], shape, header.group_size)
        offset = end
    return header, tensors


def save(
    path: str | os.PathLike[str],
    header: Header,
    tensors: Mapping[str, Tensor | Iterator[np.ndarray]],
) -> None:
    """Write a checkpoint, tensor by tensor. After an error no part of it is left.

    `tensors` has the names that `Header.tensors` yields. A value is a whole tensor of that shape,
    or an iterator over arrays whose bytes, concatenated, are the tensor in the file. The
    rope_tables are zeros if they are missing. Raises ValueError for wrong shapes, and OSError.
    """
    with replacing(path, header.file_size) as file:
        file.write(header.to_bytes())
        for name, shape in header.tensors():
            tensor = tensors.get(name) if name == "rope_tables" else tensors[name]
            if tensor is None:
                tensor = _zeros(header.size(name, shape))
            parts = tensor if isinstance(tensor, Iterator) else _parts(header, name, shape, tensor)
            extra = sum(file.write(part) for part in parts) - header.size(name, shape)
            if extra:
                raise ValueError(f"{name} has {extra:+,} bytes more than expected")


def _zeros(size: int) -> Iterator[np.ndarray]:
    """Yield `size` bytes of zeros in blocks."""
    zeros = np.zeros(2**20, np.uint8)
    for start in range(0, size, len(zeros)):
        yield zeros[: size - start]


def _parts(
    header: Header, name: str, shape: tuple[int, ...], tensor: Tensor
) -> Iterator[np.ndarray]:
    """Yield the arrays of a whole tensor in the order of the file."""
    values = tensor[0] if isinstance(tensor, tuple) else tensor
    if values.shape != shape or isinstance(tensor, tuple) != header.quantized(name):
        raise ValueError(f"{name} has shape {values.shape}, expected {shape}")
    if not isinstance(tensor, tuple):
        yield np.ascontiguousarray(values, "<f4")
        return
    q, scales = (part.reshape(-1, *part.shape[-2:]) for part in tensor)
    for matrix, its_scales in zip(q, scales, strict=True):
        yield np.ascontiguousarray(matrix, "i1")
        yield np.ascontiguousarray(its_scales, "<f4")


def _extension(config: Config) -> dict[str, float]:
    """The fields that differ from llama2.c's fixed values."""
    fields, float32 = {}, np.finfo(np.float32)
    for name in _EXTENSION_FIELDS:
        value = getattr(config, name)
        if value != Config.__dataclass_fields__[name].default:
            if not float(float32.tiny) <= value <= float(float32.max):
                raise ValueError(f"{name}={value} is not a float32 value")
            fields[name] = value
    return fields


def _parse_extension(path: str | os.PathLike[str], head: bytes) -> dict[str, float]:
    """The fields in the header of version 1 or 2 that llama2.c does not have."""
    block = head[_EXTENSION_START:]
    if block[:4] != _EXTENSION_MAGIC:
        return {}
    start = _EXTENSION_HEAD + 4 * len(_EXTENSION_FIELDS)
    size = _EXTENSION_HEAD + struct.unpack_from("<I", block, 4)[0]
    if size < start or size > len(block) or any(block[start:size]):
        raise CheckpointError(
            f"{path}: its header has unknown fields: was it written by a newer llama2np?"
        )
    values = np.frombuffer(block[_EXTENSION_HEAD:start], "<f4")
    # Through text, so that 1e-6 is read as 1e-6, not as the float64 of its float32.
    return {n: float(str(v)) for n, v in zip(_EXTENSION_FIELDS, values, strict=True) if v != 0}


def _parse_header(path: str | os.PathLike[str], head: bytes) -> Header:
    version, start = 0, 0
    if head[:4] == struct.pack("<I", MAGIC):
        version, start = int.from_bytes(head[4:8], "little", signed=True), 8
        if version not in (1, 2) and len(head) >= 8:
            raise CheckpointError(f"{path}: version {version}, expected 0, 1 or 2")
    # If the version itself is cut off, the longest header is reported as expected.
    needed = _HEADER_SIZE.get(version, max(_HEADER_SIZE.values()))
    if len(head) < needed:
        raise CheckpointError(
            f"{path}: the header needs {needed} bytes, the file has {len(head)}: "
            "truncated download?"
        )
    numbers = dict(zip(_FIELDS, struct.unpack_from("<7i", head, start), strict=True))
    tied, group_size = numbers["vocab_size"] > 0, 0
    extra: dict[str, Any] = {}
    if version == 0:
        numbers["vocab_size"] = abs(numbers["vocab_size"])
    else:
        tied = bool(head[36])
        extra = _parse_extension(path, head)
    if version == 2:
        group_size = struct.unpack_from("<i", head, 37)[0]
    for name, value in numbers.items():
        if not 0 < value <= _MAX:
            raise CheckpointError(
                f"{path}: not a llama2.c checkpoint: its header says {name}={value}, "
                f"expected 1 to {_MAX:,}"
            )
    try:
        config = Config(**numbers, **extra)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a llama2.c checkpoint: {error}") from None
    try:
        return Header(version, config, tied, group_size)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {error}: export it again, "
            f"`{advice.command('export')} OUT.bin --version 2 ...` chooses one that does"
        ) from None


def _float32_view(data: np.ndarray, shape: tuple[int, ...], _group_size: int) -> np.ndarray:
    return data.view("<f4").reshape(shape)


def _quantized_view(
    data: np.ndarray, shape: tuple[int, ...], group_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """View the int8 values and the scales; each matrix of a stack has its values, then scales."""
    *stack, rows, columns = shape
    data = data.reshape(*stack, -1)
    values = data[..., : rows * columns].view(np.int8).reshape(shape)
    scales = data[..., rows * columns :].view("<f4").reshape(*stack, rows, columns // group_size)
    return values, scales


def _weight(tensor: Tensor, layer: int | None = None) -> Dense | Int8 | np.ndarray:
    """A tensor in the form that the network uses; with `layer`, one layer of a stack."""
    at = slice(None) if layer is None else layer
    if isinstance(tensor, tuple):
        return Int8(tensor[0][at], tensor[1][at])
    array: np.ndarray = tensor[at]
    return Dense(array) if array.ndim == 2 else array
