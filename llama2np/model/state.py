"""The state of a sequence: its tokens, its position, its KV cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from llama2np.aligned import aligned_zeros
from llama2np.arguments import path_like, whole, wrong
from llama2np.model import snapshot
from llama2np.model.config import Config
from llama2np.output import brief
from llama2np.owner import Owner

# Positions of a block of keys; a chunk is a multiple of it. kernels/ops/attention.py has the same
# number, since compiled code is found again by the text of that folder.
BLOCK = 64
_CHUNK, _CHUNK_BYTES = 512, 2**26  # the maximum positions and bytes of a chunk

_IN_USE = (
    "the State is being read by another thread, or by the function that made this call (a hook?): "
    "use a separate State for each thread and hook, made with new_state(), or before with fork()"
)


class Mirror(Protocol):
    """The parts of a State that other processes have: they must be forked with it."""

    def fork(self, pos: int) -> Mirror:
        """The parts of a copy that has read only the first `pos` tokens."""


class State:
    """The state of one sequence: its position, its tokens and its KV cache.

    The cache grows with use, in chunks of up to 512 positions, without copying. A fork shares full
    chunks until one of the two writes to them. Many threads may share one model, each with its own
    State: while one call reads or changes a State, any other call raises ValueError.
    """

    def __init__(self, config: Config):
        if isinstance(config, (str, os.PathLike)):
            raise TypeError(
                f"State() takes a Config, not {brief(config)}: model.new_state() makes one, and "
                "State.load(path, model.config) opens a file"
            )
        if not isinstance(config, Config):
            raise wrong("config", "a Config", config)
        self._config, self._pos = config, 0
        self.owner = Owner(_IN_USE)  # of the current reader or writer; use `with state.owner:`
        c = config
        width = 2 * c.n_layers * c.kv_dim  # float32 values of a position
        fitting = max(_CHUNK_BYTES // (4 * width * BLOCK), 1) * BLOCK
        self.chunk = min(_CHUNK, fitting, -(-c.seq_len // BLOCK) * BLOCK)  # positions of a chunk
        self._chunks: list[np.ndarray] = []
        self._shared: list[bool] = []  # whether a fork may share the chunk
        self.addresses = np.zeros(0, np.int64)  # addresses of the chunks, for the kernels
        self._tokens = np.zeros(0, np.int64)
        self.end = 0  # the position after the tokens that the current call reads
        self._forgotten = 0  # positions whose keys and values are gone: older than all windows
        self.run: Any = None  # an engine's memory for reading one token after the other
        self.mirror: Mirror | None = None  # its parts in other processes (split_engine.py)

    def __repr__(self) -> str:
        return f"State({self.pos:,} of {self.config.seq_len:,} positions read)"

    @property
    def config(self) -> Config:
        """The shape of its network."""
        return self._config

    @property
    def pos(self) -> int:
        """The number of tokens that have been read, which is the position of the next one."""
        return self._pos

    @pos.setter
    def pos(self, pos: int) -> None:
        with self.owner:
            pos = whole("pos", pos)
            if pos < self._pos:
                self._check_kept(pos)
            self._pos = pos

    @property
    def tokens(self) -> np.ndarray:
        """The tokens read so far: a view, (pos,) int64."""
        return self._tokens[: self._pos]

    @property
    def capacity(self) -> int:
        """The number of positions for which memory is reserved, freed ones of a window included."""
        return len(self._chunks) * self.chunk

    @property
    def chunks(self) -> tuple[np.ndarray, ...]:
        """The chunks of the KV cache: (n_layers, 2, n_kv_heads, chunk * head_dim) float32 each."""
        return tuple(self._chunks)

    @property
    def keys(self) -> np.ndarray:
        """The keys, after RoPE: a copy, (n_layers, n_kv_heads, pos, head_dim) float32."""
        return self._gathered(0, slice(None), self._pos)

    @property
    def values(self) -> np.ndarray:
        """The values: a copy, (n_layers, n_kv_heads, pos, head_dim) float32."""
        return self._gathered(1, slice(None), self._pos)

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

    def truncate(self, pos: int) -> None:
        """Forget all but the first `pos` tokens.

        Raises ValueError if there are fewer, and for a network whose layers all have a sliding
        window if the keys and values before `pos` are gone.
        """
        with self.owner:
            pos = whole("pos", pos)
            self._check_kept(pos)
            self._truncate(pos)

    def keeps(self, pos: int) -> bool:
        """Whether the keys and values that a token at `pos` attends to are still there."""
        return not self._forgotten or not pos or pos - self._config.window + 1 >= self._forgotten

    def _check_kept(self, pos: int) -> None:
        if not self.keeps(pos):
            raise ValueError(
                f"the keys and values of the {self._config.window} positions before {pos} are "
                "gone, since the window has moved on: truncate to 0, or fork() before"
            )

    def _truncate(self, pos: int) -> None:
        if not 0 <= pos <= self._pos:
            raise ValueError(f"pos must be 0 to {self._pos}, the tokens read, not {pos}")
        self._pos = pos
        if not pos:
            self._forgotten = 0  # the memory is reserved again when it is needed

    def reuse(self, tokens: Sequence[int]) -> list[int]:
        """Keep only the longest common prefix with `tokens`; return the tokens that must be read.

        The last token must always be read, because its logits are not kept.
        """
        with self.owner:
            most = max(min(self._pos, len(tokens) - 1), 0)
            differ = np.flatnonzero(self._tokens[:most] != np.asarray(tokens[:most]))
            same = int(differ[0]) if differ.size else most
            self._truncate(same if self.keeps(same) else 0)
            return list(tokens[self._pos :])

    # The caller of the next three methods must own the State.

    def make_room(self, count: int) -> None:
        """Reserve memory for `count` more tokens. Raises ValueError if the context ends first."""
        pos, seq_len = self._pos, self._config.seq_len
        if not 0 <= pos <= seq_len - count:
            raise ValueError(
                f"{count} tokens at position {pos} do not fit into the context of {seq_len}"
            )
        self._reserve(pos + count)
        self.end = pos + count

    def append(self, tokens: np.ndarray) -> None:
        """Record `tokens` (T,) from pos on; memory must be reserved, and pos does not change."""
        self._tokens[self._pos : self._pos + len(tokens)] = tokens

    def advance(self, count: int) -> None:
        """Increase pos by `count` tokens, which have been read.

        Memory that no window reaches any more is given back.
        """
        self._pos += count
        if self._config.window:
            self._forget()

    def _forget(self) -> None:
        """Give back the chunks that no window reaches, except one, so that a draft can be
        rejected.
        """
        first, last = self._forgotten, self._pos - self._config.window - self.chunk
        if last < first + self.chunk:
            return
        for i in range(first // self.chunk, last // self.chunk):
            self._chunks[i], self._shared[i] = _NOTHING, False
        self._forgotten = last // self.chunk * self.chunk
        self._note_addresses()

    def fork(self, pos: int | None = None) -> State:
        """A copy that continues independently: one prompt, read once, with many continuations.

        pos: the copy has read only that many tokens; by default all. Raises ValueError as
        `truncate` does.
        """
        with self.owner:
            pos = self._pos if pos is None else whole("pos", pos)
            if not 0 <= pos <= self._pos:
                raise ValueError(f"pos must be 0 to {self._pos}, the tokens read, not {pos}")
            self._check_kept(pos)
            twin, full = State(self._config), pos // self.chunk
            twin._chunks, twin._shared = self._chunks[:full], [True] * full
            self._shared[:full] = [True] * full
            if pos % self.chunk:  # this chunk would be written to next
                twin._chunks.append(_copy(self._chunks[full]))
                twin._shared.append(False)
            twin._note_addresses()
            twin._tokens = np.zeros(twin.capacity, np.int64)
            twin._tokens[:pos] = self._tokens[:pos]
            twin._pos, twin._forgotten = pos, min(self._forgotten, full * self.chunk)
            if self.mirror is not None:
                twin.mirror = self.mirror.fork(pos)
            return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokens and the KV cache to a .npz, completely or not at all. Raises OSError,
        and ValueError for a State of a network that several processes share out.
        """
        path = path_like("path", path)
        with self.owner:
            if self.mirror is not None:
                raise ValueError("save: the keys and values of this State are in several processes")
            snapshot.write(path, self._config, self.tokens, self.keys, self.values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], config: Config) -> State:
        """Read a file of `save`; the new State continues exactly as the saved one would.

        The caller must ensure that the weights are the same. Raises ValueError for a network of
        another shape and for other files, and OSError.
        """
        state = cls(config)
        tokens, keys, values = snapshot.read(path_like("path", path), config)
        state._reserve(len(tokens))
        for i, chunk in enumerate(state._chunks):
            some = slice(i * state.chunk, (i + 1) * state.chunk)
            for view, array in zip(state._views(chunk), (keys, values), strict=True):
                rows = np.zeros((*view.shape[:2], state.chunk, config.head_dim), np.float32)
                rows[:, :, : array[:, :, some].shape[2]] = array[:, :, some]
                view[:] = rows.reshape(view.shape)
        state.append(tokens)
        state.advance(len(tokens))
        return state

    def reserve(self, count: int) -> None:
        """Reserve memory for `count` positions in total, which can be written from pos on."""
        with self.owner:
            self._reserve(whole("count", count))

    def _reserve(self, count: int) -> None:
        first = self._pos // self.chunk  # the first chunk that may be written to
        needed = -(-count // self.chunk)
        gone = not all(chunk.size for chunk in self._chunks[first:needed])
        if needed <= len(self._chunks) and not any(self._shared[first:needed]) and not gone:
            return
        chunks, shared = self._chunks.copy(), self._shared.copy()
        for i in range(first, min(needed, len(chunks))):
            if not chunks[i].size:
                chunks[i] = self._new_chunk()
            if shared[i]:
                chunks[i], shared[i] = _copy(chunks[i]), False
        while len(chunks) < needed:
            chunks.append(self._new_chunk())
            shared.append(False)
        tokens = np.zeros(len(chunks) * self.chunk, np.int64)
        tokens[: len(self._tokens)] = self._tokens
        # In one statement, so that Ctrl-C leaves the State as it was before.
        self._chunks, self._shared, self._tokens = chunks, shared, tokens
        self._note_addresses()

    def _new_chunk(self) -> np.ndarray:
        c = self._config
        return aligned_zeros((c.n_layers, 2, c.n_kv_heads, self.chunk * c.head_dim))

    def __getstate__(self) -> dict[str, Any]:
        """All but the addresses and an engine's memory, which belong to this process."""
        own = "run", "addresses", "mirror"
        return {k: v for k, v in self.__dict__.items() if k not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.mirror = None
        self._shared = [False] * len(self._chunks)
        self._note_addresses()

    def _note_addresses(self) -> None:
        self.addresses = np.array([chunk.ctypes.data for chunk in self._chunks], np.int64)
        self.run = None

    def _views(self, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A chunk's keys and values as views: (n_layers, n_kv_heads, blocks, BLOCK, head_dim)."""
        c, blocks = self._config, self.chunk // BLOCK
        heads = c.n_layers, c.n_kv_heads, blocks
        keys = chunk[:, 0].reshape(*heads, c.head_dim, BLOCK).swapaxes(3, 4)
        return keys, chunk[:, 1].reshape(*heads, BLOCK, c.head_dim)

    def _gathered(self, kind: int, layers: slice, count: int) -> np.ndarray:
        """The keys (kind 0) or values (1) of some layers: (layers, n_kv_heads, count, head_dim)."""
        c = self._config
        n_layers = len(range(c.n_layers)[layers])
        out = np.zeros((n_layers, c.n_kv_heads, count, c.head_dim), np.float32)
        for i, start in enumerate(range(0, count, self.chunk)):
            if not self._chunks[i].size:  # older than the window
                continue
            rows = self._views(self._chunks[i])[kind][layers]
            rows = rows.reshape(n_layers, c.n_kv_heads, self.chunk, c.head_dim)
            out[:, :, start : start + self.chunk] = rows[:, :, : count - start]
        return out


_NOTHING = np.zeros(0, np.float32)  # in place of a chunk whose memory has been given back


def _copy(chunk: np.ndarray) -> np.ndarray:
    """A copy of a chunk."""
    twin = aligned_zeros(chunk.shape)
    twin[:] = chunk
    return twin
