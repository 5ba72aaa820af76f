"""Checkpoints of real shapes with random weights: speed does not depend on what a network knows."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from llama2np.atomic import write_file
from llama2np.formats.checkpoint import Header, save
from llama2np.model.config import Config

# name: (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len), tied, group size
SHAPES = {
    "260K": ((64, 172, 5, 8, 4, 512, 512), True, 0),
    "15M": ((288, 768, 6, 6, 6, 32000, 256), True, 0),
    "42M": ((512, 1376, 8, 8, 8, 32000, 1024), True, 0),
    "42M-gqa": ((512, 1376, 8, 8, 2, 32000, 1024), True, 0),
    "110M": ((768, 2048, 12, 12, 12, 32000, 1024), True, 0),
    "110M-4096": ((768, 2048, 12, 12, 12, 32000, 4096), True, 0),
    "110M-q8": ((768, 2048, 12, 12, 12, 32000, 1024), True, 64),
    "1.1B-q8": ((2048, 5632, 22, 32, 4, 32000, 2048), False, 64),
}


def header_of(shape: str) -> Header:
    """The header of a shape: version 2 where it has a group size, 0 otherwise."""
    numbers, tied, group_size = SHAPES[shape]
    return Header(2 if group_size else 0, Config(*numbers), tied, group_size)


def write_model(shape: str, folder: Path) -> Path:
    """Write the checkpoint of a shape, and the tokenizer.bin it needs, unless they are there."""
    header, path = header_of(shape), folder / f"{shape}.bin"
    write_tokenizer(header.config.vocab_size, tokenizer_of(path))
    if not path.exists():
        save(path, header, _Tensors(header))
    return path


def tokenizer_of(path: Path) -> Path:
    """Where the tokenizer of a random checkpoint stands."""
    return path.with_suffix(".tokenizer")


def write_tokenizer(vocab_size: int, path: Path) -> None:
    """A tokenizer.bin of the special pieces, the bytes, and words that are all different."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % i for i in range(256)]
    pieces += [b" "] + [b" w%d" % i for i in range(vocab_size - len(pieces) - 1)]
    data = [struct.pack("<I", max(map(len, pieces)))]
    data += [struct.pack("<fi", -i, len(piece)) + piece for i, piece in enumerate(pieces)]
    write_file(path, b"".join(data))


class _Tensors(dict):
    """Tensors that are generated when they are read, so that only one is in memory."""

    def __init__(self, header: Header):
        super().__init__()
        self._header, self._random = header, np.random.default_rng(0)

    def __missing__(self, name: str):
        shape = dict(self._header.tensors())[name]
        if "norm" in name:
            return np.ones(shape, np.float32)
        if self._header.quantized(name):
            q = self._random.integers(-127, 128, shape, np.int8)
            scales = np.full((*shape[:-1], shape[-1] // self._header.group_size), 2e-4, np.float32)
        else:
            q, scales = self._random.standard_normal(shape, np.float32) * np.float32(0.02), None
        if name in ("embedding", "classifier"):
            q[1:3] = 0  # BOS and EOS never win: no run ends early
        return q if scales is None else (q, scales)
