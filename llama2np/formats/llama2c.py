"""llama2.c's own files: the .pt of its train.py, and .bin of any version."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np

from llama2np.formats import kinds
from llama2np.formats.checkpoint import LAYER_TENSORS, CheckpointError, Tensor, open_tensors
from llama2np.formats.meta import config_of, our_names
from llama2np.formats.names import unwrapped
from llama2np.formats.source import Source, Stored, checked
from llama2np.formats.torch_zip import TorchFile
from llama2np.output import brief


@kinds.reader("checkpoint", CheckpointError)
def read_pt(path: str | os.PathLike[str]) -> Source:
    """Open a checkpoint of llama2.c's train.py. Raises CheckpointError, and OSError."""
    file = TorchFile(path)
    content = file.content if isinstance(file.content, dict) else {}
    arguments = content.get("model_args")
    if missing := [name for name in ("model", "model_args") if name not in content]:
        raise CheckpointError(
            f"{path}: has no {' and '.join(missing)}, expected a checkpoint of llama2.c's train.py"
            f"{kinds.way_out(path, 'checkpoint')}"
        )
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{path}: model_args is {brief(arguments)}, expected a dictionary")
    tensors = our_names(unwrapped(file.tensors(content["model"]), str(path)))
    heads = _number(path, arguments, "n_heads")
    config = config_of(
        str(path),
        tensors,
        dim=_number(path, arguments, "dim"),
        n_layers=_number(path, arguments, "n_layers"),
        n_heads=heads,
        n_kv_heads=_number(path, arguments, "n_kv_heads", heads),
        seq_len=_number(path, arguments, "max_seq_len", 2048),
        norm_eps=_number(path, arguments, "norm_eps", 1e-5, float),
    )
    return checked(str(path), config, tensors)


def read_bin(path: str | os.PathLike[str]) -> Source:
    """Open a .bin of version 0, 1 or 2. Raises CheckpointError, and OSError."""
    header, tensors = open_tensors(path)
    stored = {}
    for name, tensor in tensors.items():
        if name == "rope_tables":
            continue
        if name not in LAYER_TENSORS:
            stored[name] = _stored(tensor)
            continue
        for i in range(header.config.n_layers):
            one = tuple(t[i] for t in tensor) if isinstance(tensor, tuple) else tensor[i]
            stored[f"layers.{i}.{name}"] = _stored(one)
    return checked(str(path), header.config, stored)


def _stored(tensor: Tensor) -> Stored:
    if not isinstance(tensor, tuple):
        return Stored.view(tensor)
    q, scales = tensor
    size = q.nbytes + scales.nbytes
    return Stored(q.shape, q.dtype.name, size, partial(_dequantized, q, scales))


def _dequantized(q: np.ndarray, scales: np.ndarray, start: int, end: int) -> np.ndarray:
    """Rows start to end of q (d, n) int8 × scales (d, n / group) float32."""
    groups = q[start:end].reshape(end - start, scales.shape[1], -1)
    return np.asarray(groups * scales[start:end, :, None]).reshape(end - start, -1)


def _number(
    path: str | os.PathLike[str],
    arguments: dict[str, Any],
    name: str,
    default: Any = None,
    kind: type = int,
) -> Any:
    value = arguments.get(name)
    value = default if value is None else value
    numbers: Any = (int, kind)
    if isinstance(value, bool) or not isinstance(value, numbers) or not value < 2**31:
        raise CheckpointError(f"{path}: model_args has {name}={brief(value)}, expected a number")
    return value
