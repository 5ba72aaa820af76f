"""A network as a folder of transformers: config.json, and the tensors by their names in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llama2np.files import open_regular, read_at_most
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.huggingface.describing import as_new_folder
from llama2np.formats.huggingface.families import FAMILIES, Family
from llama2np.formats.huggingface.parts import Part
from llama2np.formats.source import Original, Source, Stored
from llama2np.model.config import Config

# The files of a tokenizer, which belong to a folder that can be run.
_TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja"),
    "generation_config.json",
)
_LARGEST = 2**27  # bytes of such a file


def as_folder(source: Source, dtype: str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """config.json, and {name in the file: tensor}. Raises CheckpointError."""
    original = source.original
    if original is None:
        return as_new_folder(source, dtype)
    config = dict(original.config)
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    if source.seq_len_chosen:
        name = "n_positions" if "n_positions" in config else "max_position_embeddings"
        config[name] = source.config.seq_len
    return config, dict(original.tensors)


def with_labels(source: Source, head: np.ndarray, labels: Sequence[str]) -> Source:
    """A network with a head for labels, (n_labels, dim) float32, in place of that for tokens.

    It is written as transformers' ...ForSequenceClassification. Raises CheckpointError.
    """
    config, tensors = as_folder(source, "float32")
    (name, *_) = config["architectures"]
    for old in ("ForCausalLM", "LMHeadModel"):
        name = name.removesuffix(old)
    config["architectures"] = [f"{name}ForSequenceClassification"]
    config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    config["label2id"] = {label: i for i, label in enumerate(labels)}
    kept = {n: t for n, t in tensors.items() if not n.startswith(("lm_head.", "embed_out."))}
    kept["score.weight"] = Stored.view(head)
    ours = {n: t for n, t in source.tensors.items() if not n.startswith("classifier")}
    ours["classifier"] = kept["score.weight"]
    shape = replace(source.config, n_labels=len(labels), logit_softcap=0.0)
    return Source(source.path, shape, False, ours, original=Original(config, kept))


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder's tokenizer: {name: content}. Raises CheckpointError, and OSError."""
    found = {}
    for name in _TOKENIZER:
        if (folder / name).is_file():
            with open_regular(folder / name) as file:
                data = read_at_most(file, _LARGEST)
            if data is None:
                raise CheckpointError(f"{folder / name}: is larger than {_LARGEST:,} bytes")
            found[name] = data
    return found


def llama_names(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (our name, Hugging Face's) of each tensor of a plain Llama."""
    family: Family = FAMILIES["llama"]
    for ours, theirs in family.modules(config):
        assert not isinstance(theirs, Part)
        prefix = "" if ours == "classifier" else f"{family.prefix}."
        yield ours, f"{prefix}{theirs}.weight"
