"""The result of every reader: a Config, and tensors whose values are read when they are needed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from llama2np.formats.checkpoint import LAYER_TENSORS, CheckpointError, CheckpointWarning
from llama2np.formats.dtypes import quiet
from llama2np.formats.mapped import for_running
from llama2np.model.config import Config
from llama2np.model.networks import check_network
from llama2np.model.weights import Dense, Outline, Tensor, Weights
from llama2np.output import brief

_MAX_DIMENSIONS = 32  # the limit of older NumPy; weights have one or two
_BLOCK = 2**17  # values of one block, which fits into the processor's cache


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file. Only the block that is being read is in memory."""

    shape: tuple[int, ...]
    dtype: str  # in the file: float32, float16, bfloat16, int8 ...
    nbytes: int  # in the file
    read: Callable[[int, int], np.ndarray]  # (first row, row after the last) -> those rows

    @classmethod
    def view(cls, array: np.ndarray) -> Stored:
        """The tensor of `array`, a view of a mapped file."""
        rows = np.atleast_1d(array)
        return cls(array.shape, array.dtype.name, array.nbytes, lambda start, end: rows[start:end])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all rows in order, as contiguous float32 blocks."""
        if 0 in self.shape:  # a file may claim any number of rows without values
            return
        rows = self.shape[0] if self.shape else 1
        width = math.prod(self.shape[1:])
        step = max(_BLOCK // max(width, 1), 1)
        for start in range(0, rows, step):
            yield self._float32(start, min(start + step, rows))

    @quiet
    def _float32(self, start: int, end: int) -> np.ndarray:
        return np.ascontiguousarray(self.read(start, end), np.float32)


@dataclass(frozen=True, slots=True)
class Original:
    """The contents of a Hugging Face folder: its config.json, and tensors by their names there.

    A copy of the folder is written from it, so that it keeps what we do not use.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]


@dataclass(frozen=True, slots=True)
class Sentences:
    """How an encoder makes one vector of a text; "mean" and 0 where a file does not say it."""

    pooling: str = "mean"  # "mean", "cls", or the name of a way that we do not have
    max_tokens: int = 0  # longer texts are cut off; 0 means at the network's longest


@dataclass(frozen=True, slots=True)
class Source:
    """A network in files of another program.

    `tensors` has the names and shapes of `Weights`: "embedding", "layers.0.wq" ...; "classifier"
    only if it is not tied to the embedding.
    """

    path: str
    config: Config
    tied: bool
    tensors: Mapping[str, Stored]
    seq_len_chosen: bool = False  # by the user, not by a file
    original: Original | None = None
    sentences: Sentences = Sentences()

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def parts(self, name: str) -> list[Stored]:
        """The tensors for a name in a .bin: one, or one for each layer."""
        if name not in LAYER_TENSORS:
            return [self.tensors[name]]
        return [self.tensors[f"layers.{i}.{name}"] for i in range(self.config.n_layers)]

    def with_seq_len(self, seq_len: int) -> Source:
        """The same network with another number of positions, which the user has chosen."""
        return replace(self, config=replace(self.config, seq_len=seq_len), seq_len_chosen=True)

    def adjacent(self) -> Source:
        """The same network with the two values of a rotary pair next to each other, as in Meta's
        files and in .bin files.
        """
        if not self.config.rope_halves:
            return self
        head_dim, tensors = self.config.head_dim, dict(self.tensors)
        for name, tensor in tensors.items():
            if name.endswith((".wq", ".wk")):
                tensors[name] = interleaved(tensor, head_dim)
        return replace(self, config=replace(self.config, rope_halves=0), tensors=tensors)

    def weights(self) -> Weights:
        """The tensors as a network uses them: matrices in their own number format, mapped where the
        file has them in one piece; norms and biases as float32.
        """
        found: dict[str, Tensor] = {}
        for name, stored in self.tensors.items():
            values = stored.read(0, stored.shape[0])
            if len(stored.shape) == 1:
                found[name] = np.ascontiguousarray(values, np.float32)
            else:
                for_running(values)
                found[name] = Dense(np.ascontiguousarray(values))
        if self.tied:
            found.setdefault("classifier", found["embedding"])
        return Weights(found)


def check_shape(shape: tuple[int, ...], where: str) -> None:
    """Raise CheckpointError for a shape that no NumPy array can have, even without values."""
    absurd = len(shape) > _MAX_DIMENSIONS
    if absurd or (0 in shape and math.prod(max(n, 1) for n in shape) >= 2**48):
        raise CheckpointError(f"{where}: claims {len(shape):,} dimensions, {brief(shape)}")


