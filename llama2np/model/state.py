"""What a sequence is thinking: its tokens, its position, its KV cache."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from llama2np.aligned import aligned_zeros
from llama2np.model import snapshot
from llama2np.model.config import Config

BLOCK = 64  # positions of a block of keys; a chunk is a multiple of it
_CHUNK, _CHUNK_BYTES = 512, 2**26  # most positions of a chunk, and most bytes if that is less


class State:
    """What one sequence is thinking: its position, its tokens and its KV cache.

    The cache grows with use, in chunks of up to 512 positions, without copying; a fork shares the
    chunks that are full until either side writes to them. One thread at a time may use a State;
    many may share one model.
    """

    def __init__(self, config: Config):
        self.config = config
        self.pos = 0  # tokens read so far, and the position of the next one
        c = config
        width = 2 * c.n_layers * c.kv_dim  # float32 of a position
        fitting = max(_CHUNK_BYTES // (4 * width * BLOCK), 1) * BLOCK
        self.chunk = min(_CHUNK, fitting, -(-c.seq_len // BLOCK) * BLOCK)  # positions of a chunk
        self._chunks: list[np.ndarray] = []
        self._shared: list[bool] = []  # whether a fork may have the chunk, too
        self.addresses = np.zeros(0, np.int64)  # of the chunks, for the kernels
        self._tokens = np.zeros(0, np.int64)
        self._owner = threading.Lock()
        self.run: Any = None  # what an engine keeps for reading one token after the other

    @property
    def tokens(self) -> np.ndarray:
        """The tokens read so far: a view, (pos,) int64."""
        return self._tokens[: self.pos]

    @property
    def capacity(self) -> int:
        """The positions that there is memory for."""
        return len(self._chunks) * self.chunk

    @property
    def keys(self) -> np.ndarray:
        """The keys, after their rotation: a copy, (n_layers, n_kv_heads, pos, head_dim) float32."""
        return self._gathered(0, slice(None), self.pos)

    @property
    def values(self) -> np.ndarray:
        """The values: a copy, (n_layers, n_kv_heads, pos, head_dim) float32."""
        return self._gathered(1, slice(None), self.pos)

    def layer(self, layer: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` keys and values of a layer: copies, (n_kv_heads, count, head_dim)."""
        one = slice(layer, layer + 1)
        return self._gathered(0, one, count)[0], self._gathered(1, one, count)[0]

    def write(self, layer: int, positions: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        """Put k and v (T, n_kv_heads, head_dim) into a layer's cache, at `positions` (T,)."""
        for t, pos in enumerate(positions):
            chunk = self._views(self._chunks[pos // self.chunk])
            block, lane = divmod(pos % self.chunk, BLOCK)
            for view, rows in zip(chunk, (k, v), strict=True):
                view[layer, :, block, lane] = rows[t]

    def append(self, tokens: np.ndarray) -> None:
        """Record `tokens` (T,) at pos and after; the capacity must be reserved. pos stays."""
        self._tokens[self.pos : self.pos + len(tokens)] = tokens

    def truncate(self, pos: int) -> None:
        """Forget all but the first `pos` tokens. Raises ValueError if there are fewer."""
        if not 0 <= pos <= self.pos:
            raise ValueError(f"pos must be 0 to {self.pos}, what has been read, not {pos}")
        self.pos = pos

    def reuse(self, tokens: Sequence[int]) -> list[int]:
        """Forget what is not the beginning of `tokens`; return those that are still to be read.

        At least the last one is: its logits are not kept.
        """
        most = max(min(self.pos, len(tokens) - 1), 0)
        differ = np.flatnonzero(self._tokens[:most] != np.asarray(tokens[:most]))
        self.truncate(int(differ[0]) if differ.size else most)
        return list(tokens[self.pos :])

    def fork(self) -> State:
        """A copy that continues independently: one prompt, read once, with many continuations."""
        twin = State(self.config)
        full = self.pos // self.chunk
        twin._chunks, twin._shared = self._chunks[:full], [True] * full
        self._shared[:full] = [True] * full
        if self.pos % self.chunk:  # this one would be written to at once
            twin._chunks.append(_copy(self._chunks[full]))
            twin._shared.append(False)
        twin._note_addresses()
        twin._tokens = np.zeros(twin.capacity, np.int64)
        twin._tokens[: self.pos] = self.tokens
        twin.pos = self.pos
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokens and the KV cache to a .npz, complete or not at all. Raises OSError."""
        snapshot.write(path, self.config, self.tokens, self.keys, self.values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], config: Config) -> State:
        """Read what `save` wrote; it continues token for token where that State was.

        The caller has to know that the weights are the same, too. Raises ValueError for a state of
        a network of another shape and for other files, and OSError.
        """
        state = cls(config)
        tokens, keys, values = snapshot.read(path, config)
        state.reserve(len(tokens))
        for i, chunk in enumerate(state._chunks):
            some = slice(i * state.chunk, (i + 1) * state.chunk)
            for view, array in zip(state._views(chunk), (keys, values), strict=True):
                rows = np.zeros((*view.shape[:2], state.chunk, config.head_dim), np.float32)
                rows[:, :, : array[:, :, some].shape[2]] = array[:, :, some]
                view[:] = rows.reshape(view.shape)
        state.append(tokens)
        state.pos = len(tokens)
        return state

    def reserve(self, count: int) -> None:
        """Make room for `count` positions in all, and for writing at pos and after."""
        first = self.pos // self.chunk  # the first chunk that may be written to
        needed = -(-count // self.chunk)
        if needed <= len(self._chunks) and not any(self._shared[first:needed]):
            return
        c = self.config
        chunks, shared = self._chunks.copy(), self._shared.copy()
        for i in range(first, min(needed, len(chunks))):
            if shared[i]:
                chunks[i], shared[i] = _copy(chunks[i]), False
        while len(chunks) < needed:
            chunks.append(aligned_zeros((c.n_layers, 2, c.n_kv_heads, self.chunk * c.head_dim)))
            shared.append(False)
        tokens = np.zeros(len(chunks) * self.chunk, np.int64)
        tokens[: len(self._tokens)] = self._tokens
        # Together: a Ctrl-C before leaves the State as it was.
        self._chunks, self._shared, self._tokens = chunks, shared, tokens
        self._note_addresses()

    def acquire(self) -> None:
        """Refuse all other users until `release`. Raises ValueError if there is one already."""
        if not self._owner.acquire(False):
            raise ValueError(
                "this State is being read already, by another thread or by the caller of this hook:"
                " use a State of your own, such as state.fork() made before"
            )

    def release(self) -> None:
        """Let others use this State again."""
        self._owner.release()

    def __enter__(self) -> State:
        self.acquire()
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        """All but what belongs to this process: the lock, the addresses, an engine's memory."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_owner", "run", "addresses")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._owner = threading.Lock()
        self._shared = [False] * len(self._chunks)
        self._note_addresses()

    def _note_addresses(self) -> None:
        self.addresses = np.array([chunk.ctypes.data for chunk in self._chunks], np.int64)
        self.run = None

    def _views(self, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A chunk's keys and values as views: (n_layers, n_kv_heads, blocks, BLOCK, head_dim)."""
        c, blocks = self.config, self.chunk // BLOCK
        heads = c.n_layers, c.n_kv_heads, blocks
        keys = chunk[:, 0].reshape(*heads, c.head_dim, BLOCK).swapaxes(3, 4)
        return keys, chunk[:, 1].reshape(*heads, BLOCK, c.head_dim)

    def _gathered(self, kind: int, layers: slice, count: int) -> np.ndarray:
        """The keys (kind 0) or values (1) of some layers: (layers, n_kv_heads, count, head_dim)."""
        c = self.config
        n_layers = len(range(c.n_layers)[layers])
        out = np.zeros((n_layers, c.n_kv_heads, count, c.head_dim), np.float32)
        for i, start in enumerate(range(0, count, self.chunk)):
            rows = self._views(self._chunks[i])[kind][layers]
            rows = rows.reshape(n_layers, c.n_kv_heads, self.chunk, c.head_dim)
            out[:, :, start : start + self.chunk] = rows[:, :, : count - start]
        return out


def _copy(chunk: np.ndarray) -> np.ndarray:
    """A chunk of one's own with the same content."""
    twin = aligned_zeros(chunk.shape)
    twin[:] = chunk
    return twin
