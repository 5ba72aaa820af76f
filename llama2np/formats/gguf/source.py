"""A GGUF file as a Source, for `inspect` and `export`."""

from __future__ import annotations

import os
from functools import partial

import numpy as np

from llama2np.formats.gguf.architectures import network, pooling_of
from llama2np.formats.gguf.file import read
from llama2np.formats.gguf.tensors import Tensor
from llama2np.formats.source import Sentences, Source, Stored
from llama2np.model.gguf_blocks import Blocks


def read_source(path: str | os.PathLike[str]) -> Source:
    """Open a GGUF file. Raises CheckpointError, and OSError."""
    file = read(path)
    config, weights = network(file)
    tied = "classifier" in weights and weights["classifier"] is weights["embedding"]
    tensors = {
        name: stored(tensor)  # type: ignore[arg-type]  # there are no Outlines
        for name, tensor in weights.items()
        if not (tied and name == "classifier")
    }
    pooled = Sentences(pooling_of(file.metadata))
    return Source(str(path), config, tied, tensors, sentences=pooled)


def stored(tensor: Tensor) -> Stored:
    """A tensor whose rows are dequantized when they are read."""
    if isinstance(tensor, np.ndarray):
        return Stored.view(tensor)
    (array,) = tensor.arrays
    if isinstance(tensor, Blocks):
        return Stored(tensor.shape, tensor.kind, array.nbytes, partial(_rows, tensor))
    return Stored.view(array)


def _rows(matrix: Blocks, start: int, end: int) -> np.ndarray:
    return matrix[start:end].dequantize()
