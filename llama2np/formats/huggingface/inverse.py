"""The inverse of reading: a network's tensors, changed, by the names and in the form of a folder.

Where one of our tensors is a part of one of theirs (see parts.py), an array with the indices 0, 1,
2 ... is read in the same way as the values. The result says where each value belongs, for any
rearrangement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.huggingface.families import FAMILIES, Family
from llama2np.formats.huggingface.parts import Part
from llama2np.formats.names import bare_names
from llama2np.formats.source import Original, Source, Stored
from llama2np.model.config import Config

OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def with_values(source: Source, values: Mapping[str, np.ndarray]) -> Source:
    """A network with other values for some tensors: {our name: float32 array in its shape}.

    It can be written by `write_bin` and `write_huggingface`. Raises CheckpointError for a name that
    the network does not have.
    """
    for name, array in values.items():
        if name not in source.tensors or source.tensors[name].shape != array.shape:
            raise CheckpointError(f"{source.path}: has no {name} of shape {array.shape}")
    tensors = dict(source.tensors) | {name: Stored.view(a) for name, a in values.items()}
    original = source.original
    if original is not None:
        family = FAMILIES[str(original.config.get("model_type"))]
        theirs = _theirs(original.tensors, family, source.config, values)
        original = Original(original.config, {**original.tensors, **theirs})
    return replace(source, tensors=tensors, original=original)


def _theirs(
    files: Mapping[str, Stored], family: Family, config: Config, values: Mapping[str, np.ndarray]
) -> dict[str, Stored]:
    """The tensors by the names in the files that hold any of `values`."""
    plain = bare_names(files, family.prefix)
    names = {_with_new_parts(each): name for name, each in plain.items()}
    changed: dict[str, np.ndarray] = {}
    for ours, theirs in family.modules(config):
        module = theirs.name if isinstance(theirs, Part) else theirs
        for kind, suffix in (("weight", ""), ("bias", ".bias")):
            name, array = names.get(f"{module}.{kind}"), values.get(ours + suffix)
            if array is None or name is None:
                continue
            if not isinstance(theirs, Part):
                changed[name] = array
                continue
            before = files[name]
            if name not in changed:
                whole = before.read(0, before.shape[0])
                changed[name] = np.array(whole, np.float32)
            put(theirs, changed[name], array, config)
    for ours, exact in family.exact.items():
        if ours in values and exact in names:
            changed[names[exact]] = values[ours]
    # A tied head may be in the files, too.
    if "embedding" in values and "classifier" not in values and "lm_head.weight" in names:
        changed[names["lm_head.weight"]] = values["embedding"]
    return {name: Stored.view(np.ascontiguousarray(array)) for name, array in changed.items()}


def _with_new_parts(plain: str) -> str:
    """A bare name in which OLD_NAMES are replaced."""
    for old, new in OLD_NAMES.items():
        plain = plain.replace(old, new)
    return plain


def put(part: Part, whole: np.ndarray, values: np.ndarray, config: Config) -> None:
    """Write `values` to their places in `whole`, in place."""
    zeros = _taken(part, np.zeros(whole.shape, np.float32), config)
    # Where reading adds a number (Gemma's norms), it is subtracted. Such tensors are vectors, whose
    # indices float32 can represent. For other tensors the indices are integers.
    shifted = bool(zeros.any())
    numbers = np.arange(whole.size, dtype=np.float64 if shifted else np.int64)
    places = _taken(part, numbers.reshape(whole.shape), config)
    places = np.rint(places - zeros if shifted else places).astype(np.int64)
    whole.reshape(-1)[places.ravel()] = (values - zeros).ravel()


def _taken(part: Part, array: np.ndarray, config: Config) -> np.ndarray:
    taken = part.take(Stored.view(array), config)
    return taken.read(0, taken.shape[0])
