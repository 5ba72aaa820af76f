"""A network of any format that can be run, and the tokenizer beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llama2np.formats import checkpoint, gguf, peft
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.tokenizer import tokenizer_of
from llama2np.formats.inspection import open_any
from llama2np.formats.json_file import JsonFile
from llama2np.formats.mapped import read_ahead
from llama2np.formats.source import Sentences, Source
from llama2np.model.config import Config
from llama2np.model.engine import ACTIVATIONS
from llama2np.model.networks import is_encoder
from llama2np.model.transformer import Transformer
from llama2np.model.weights import Weights
from llama2np.store.catalogue import recommended
from llama2np.store.names import located
from llama2np.text.finding import find
from llama2np.text.numbers import numbers
from llama2np.text.tokenizer import Tokenizer

StrPath = str | os.PathLike[str]
_SAMPLING = "temperature", "top_p", "top_k", "min_p", "repetition_penalty"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The contents of a model's files; its tokenizer is read when it is needed."""

    config: Config
    weights: Weights
    path: StrPath
    labels: tuple[str, ...] = ()  # of a network that classifies texts
    sentences: Sentences = Sentences()
    gguf_file: gguf.GgufFile | None = None
    family: str | None = None  # model_type of a Hugging Face folder

    @property
    def suggested_sampling(self) -> dict[str, float]:
        """The sampling that the authors suggest, from generation_config.json; {} without one.

        Raises CheckpointError, and OSError.
        """
        path = Path(self.path) / "generation_config.json"
        if not path.is_file():
            return {}
        fields = JsonFile(path).fields
        numbers = {name: fields.get(name) for name in _SAMPLING}
        return {
            name: value
            for name, value in numbers.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def tokenizer(self, named: StrPath | None = None) -> Tokenizer:
        """The model's tokenizer, or the one that the user has named.

        Raises TokenizerError, and OSError.
        """
        count = self.config.vocab_size
        if named is None and self.gguf_file is not None:
            return tokenizer_of(self.gguf_file) or numbers(count, os.fspath(self.path))
        return find(self.path, count, named)


def load(path: StrPath) -> Loaded:
    """Map a .bin file, a GGUF file or a folder, or the bundled or pulled model of this name; or
    read a .pt of llama2.c's trainer.

    Raises CheckpointError, and OSError.
    """
    path = located(path)
    if gguf.is_gguf(path):
        file = gguf.read(path)
        pooled = Sentences(gguf.pooling_of(file.metadata))
        return Loaded(*gguf.network(file), path, sentences=pooled, gguf_file=file)
    if not Path(path).is_dir() and not _from_a_trainer(path):
        return Loaded(*checkpoint.load(path), path)
    kind, source = open_any(path)
    if not isinstance(source, Source):  # a folder always has a config
        raise CheckpointError(f"{path}: {kind}, without the config of a network")
    original = {} if source.original is None else source.original.config
    labels = _labels(original, source.config.n_labels)
    family = str(original["model_type"]) if "model_type" in original else None
    return Loaded(source.config, source.weights(), path, labels, source.sentences, family=family)


def with_adapter(loaded: Loaded, folder: StrPath) -> Loaded:
    """A model with the LoRA adapter of a folder added to its weights.

    Raises CheckpointError, and OSError.
    """
    family = loaded.family
    if family is None and loaded.config.architecture != "llama":
        kind = loaded.config.architecture
        raise CheckpointError(f"{loaded.path}: adapters of {kind} need its Hugging Face folder")
    weights = peft.with_adapter(loaded.weights, loaded.config, folder, family or "llama")
    return replace(loaded, weights=weights)


def _from_a_trainer(path: StrPath) -> bool:
    """Whether a file has a name as from llama2.c's train.py."""
    return Path(path).suffix == ".pt"


def transformer(
    path: StrPath,
    engine: str = "compiled",
    loaded: Loaded | None = None,
    activations: str | None = None,
) -> Transformer:
    """The network of a model alone. loaded: what has been read already. activations: see
    Transformer, and for None `activations_for`.

    Raises ValueError, CheckpointError, and OSError.
    """
    loaded = load(path) if loaded is None else loaded
    if is_encoder(loaded.config):
        raise CheckpointError(
            f"{path}: {loaded.config.architecture}, an encoder, which does not continue texts: "
            "`llama2np embed` and Encoder.load open it"
        )
    read_ahead(loaded.weights.arrays)
    activations = activations_for(path, activations)
    return Transformer(loaded.config, loaded.weights, engine=engine, activations=activations)


def activations_for(path: StrPath, wanted: str | None) -> str:
    """How inputs are rounded: as `wanted`, or as the catalogue recommends for this file."""
    known = recommended(path)
    return wanted or (known.activations if known else ACTIVATIONS[0])


def _labels(config_json: Mapping[str, object], count: int) -> tuple[str, ...]:
    """The names of the labels, from id2label; numbers if they are not distinct."""
    names = config_json.get("id2label")
    if not isinstance(names, dict):
        return ()
    usual = tuple(f"LABEL_{i}" for i in range(count))
    found = tuple(str(names.get(str(i), usual[i])) for i in range(count))
    return found if len(set(found)) == count else usual
