"""A sequence's state in a file: a .npz (NumPy's zip of arrays), read without pickle.

`config` is the network's shape as JSON; `tokens` are (pos,) int64; `keys`, after RoPE, and
`values` are (n_layers, n_kv_heads, pos, head_dim) float32.
"""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, asdict, fields
from typing import Any

import numpy as np

from llama2np import npz
from llama2np.atomic import replacing
from llama2np.files import open_regular, zip_file
from llama2np.formats import kinds
from llama2np.model.config import Config
from llama2np.output import printable

_NAMES = ("tokens", "keys", "values")
_LARGEST_CONFIG = 2**16  # bytes of JSON; as Python objects it takes many times as much memory


def write(
    path: str | os.PathLike[str],
    config: Config,
    tokens: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
) -> None:
    """Write a state completely or not at all. Raises OSError."""
    shape = np.array(json.dumps(asdict(config)))
    with replacing(path, tokens.nbytes + keys.nbytes + values.nbytes) as file:
        np.savez(file, config=shape, tokens=tokens, keys=keys, values=values)


def read(path: str | os.PathLike[str], config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the tokens, keys and values of a state saved for a network of this shape.

    Raises ValueError for the state of another network and for other files, and OSError.
    """
    with open_regular(path) as file:
        try:
            with zip_file(file) as archive:
                described = npz.text(archive, "config", _LARGEST_CONFIG)
                arrays = {name: npz.array(archive, name) for name in _NAMES}
            saved = json.loads(described)
            if _complete(saved) == _plain(config):
                found = arrays["tokens"], arrays["keys"], arrays["values"]
                _check(config, *found)
                return found
        except Exception as error:  # zipfile and NumPy raise many types, also tokenize's
            reason = " ".join(str(error).split()) or type(error).__name__
            text = kinds.explained(path, "state")
            text = text or f"{path}: not a saved state, or damaged: {reason}"
            raise ValueError(printable(text)) from None
    difference = _difference(saved, _plain(config))
    raise ValueError(printable(f"{path}: saved for another model: {difference}"))


def _plain(config: Config) -> dict[str, Any]:
    """The fields of a config as JSON has them: lists in place of tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _complete(saved: Any) -> Any:
    """The fields of a saved config; those that an older version did not have get their defaults."""
    if not isinstance(saved, dict):
        return saved
    defaults = {f.name: f.default for f in fields(Config) if f.default is not MISSING}
    return json.loads(json.dumps(defaults)) | saved


def _check(config: Config, tokens: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
    pos = tokens.shape[0] if tokens.ndim == 1 else -1
    if tokens.dtype != np.int64 or not 0 <= pos <= config.seq_len:
        raise ValueError(
            f"tokens are {tokens.dtype} {tokens.shape}, expected int64 and "
            f"at most {config.seq_len} of them, one-dimensional"
        )
    if not ((tokens >= 0) & (tokens < config.vocab_size)).all():
        raise ValueError(f"a token is not in the vocabulary of 0 to {config.vocab_size - 1}")
    shape = (config.n_layers, config.n_kv_heads, pos, config.head_dim)
    for name, array in (("keys", keys), ("values", values)):
        if array.dtype != np.float32 or array.shape != shape:
            raise ValueError(f"{name} are {array.dtype} {array.shape}, expected float32 {shape}")


def _difference(config: object, expected: dict[str, Any]) -> str:
    if not isinstance(config, dict):
        return "its config is unreadable"
    saved: dict[str, Any] = _complete(config)
    names = [name for name, value in expected.items() if saved.get(name) != value]
    if not names:
        return f"its config has fields unknown here: {', '.join(saved.keys() - expected.keys())}"
    return ", ".join(f"{name} is {saved.get(name)}, expected {expected[name]}" for name in names)
