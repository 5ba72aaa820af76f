"""A description of a checkpoint of any kind, in lines of text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np

from llama2np.formats import gguf, huggingface, kinds, llama2c, meta, safetensors
from llama2np.formats.checkpoint import CheckpointError, read_header
from llama2np.formats.dtypes import quiet
from llama2np.formats.gguf.source import read_source
from llama2np.formats.q80 import Error
from llama2np.formats.source import Source, Stored
from llama2np.formats.torch_zip import TorchFile
from llama2np.model.config import Config
from llama2np.output import printable
from llama2np.store.names import located

_ALWAYS = "rope_theta", "norm_eps", "head_dim", "rotary_dim"  # shown even if they are usual


def describe(
    path: str | os.PathLike[str], against: str | os.PathLike[str] | None = None
) -> Iterator[str]:
    """Yield lines about a checkpoint: kind, Config, size, tensors, and whether all are finite.

    With `against`, the checkpoint that it was made from, the line of each tensor has the errors of
    its values. Raises CheckpointError, and OSError.
    """
    kind, found = open_any(path)
    original = None if against is None else _tensors(open_any(against)[1], compared=True)
    tensors = _tensors(found, compared=against is not None)
    yield f"{path}: {kind}"
    if isinstance(found, Source):
        yield " ".join(_numbers(found.config))
        tied = "tied to the embedding" if found.tied else "not tied"
        yield f"{found.size:,} parameters, classifier {tied}"
    rows = _stacked(tensors) if original is None else {name: [name] for name in tensors}
    width = min(max(map(len, rows), default=0), 80)
    all_finite = True
    for label, names in rows.items():
        parts = [tensors[name] for name in names]
        error = None if original is None else _compared(names[0], parts[0], original)
        finite = all(_finite(part) for part in parts)
        all_finite &= finite
        told = f"{_summary(parts)}{_told(error)}{'' if finite else ', NOT FINITE'}"
        yield f"{printable(label):{width}}  {told}"
    yield "all values are finite" if all_finite else "some values are nan or inf"


def open_any(path: str | os.PathLike[str]) -> tuple[str, Source | dict[str, Stored]]:
    """Open a checkpoint of any kind: a Source, or the tensors of a file without a config.

    The first value is the name of the kind. Raises CheckpointError, and OSError.
    """
    path = Path(located(path))
    if path.is_dir():
        described = (path / "config.json").exists()
        # Mistral's folders have both files, and the weights in Hugging Face's form.
        if (path / "params.json").exists() and (meta.has_weights(path) or not described):
            return "Meta", meta.read(path)
        if described:
            return "Hugging Face", huggingface.read(path)
        raise CheckpointError(
            kinds.explained(path, "any")
            or f"{path}: a folder without params.json (Meta) or config.json (HF)"
        )
    if gguf.is_gguf(path):
        return "GGUF", read_source(path)
    # The suffix counts only if the content is not recognised, as in a damaged file.
    kind = kinds.kind_of(path)
    suffix = path.suffix if kind in ("", "empty", "pickle") else ""
    if kind in ("trainer", "torch", "torch-old") or suffix in (".pt", ".pth"):
        torch_file = TorchFile(path)
        if isinstance(torch_file.content, dict) and "model_args" in torch_file.content:
            return "llama2.c's train.py", llama2c.read_pt(path)
        return "tensors in a torch file", torch_file.tensors()
    if "safetensors" in (kind, suffix[1:]):
        return "tensors in a safetensors file", safetensors.read(path)
    with kinds.named(path, "any", CheckpointError):
        header = read_header(path)
    kind = f"llama2.c .bin, version {header.version}, {header.file_size:,} bytes"
    if header.version == 2:
        kind += f", Q8_0 in groups of {header.group_size}"
    return kind, llama2c.read_bin(path)


def _numbers(config: Config) -> Iterator[str]:
    """Yield "name=value" of what describes a Llama, and of what differs from one."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.default is MISSING or field.name in _ALWAYS or value != field.default:
            yield f"{field.name}={value}"


def _tensors(found: Source | dict[str, Stored], compared: bool) -> Mapping[str, Stored]:
    """The tensors; if they are `compared`, in the order of rows that all formats share."""
    if not isinstance(found, Source):
        return found
    return found.adjacent().tensors if compared else found.tensors


def _stacked(tensors: Mapping[str, Stored]) -> dict[str, list[str]]:
    """{name without the number of the layer: names of the tensors}."""
    rows: dict[str, list[str]] = {}
    for name in tensors:
        label = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        rows.setdefault(label, []).append(name)
    return rows


def _summary(parts: list[Stored]) -> str:
    shapes = {part.shape for part in parts}
    shape = str(parts[0].shape) if len(shapes) == 1 else "various shapes"
    count = f"{len(parts)} x " if len(parts) > 1 else ""
    dtypes = " and ".join(sorted({part.dtype for part in parts}))
    return f"{count}{shape} {dtypes}, {sum(part.nbytes for part in parts):,} bytes"


def _finite(tensor: Stored) -> bool:
    return all(bool(np.isfinite(block).all()) for block in tensor.blocks())


@quiet
def _compared(name: str, tensor: Stored, original: Mapping[str, Stored]) -> Error | None:
    """The errors compared with the tensor of that name; None if there is none of the same shape."""
    other = original.get(name)
    if other is None or other.shape != tensor.shape:
        return None
    error = Error()
    for ours, theirs in zip(tensor.blocks(), other.blocks(), strict=True):
        apart = np.abs(ours - theirs)
        error.add(Error(float(apart.max(initial=0)), float(apart.sum()), apart.size))
    return error


def _told(error: Error | None) -> str:
    return "" if error is None else f", max error {error.largest:.6g}, mean {error.mean:.6g}"
