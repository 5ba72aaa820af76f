"""Source → .bin of any version, or a Hugging Face folder: block by block, and all or nothing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

import numpy as np

from llama2np.atomic import replacing_all, sync_folder
from llama2np.formats import safetensors
from llama2np.formats.checkpoint import LAYER_TENSORS, CheckpointError, Header, save
from llama2np.formats.dtypes import dtype_of, quiet
from llama2np.formats.huggingface import sentences
from llama2np.formats.huggingface.writing import as_folder, tokenizer_files
from llama2np.formats.q80 import Error, group_size_for, quantize
from llama2np.formats.rope_tables import rope_tables
from llama2np.formats.source import Source
from llama2np.model.config import Config, RopeScaling
from llama2np.model.weights import SHAPES, described
from llama2np.output import brief

# In bytes: the tables of Llama 3.1's 131,072 positions. No model needs more than its weights take.
_LARGEST_TABLES = 2**26

_HELD = (  # the fields that a .bin has, in the order of Config
    *("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"),
    *("rope_theta", "norm_eps"),
)

Progress = Callable[[int], object]  # called with the number of values written since its last call


def write_bin(
    source: Source, path: str | os.PathLike[str], version: int, progress: Progress = int
) -> tuple[Header, dict[str, Error]]:
    """Write a .bin of version 0, 1 or 2; return its header, and for version 2 the errors.

    The errors have a key for each quantized tensor: "embedding", "layers.0.wq" ... Raises
    CheckpointError if the version cannot represent the network, and OSError; `path` is then
    unchanged.
    """
    source = source.adjacent()
    _check_plain(source)
    group_size = group_size_for(source.config) if version == 2 else 0
    try:
        header = Header(version, source.config, source.tied, group_size)
        header.to_bytes()  # before anything is written
        _check_tables(header, source)
    except ValueError as error:
        raise CheckpointError(f"{source.path}: {error}") from None
    errors: dict[str, Error] = {}
    tensors = {
        name: _quantized(source, name, group_size, errors, progress)
        if header.quantized(name)
        else _floats(source, name, progress)
        for name, _ in header.tensors()
    }
    save(path, header, tensors)
    return header, errors


def _check_plain(source: Source) -> None:
    """Raise CheckpointError unless the network is a plain Llama, as all .bin files are."""
    c, where = source.config, source.path
    if c.architecture != "llama":
        raise CheckpointError(f"{where}: a .bin holds Llamas only, this is {c.architecture}")
    plain = Config(*(getattr(c, name) for name in _HELD))
    for field in fields(Config):
        if (value := getattr(c, field.name)) != getattr(plain, field.name):
            found = value.kind if isinstance(value, RopeScaling) else value
            raise CheckpointError(
                f"{where}: {field.name}={brief(found)}, a .bin has no field for it: "
                "run the folder itself, or write one with --version -1"
            )
    known = {*SHAPES, *(f"layers.{i}.{n}" for i in range(c.n_layers) for n in LAYER_TENSORS)}
    if extra := sorted(source.tensors.keys() - known):
        raise CheckpointError(
            f"{where}: has {described(extra[0])}, which a .bin cannot hold: "
            "run the folder itself, or write one with --version -1"
        )


def _check_tables(header: Header, source: Source) -> None:
    """Raise ValueError if a file's number of positions makes the tables of version 0 large."""
    sizes = {name: header.size(name, shape) for name, shape in header.tensors()}
    tables = sizes.pop("rope_tables", 0)
    weights = sum(sizes.values())
    if tables > max(weights, _LARGEST_TABLES) and not source.seq_len_chosen:
        raise ValueError(
            f"the tables that version 0 has for seq_len={source.config.seq_len:,} take {tables:,} "
            f"bytes, the weights {weights:,}: choose a number of positions, --seq-len N, or "
            "--version 1, which has no tables"
        )


def _floats(source: Source, name: str, progress: Progress) -> Iterator[np.ndarray]:
    if name == "rope_tables":
        yield from rope_tables(source.config)
        return
    for part in source.parts(name):
        for block in part.blocks():
            yield block.astype("<f4", copy=False)
            progress(block.size)


def _quantized(
    source: Source, name: str, group: int, errors: dict[str, Error], progress: Progress
) -> Iterator[np.ndarray]:
    """Yield the int8 values, then the scales, of a matrix or of each matrix in a stack."""
    parts = source.parts(name)
    for i, part in enumerate(parts):
        key = f"layers.{i}.{name}" if name in LAYER_TENSORS else name
        error, all_scales = errors.setdefault(key, Error()), []
        for block in part.blocks():
            try:
                q, scales, its_error = quantize(block, group)
            except ValueError as problem:
                raise CheckpointError(f"{source.path}: {key} {problem}") from None
            yield q
            error.add(its_error)
            all_scales.append(scales)
            progress(block.size)
        yield np.concatenate(all_scales).astype("<f4", copy=False)


def write_huggingface(
    source: Source, folder: str | os.PathLike[str], dtype: str = "float32", progress: Progress = int
) -> None:
    """Write model.safetensors and config.json of a network, for transformers.

    dtype: "float32", "float16" or "bfloat16". The files of a Hugging Face folder's tokenizer are
    copied, too. Raises CheckpointError for values that dtype cannot represent, and OSError;
    `folder` is then unchanged. The files get their names when all are complete.
    """
    folder, kind = Path(folder), dtype_of(dtype, "dtype")
    described_as, tensors = as_folder(source, dtype)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    start = safetensors.header_for(shapes, kind)
    size = len(start) + kind.itemsize * sum(map(math.prod, shapes.values()))
    config = json.dumps(described_as, indent=2) + "\n"
    sizes: dict[str | os.PathLike[str], int]
    sizes = {folder / "model.safetensors": size, folder / "config.json": len(config.encode())}
    copies = {} if source.original is None else tokenizer_files(Path(source.path))
    copies |= sentences.files(source.sentences, source.config.dim, source.path)
    sizes |= {folder / name: len(data) for name, data in copies.items()}
    with (
        _made({path.parent for path in map(Path, sizes)}),
        replacing_all(sizes) as (weights, described_in, *others),
    ):
        described_in.write(config.encode())
        for file, data in zip(others, copies.values(), strict=True):
            file.write(data)
        weights.write(start)
        for name, tensor in tensors.items():
            for block in tensor.blocks():
                weights.write(_as(kind, block, f"{source.path}: {name}"))
                progress(block.size)


@contextmanager
def _made(folders: Iterable[Path]) -> Iterator[None]:
    """The folders that are missing, made; they are removed again if the block fails."""
    made = []
    try:
        for folder in sorted(folders):  # one before those in it
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        yield
        for folder in made:
            sync_folder(folder.absolute().parent)
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise


@quiet
def _as(kind: np.dtype, block: np.ndarray, where: str) -> np.ndarray:
    """The block, converted to another type, as bytes."""
    converted = block.astype(kind)
    if np.isinf(converted).any() and not np.isinf(block).any():
        raise CheckpointError(f"{where} holds values beyond {kind.name}: use --dtype fp32")
    return converted.view(np.uint8)
