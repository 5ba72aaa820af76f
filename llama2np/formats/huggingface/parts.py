"""Tensors that transformers stores in another form than ours: fused, transposed, or minus 1.

Each function makes a Stored of another one; the values are read when they are needed. A vector (a
bias) has rows of one value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from llama2np.formats.source import Stored
from llama2np.model.config import Config


@dataclass(frozen=True, slots=True)
class Part:
    """How a tensor of ours is made of one of theirs."""

    name: str  # of their module
    take: Callable[[Stored, Config], Stored]


def rows(name: str, *widths: str) -> list[Part]:
    """The parts of a matrix that consists of several matrices, one below the other.

    widths: the Config's names of their heights.
    """

    def part(i: int) -> Callable[[Stored, Config], Stored]:
        def take(tensor: Stored, config: Config) -> Stored:
            ends = _ends(config, widths)
            return _rows(tensor, ends[i], ends[i + 1], ends[-1])

        return take

    return [Part(name, part(i)) for i in range(len(widths))]


def columns(name: str, *widths: str) -> list[Part]:
    """The same for GPT-2's Conv1D: (inputs, outputs), so that the columns belong to several."""

    def part(i: int) -> Callable[[Stored, Config], Stored]:
        def take(tensor: Stored, config: Config) -> Stored:
            ends = _ends(config, widths)
            if len(tensor.shape) == 1:
                return _rows(tensor, ends[i], ends[i + 1], ends[-1])
            _expect(tensor, 1, ends[-1])

            def read(start: int, end: int) -> np.ndarray:
                whole = tensor.read(0, tensor.shape[0])
                return np.ascontiguousarray(whole[:, ends[i] + start : ends[i] + end].T)

            return _as(tensor, (ends[i + 1] - ends[i], tensor.shape[0]), read)

        return take

    return [Part(name, part(i)) for i in range(len(widths))]


def by_head(name: str) -> list[Part]:
    """The parts q, k and v of GPT-NeoX's matrix: for each head its rows of q, then k, then v."""

    def part(i: int) -> Callable[[Stored, Config], Stored]:
        def take(tensor: Stored, config: Config) -> Stored:
            _expect(tensor, 0, 3 * config.q_dim)
            heads = config.n_heads, 3, config.head_dim

            def read(start: int, end: int) -> np.ndarray:
                whole = tensor.read(0, tensor.shape[0])
                mine = whole.reshape(*heads, *whole.shape[1:])[:, i]
                return np.ascontiguousarray(mine.reshape(-1, *whole.shape[1:])[start:end])

            return _as(tensor, (config.q_dim, *tensor.shape[1:]), read)

        return take

    return [Part(name, part(i)) for i in range(3)]


def plus_one(name: str) -> Part:
    """A norm of Gemma, which is stored minus 1."""

    def take(tensor: Stored, _config: Config) -> Stored:
        def read(start: int, end: int) -> np.ndarray:
            return tensor.read(start, end).astype(np.float32) + np.float32(1)

        return replace(tensor, read=read)

    return Part(name, take)


def _ends(config: Config, widths: Sequence[str]) -> list[int]:
    """Where the parts of these widths begin, and where the last one ends."""
    return list(accumulate((getattr(config, width) for width in widths), initial=0))


def _rows(tensor: Stored, start: int, end: int, height: int) -> Stored:
    _expect(tensor, 0, height)
    return _as(
        tensor,
        (end - start, *tensor.shape[1:]),
        lambda first, last: tensor.read(start + first, start + last),
    )


def _expect(tensor: Stored, axis: int, size: int) -> None:
    if len(tensor.shape) not in (1, 2) or tensor.shape[axis] != size:
        raise ValueError(f"has shape {tensor.shape}, expected {size} in dimension {axis}")


def _as(tensor: Stored, shape: tuple[int, ...], read: Callable[[int, int], np.ndarray]) -> Stored:
    size = (
        tensor.nbytes * shape[0] // max(tensor.shape[0 if shape[1:] == tensor.shape[1:] else 1], 1)
    )
    return Stored(shape, tensor.dtype, size, read)
