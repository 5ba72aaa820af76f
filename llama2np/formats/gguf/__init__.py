"""GGUF, the file format of llama.cpp.

header.py         the bytes before the data
file.py           a mapped file: metadata and tensors
split.py          files in parts
metadata.py       checks of the metadata
architectures.py  metadata to Config; rope.py: the part about positions
tensors.py        tensors by our names; types.py: their number formats
tokenizer.py      metadata to a tokenizer; tokenizer_writing.py: the inverse
source.py         a GGUF file as it is exported
from_source.py    any network as a GGUF file, with quantize.py, quantize_k.py and write.py
"""

from __future__ import annotations

import os

from llama2np.formats.gguf.architectures import network, pooling_of
from llama2np.formats.gguf.file import GgufFile, GgufTensor, is_gguf, read
from llama2np.model.config import Config
from llama2np.model.weights import Weights

__all__ = ["GgufFile", "GgufTensor", "is_gguf", "load", "network", "pooling_of", "read"]


def load(path: str | os.PathLike[str]) -> tuple[Config, Weights]:
    """The network in a GGUF file; its matrices are views of the file.

    Raises CheckpointError, and OSError.
    """
    return network(read(path))
