"""A network of any format that can be run, and the tokenizer beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llama2np import box
from llama2np.formats import checkpoint, gguf
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.inspection import open_any
from llama2np.formats.source import Source
from llama2np.model.config import Config
from llama2np.model.networks import is_encoder
from llama2np.model.transformer import Transformer
from llama2np.model.weights import Weights


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a model's files hold, but for its tokenizer."""

    config: Config
    weights: Weights
    labels: tuple[str, ...] = ()  # of a network that classifies texts


def load(path: str | os.PathLike[str]) -> Loaded:
    """Map a .bin file, a GGUF file or a folder. Raises CheckpointError, and OSError."""
    if gguf.is_gguf(path):
        return Loaded(*gguf.load(path))
    if not Path(box.located(path)).is_dir():
        return Loaded(*checkpoint.load(path))
    _, source = open_any(path)
    assert isinstance(source, Source)  # a folder always has a config
    original = {} if source.original is None else source.original.config
    return Loaded(source.config, source.weights(), _labels(original, source.config.n_labels))


def transformer(path: str | os.PathLike[str], engine: str = "compiled") -> Transformer:
    """The network of a model alone. Raises ValueError, CheckpointError, and OSError."""
    loaded = load(path)
    if is_encoder(loaded.config):
        raise CheckpointError(
            f"{path}: {loaded.config.architecture}, an encoder, which does not continue texts: "
            "Encoder.load opens it"
        )
    return Transformer(loaded.config, loaded.weights, engine=engine)


def _labels(config_json: Mapping[str, object], count: int) -> tuple[str, ...]:
    """The names of the labels, from id2label."""
    names = config_json.get("id2label")
    if not isinstance(names, dict):
        return ()
    return tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(count))