def checked(
    path: str,
    config: Config,
    tensors: Mapping[str, Stored],
    said_tied: bool = False,
    unknown: Sequence[str] = (),
) -> Source:
    """Return a Source if every tensor is there, with the shape that `config` requires.

    The classifier is the embedding if it is missing or has the same values. If its values differ,
    it is used even if the source says that the two are tied (`said_tied`), with a
    CheckpointWarning. unknown: names of other tensors in the files. Raises CheckpointError for
    tensors that are missing, have another shape, or are not part of the network: ignoring a bias
    would silently give another network.
    """
    tensors = dict(tensors)
    if unknown:
        unmerged = any(".lora_" in name for name in unknown)
        way = ": its adapter (LoRA) must be merged first, by PEFT's merge_and_unload"
        raise CheckpointError(
            f"{path}: has {unknown[0]}, which is not part of the network "
            f"({len(unknown)} such tensors){way if unmerged else ''}"
        )
    tied = "classifier" not in tensors and not config.n_labels
    outlines: dict[str, Tensor] = {name: Outline(t.shape) for name, t in tensors.items()}
    if tied and "embedding" in outlines:
        outlines["classifier"] = outlines["embedding"]
    try:
        check_network(config, Weights(outlines))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}: is a shard missing, or another model's?") from None
    same_shape = not tied and "classifier" in tensors and not config.n_labels
    if same_shape and (tied := _equal(tensors["embedding"], tensors["classifier"])):
        del tensors["classifier"]
    if said_tied and not tied and not config.n_labels:
        text = f"{path}: says tie_word_embeddings, but holds an lm_head of other values, which is"
        warnings.warn(CheckpointWarning(f"{text} used, as in transformers 5"), stacklevel=3)
    return Source(path, config, tied, tensors)


def _equal(a: Stored, b: Stored) -> bool:
    return a.shape == b.shape and all(
        np.array_equal(x, y) for x, y in zip(a.blocks(), b.blocks(), strict=True)
    )


def concatenated(parts: Iterable[Stored], axis: int) -> Stored:
    """One matrix from shards, concatenated by rows (axis 0) or by columns (axis 1).

    Raises ValueError if their other dimensions or their types differ.
    """
    parts = list(parts)
    other = 1 - axis
    if len({(len(part.shape), part.shape[other], part.dtype) for part in parts}) != 1:
        shapes = ", ".join(f"{part.shape} {part.dtype}" for part in parts)
        raise ValueError(f"shards do not fit together: {shapes}")
    sizes = [part.shape[axis] for part in parts]
    shape = (sum(sizes), parts[0].shape[1]) if axis == 0 else (parts[0].shape[0], sum(sizes))
    read = partial((_rows_below, _rows_beside)[axis], parts)
    return Stored(shape, parts[0].dtype, sum(part.nbytes for part in parts), read)


def _rows_beside(parts: list[Stored], start: int, end: int) -> np.ndarray:
    return np.concatenate([part.read(start, end) for part in parts], axis=1)


def _rows_below(parts: list[Stored], start: int, end: int) -> np.ndarray:
    found, first = [], 0
    for part in parts:
        low, high = max(start - first, 0), min(end - first, part.shape[0])
        if low < high:
            found.append(part.read(low, high))
        first += part.shape[0]
    return np.concatenate(found)


def interleaved(tensor: Stored, head_dim: int) -> Stored:
    """Hugging Face's wq or wk in Meta's row order. tensor: (heads * head_dim, dim).

    Hugging Face stores the even rows of a head before its odd ones; in Meta's order the two rows of
    a rotary pair are adjacent. The number of heads follows from the number of rows, so this works
    for wk too.
    """
    order = np.arange(head_dim).reshape(2, -1).T.ravel()  # 0, half, 1, half + 1 ...
    return _within_heads(tensor, order)


def halved(tensor: Stored, head_dim: int) -> Stored:
    """The inverse of `interleaved`."""
    return _within_heads(tensor, np.arange(head_dim).reshape(-1, 2).T.ravel())


def _within_heads(tensor: Stored, order: np.ndarray) -> Stored:
    """The tensor whose row i of each head is row order[i] of that head in `tensor`."""
    height = len(order)

    def read(start: int, end: int) -> np.ndarray:
        first = start // height * height
        rows = tensor.read(first, -(-end // height) * height)
        heads = rows.reshape(-1, height, *rows.shape[1:])[:, order]
        return heads.reshape(rows.shape)[start - first : end - first]

    return replace(tensor, read=read)
