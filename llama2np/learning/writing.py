"""A trained network as files: a Hugging Face folder, and where the format can hold it a .bin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llama2np import box
from llama2np.atomic import write_file
from llama2np.files import open_regular
from llama2np.formats import kinds, tokenizer_bin
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.huggingface.inverse import with_values
from llama2np.formats.inspection import open_any
from llama2np.formats.source import Source, Stored
from llama2np.formats.write import write_bin, write_huggingface
from llama2np.model.config import Config
from llama2np.text.errors import TokenizerError

StrPath = str | os.PathLike[str]


def source_of(path: StrPath) -> Source:
    """The files of a network to be trained on. Raises CheckpointError, and OSError."""
    kind, source = open_any(path)
    if not isinstance(source, Source):
        raise CheckpointError(f"{path}: {kind}, without the config of a network")
    return source


def new_source(config: Config, parameters: Mapping[str, np.ndarray]) -> Source:
    """A network that is in no file yet."""
    tensors = {name: Stored.view(array) for name, array in parameters.items()}
    return Source("the trained network", config, "classifier" not in parameters, tensors)


def changed(source: Source, parameters: Mapping[str, np.ndarray]) -> Source:
    """A network whose trained tensors have their new values."""
    return with_values(source, parameters)


def write_network(source: Source, folder: StrPath, tokenizer: StrPath | None) -> list[Path]:
    """Write a network and its tokenizer to a folder; return the files of networks.

    model.safetensors and config.json, and for a plain Llama model.bin with its tokenizer.bin. For a
    network of a Hugging Face folder the tokenizer is copied from there. Raises CheckpointError, and
    OSError; a file is written whole or not at all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_huggingface(source, folder)
    written = [folder / "model.safetensors"]
    if tokenizer is not None:
        copy_tokenizer(tokenizer, folder)
    try:
        write_bin(source, folder / "model.bin", version=0)
        written.append(folder / "model.bin")
    except CheckpointError:  # not a plain Llama
        pass
    return written


def copy_tokenizer(tokenizer: StrPath, folder: Path) -> None:
    """Copy a tokenizer's file (or those of its folder); a tokenizer.model also as tokenizer.bin."""
    tokenizer = Path(box.TOKENIZER if box.in_box(tokenizer) else tokenizer)
    names = (
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.bin"),
        *("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    )
    if tokenizer.is_dir():
        found = {name: tokenizer / name for name in names if (tokenizer / name).is_file()}
    else:
        found = {_name_for(tokenizer): tokenizer}
    for name, path in found.items():
        if not (folder / name).exists() or not os.path.samefile(path, folder / name):
            with open_regular(path) as file:
                write_file(folder / name, file.read())
    if "tokenizer.model" in found:
        try:
            tokenizer_bin.write_bin(folder / "tokenizer.model", folder / "tokenizer.bin")
        except TokenizerError:  # llama2.c would give other tokens; the .model is enough for us
            pass


def tokenizer_path(model: StrPath, named: StrPath | None) -> StrPath | None:
    """The file or folder of a model's tokenizer, to be copied; None if there is none.

    The order is that of text.finding.find.
    """
    if named is not None or box.in_box(model):
        return model if named is None else named
    if Path(model).is_dir():
        return model
    for folder in (Path(model).parent, Path()):
        for name in ("tokenizer.bin", "tokenizer.model"):
            if (folder / name).is_file():
                return folder / name
    return None


def _name_for(path: Path) -> str:
    kind = kinds.kind_of(path)
    if kind in ("sentencepiece", "tokenizer.bin"):
        return "tokenizer.model" if kind == "sentencepiece" else "tokenizer.bin"
    return path.name
