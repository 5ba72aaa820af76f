"""`export`: convert a checkpoint of any supported format to another one."""

from __future__ import annotations

import os

from llama2np.arguments import function, none_means_default, path_like, whole, wrong
from llama2np.formats import kinds
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.dtypes import DTYPES
from llama2np.formats.gguf.from_source import write_gguf
from llama2np.formats.gguf.write import check_type
from llama2np.formats.inspection import open_any
from llama2np.formats.source import Source
from llama2np.formats.write import Progress, write_bin, write_huggingface


@none_means_default
def export(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    version: int | str | None = 0,
    *,
    dtype: str | None = "float32",
    type: str | None = None,
    seq_len: int | None = None,
    progress: Progress | None = int,
) -> None:
    """Convert `checkpoint` to `path`: the command `export` as a function.

    checkpoint: a .bin, the name of a bundled model, a .pt of llama2.c's train.py, a GGUF file, or a
    folder in Meta's or Hugging Face's format; the content decides which. version: 0 or 1
    (float32), 2 (Q8_0), -1, a Hugging Face folder with weights of `dtype` ("float32", "float16",
    "bfloat16"), or "gguf", a GGUF file of `type` ("Q8_0" by default, "Q6_K", "Q5_1", "Q5_0",
    "Q4_K", "Q4_1", "Q4_0", "BF16", "F16", "F32"). seq_len: the number of positions, by default that
    of the source.
    progress: a function that is called with the number of values written since its last call.
    Raises CheckpointError, ValueError and OSError; `path` is then unchanged.
    """
    path_like("checkpoint", checkpoint)
    path_like("path", path)
    progress = function("progress", progress, "a number of values")
    if not isinstance(version, str):
        version = whole("version", version)
    if version not in (-1, 0, 1, 2, "gguf"):
        raise ValueError(f"version must be -1, 0, 1, 2 or 'gguf', not {version!r}")
    if type is not None:
        if version != "gguf":
            raise ValueError(f"type {type} needs version 'gguf'")
        check_type(type)
    if dtype not in DTYPES:
        raise wrong("dtype", " or ".join(DTYPES), dtype)
    if dtype != "float32" and version != -1:
        raise ValueError(f"dtype {dtype} needs version -1: .bin files are float32 or int8")
    kind, source = open_any(checkpoint)
    if not isinstance(source, Source):
        way = kinds.way_out(checkpoint, "any")
        raise CheckpointError(f"{checkpoint}: {kind}, without the config of a network{way}")
    if seq_len is not None:
        source = source.with_seq_len(whole("seq_len", seq_len))
    if version == "gguf":
        write_gguf(source, path, type or "Q8_0", progress)
    elif version == -1:
        write_huggingface(source, path, dtype, progress)
    else:
        write_bin(source, path, int(version), progress)
