"""llama2.c's .bin files: version 0 (the only one run.c reads) and version 1, told apart by the header.

Formats: llama2.c's export.py (`legacy_export`, `version1_export`). Everything is little-endian.
A file is checked to the byte before anything in it is used, then mapped: no weight is copied.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama2np.config import Config
from llama2np.weights import Dense, Layer, Weights

MAGIC = 0x616B3432  # "ak42": the first word of every version but 0
_HEADER_SIZE = {0: 28, 1: 256}
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_MOST = 2**27  # no dimension of a real network is larger; text read as a header is

# Tensors in file order. Those of the layers are stacked: all wq, then all wk ...
_ORDER = {
    0: "embedding attn_norm wq wk wv wo ffn_norm w_gate w_down w_up final_norm rope_tables",
    1: "attn_norm ffn_norm final_norm embedding wq wk wv wo w_gate w_down w_up",
}


class CheckpointError(ValueError):
    """A model file that cannot be used: says which, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of a .bin say."""

    version: int
    config: Config
    tied: bool  # the classifier is the embedding

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield (name, shape) of each tensor, in file order."""
        c = self.config
        shapes = {
            "embedding": (c.vocab_size, c.dim),
            "attn_norm": (c.n_layers, c.dim),
            "wq": (c.n_layers, c.dim, c.dim),
            "wk": (c.n_layers, c.kv_dim, c.dim),
            "wv": (c.n_layers, c.kv_dim, c.dim),
            "wo": (c.n_layers, c.dim, c.dim),
            "ffn_norm": (c.n_layers, c.dim),
            "w_gate": (c.n_layers, c.hidden_dim, c.dim),
            "w_down": (c.n_layers, c.dim, c.hidden_dim),
            "w_up": (c.n_layers, c.hidden_dim, c.dim),
            "final_norm": (c.dim,),
            "rope_tables": (2, c.seq_len, c.head_dim // 2),  # cos and sin, which nobody reads
            "classifier": (c.vocab_size, c.dim),
        }
        for name in _ORDER[self.version].split():
            yield name, shapes[name]
        if not self.tied:
            yield "classifier", shapes["classifier"]

    def to_bytes(self) -> bytes:
        """The header as it stands in a file."""
        numbers = [getattr(self.config, name) for name in _FIELDS]
        if self.version == 0:
            numbers[5] *= 1 if self.tied else -1
            return struct.pack("<7i", *numbers)
        packed = struct.pack("<Ii7iB", MAGIC, self.version, *numbers, self.tied)
        return packed.ljust(_HEADER_SIZE[self.version], b"\0")


def read_header(path: str | os.PathLike) -> Header:
    """Read and check the header of a .bin, and the size of the file against it.

    Raises CheckpointError, and OSError where the file cannot be opened.
    """
    with open(path, "rb") as file:
        head = file.read(max(_HEADER_SIZE.values()))
        size = os.fstat(file.fileno()).st_size
    header = _parse_header(path, head)
    needed = _HEADER_SIZE[header.version] + sum(4 * _count(s) for _, s in header.tensors())
    if size != needed:
        hint = "truncated download?" if size < needed else "not a llama2.c checkpoint, or damaged"
        raise CheckpointError(f"{path}: needs {needed:,} bytes, has {size:,}: {hint}")
    return header


def load(path: str | os.PathLike) -> tuple[Config, Weights]:
    """Map a checkpoint. Raises CheckpointError, and OSError where the file cannot be opened."""
    header = read_header(path)
    data = _map(path)
    tensors, offset = {}, _HEADER_SIZE[header.version]
    for name, shape in header.tensors():
        end = offset + 4 * _count(shape)
        tensors[name] = data[offset:end].view("<f4").reshape(shape)
        offset = end
    return header.config, _weights(header, tensors)


def save(path: str | os.PathLike, header: Header, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a checkpoint from its tensors, stacked and named as `Header.tensors` yields them."""
    with open(path, "wb") as file:
        file.write(header.to_bytes())
        for name, shape in header.tensors():
            tensor = np.zeros(shape, "<f4") if name == "rope_tables" else tensors[name]
            if tensor.shape != shape:
                raise ValueError(f"{name} has shape {tensor.shape}, expected {shape}")
            np.ascontiguousarray(tensor, "<f4").tofile(file)


def _parse_header(path: str | os.PathLike, head: bytes) -> Header:
    magic = struct.unpack("<I", head[:4])[0] if len(head) >= 4 else None
    if magic != MAGIC:
        version, start = 0, 0
    elif len(head) < 8:
        version, start = 1, 8
    else:
        version, start = struct.unpack_from("<i", head, 4)[0], 8
        if version not in _HEADER_SIZE or version == 0:
            raise CheckpointError(f"{path}: version {version}, this program reads 0 and 1")
    if len(head) < _HEADER_SIZE[version]:
        raise CheckpointError(
            f"{path}: a header needs {_HEADER_SIZE[version]} bytes, the file has {len(head)}: "
            "truncated download?"
        )
    numbers = dict(zip(_FIELDS, struct.unpack_from("<7i", head, start), strict=True))
    tied = numbers["vocab_size"] > 0 if version == 0 else bool(head[36])
    if version == 0:
        numbers["vocab_size"] = abs(numbers["vocab_size"])
    for name, value in numbers.items():
        if not 0 < value < _MOST:
            raise CheckpointError(
                f"{path}: not a llama2.c checkpoint: its header says {name}={value}, "
                f"expected 1 to {_MOST - 1:,}"
            )
    try:
        return Header(version, Config(**numbers), tied)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a llama2.c checkpoint: {error}") from None


def _map(path: str | os.PathLike) -> np.ndarray:
    """The bytes of a file as a uint8 array, mapped.

    Copy-on-write: never written to the file, yet writeable, so that numba sees one array type. A
    system that will not promise that much memory gets a read-only map, and a second compilation.
    """
    with open(path, "rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, MemoryError):
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8)


def _weights(header: Header, tensors: Mapping[str, np.ndarray]) -> Weights:
    vectors = ("attn_norm", "ffn_norm")
    matrices = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
    layers = tuple(
        Layer(
            **{name: tensors[name][i] for name in vectors},
            **{name: Dense(tensors[name][i]) for name in matrices},
        )
        for i in range(header.config.n_layers)
    )
    embedding = Dense(tensors["embedding"])
    classifier = embedding if header.tied else Dense(tensors["classifier"])
    return Weights(embedding, layers, tensors["final_norm"], classifier)


def _count(shape: tuple[int, ...]) -> int:
    """The number of values, in integers that cannot overflow."""
    count = 1
    for length in shape:
        count *= length
    return count
