"""A network of any format that can be run: its Config and its Weights."""

from __future__ import annotations

import os
from pathlib import Path

from llama2np import box
from llama2np.formats import checkpoint, gguf
from llama2np.formats.inspection import open_any
from llama2np.formats.source import Source
from llama2np.model.config import Config
from llama2np.model.weights import Weights


def load(path: str | os.PathLike[str]) -> tuple[Config, Weights]:
    """Map a .bin file, a GGUF file or a folder. Raises CheckpointError, and OSError."""
    if gguf.is_gguf(path):
        return gguf.load(path)
    if not Path(box.located(path)).is_dir():
        return checkpoint.load(path)
    _, source = open_any(path)
    assert isinstance(source, Source)  # a folder always has a config
    return source.config, source.weights()
