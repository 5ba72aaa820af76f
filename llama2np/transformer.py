"""The forward pass: tokens in, logits out. Knows no text and no file.

For many tokens the loop over the layers is Python, each step of a block is a compiled kernel, and a
debugger can stop between any two. For one token all of it is one kernel, of the same steps:
kernels/one_token.py. `Llama.with_hooks` stops at every array.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

from llama2np import kernels, snapshot
from llama2np.arguments import path_like, whole, wrong
from llama2np.config import Config
from llama2np.output import brief
from llama2np.owner import Owner
from llama2np.weights import Dense, Int8, Layer, Linear, Weights

# A prompt goes through in blocks of this many tokens: enough to keep matrix products busy.
BLOCK = 256

# At most so many multiply-adds, and so many tokens, in one call of `greedy`: one or two
# hundredths of a second.
_GREEDY_WORK, _GREEDY_TOKENS = 2**27, 16


@dataclass(frozen=True, slots=True)
class Scratch:
    """Room for the activations of T tokens."""

    x: np.ndarray  # (T, dim): the residual stream
    h: np.ndarray  # (T, dim): the normalised input of a branch, and then its output
    q: np.ndarray  # (T, n_heads * head_dim)
    k: np.ndarray  # (T, kv_dim)
    v: np.ndarray  # (T, kv_dim)
    mixed: np.ndarray  # (T, n_heads * head_dim): what attention gathered
    gate: np.ndarray  # (T, hidden_dim)
    up: np.ndarray  # (T, hidden_dim)
    cos: np.ndarray  # (T, head_dim / 2)
    sin: np.ndarray  # (T, head_dim / 2)
    arrays: tuple[np.ndarray, ...] = field(
        init=False, repr=False
    )  # all of these, as the kernels take them

    def __post_init__(self) -> None:
        arrays = tuple(getattr(self, part.name) for part in fields(self) if part.init)
        object.__setattr__(self, "arrays", arrays)

    @classmethod
    def for_tokens(cls, count: int, config: Config) -> Scratch:
        dim, kv_dim, hidden_dim = config.dim, config.kv_dim, config.hidden_dim
        pairs = config.head_dim // 2
        widths = (dim, dim, dim, kv_dim, kv_dim, dim, hidden_dim, hidden_dim, pairs, pairs)
        return cls(*(kernels.aligned_zeros((count, width)) for width in widths))


class Cache(NamedTuple):
    """What one pass takes of a State: read once, so that nobody changes it before it is used."""

    pos: int  # the position of the first token of the pass
    keys: np.ndarray
    values: np.ndarray
    scores: np.ndarray


_IN_USE = (
    "the State is being read by another thread, or by the call that this one comes from (a hook?): "
    "use a State of its own for each thread and hook, made with new_state() or, before, with fork()"
)


class State:
    """What one sequence is thinking: its position, its KV cache and its scratch.

    The cache grows with use, in blocks of 64 positions: `keys` (n_layers, n_kv_heads, blocks,
    head_dim, 64), after their rotation, and `values` (n_layers, n_kv_heads, positions, head_dim),
    both float32. Many threads may share one model, each with a State of its own: while one call
    reads or changes a State, any other raises ValueError.
    """

    def __init__(self, config: Config):
        if not isinstance(config, Config):
            raise TypeError(
                f"State() takes a Config, not {brief(config)}: model.new_state() makes one, and "
                "State.load(path, model.config) opens a file"
            )
        self._config = config
        self._owner = Owner(_IN_USE)
        self._pos = 0
        self._keys, self._values = self._no_cache(0)
        self._scores = np.zeros((config.n_heads * kernels.TOGETHER, 0), np.float32)
        self._scratch = Scratch.for_tokens(1, config)
        self._tokens = np.zeros(0, np.int64)

    def __repr__(self) -> str:
        return f"State({self.pos:,} of {self.config.seq_len:,} positions read)"

    @property
    def config(self) -> Config:
        """The shape of the network that it is for."""
        return self._config

    @property
    def pos(self) -> int:
        """How many tokens have been read, and the position of the next one."""
        return self._pos

    @pos.setter
    def pos(self, pos: int) -> None:
        with self._owner:
            self._pos = whole("pos", pos)

    # Views: who gives one another shape, or puts another array there, does not reach the kernels.
    @property
    def keys(self) -> np.ndarray:
        """The keys of the cache: a view, (n_layers, n_kv_heads, blocks, head_dim, 64)."""
        return self._keys.view()

    @property
    def values(self) -> np.ndarray:
        """The values of the cache: a view, (n_layers, n_kv_heads, positions, head_dim)."""
        return self._values.view()

    @property
    def scores(self) -> np.ndarray:
        """Scratch of attention: a view."""
        return self._scores.view()

    @property
    def tokens(self) -> np.ndarray:
        """The tokens read so far: a view, (pos,) int64."""
        return self._tokens[: self._pos]

    def note(self, tokens: np.ndarray) -> None:
        """Take down `tokens` (T,), which are going to be read at pos and on: in reserved room."""
        with self._owner:
            self._note(tokens)

    def _note(self, tokens: np.ndarray) -> None:
        self._tokens[self._pos : self._pos + len(tokens)] = tokens

    def truncate(self, pos: int) -> None:
        """Forget all but the first `pos` tokens. Raises ValueError if there are fewer."""
        with self._owner:
            self._truncate(whole("pos", pos))

    def _truncate(self, pos: int) -> None:
        if not 0 <= pos <= self._pos:
            raise ValueError(f"pos must be 0 to {self._pos}, what has been read, not {pos}")
        self._pos = pos

    def reuse(self, tokens: Sequence[int]) -> list[int]:
        """Forget what is not the beginning of `tokens`; return those that are still to be read.

        At least the last one is: its logits are not kept.
        """
        with self._owner:
            most = max(min(self._pos, len(tokens) - 1), 0)
            differ = np.flatnonzero(self._tokens[:most] != np.asarray(tokens[:most]))
            self._truncate(int(differ[0]) if differ.size else most)
            return list(tokens[self._pos :])

    def fork(self) -> State:
        """A copy that goes its own way: one prompt, read once, with many continuations."""
        with self._owner:
            twin = State(self._config)
            twin._reserve(self._pos)
            _copy(self._keys, self._values, self._pos, twin._keys, twin._values)
            twin._note(self.tokens)
            twin._pos = self._pos
            return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokens and the KV cache to a .npz, complete or not at all. Raises OSError."""
        c, path = self._config, path_like("path", path)
        with self._owner:
            keys = self._keys.swapaxes(3, 4).reshape(c.n_layers, c.n_kv_heads, -1, c.head_dim)
            keys, values = keys[:, :, : self._pos], self._values[:, :, : self._pos]
            snapshot.write(path, c, self.tokens, keys, values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], config: Config) -> State:
        """Read what `save` wrote; it goes on token for token where that State was.

        That the weights are the same too is for the caller to know. Raises ValueError for a state
        of a network of another shape and for other files, and OSError.
        """
        state = cls(config)
        tokens, keys, values = snapshot.read(path_like("path", path), config)
        state._reserve(len(tokens))
        state._values[:, :, : len(tokens)] = values
        rows = np.zeros_like(state._values)
        rows[:, :, : len(tokens)] = keys
        blocks = (*rows.shape[:2], -1, kernels.BLOCK, config.head_dim)
        state._keys[:] = rows.reshape(blocks).swapaxes(3, 4)
        state._note(tokens)
        state._pos = len(tokens)
        return state

    def _no_cache(self, capacity: int) -> tuple[np.ndarray, np.ndarray]:
        c, block = self._config, kernels.BLOCK
        heads = c.n_layers, c.n_kv_heads
        keys = kernels.aligned_zeros((*heads, capacity // block, c.head_dim, block))
        return keys, kernels.aligned_zeros((*heads, capacity, c.head_dim))

    def reserve(self, count: int) -> None:
        """Make room for `count` positions in all."""
        with self._owner:
            self._reserve(whole("count", count))

    def _reserve(self, count: int) -> None:
        old = self._scores.shape[1]
        if count <= old:
            return
        wanted = min(max(count, 2 * old), self._config.seq_len)
        capacity = -(-wanted // kernels.BLOCK) * kernels.BLOCK
        keys, values = self._no_cache(capacity)
        _copy(self._keys, self._values, old, keys, values)
        tokens = np.zeros(capacity, np.int64)  # not of seq_len: a header may claim any
        tokens[:old] = self._tokens[:old]
        scores = kernels.aligned_zeros((len(self._scores), capacity))
        # Together: a Ctrl-C before leaves the State as it was.
        self._keys, self._values, self._scores, self._tokens = keys, values, scores, tokens

    def _cache(self, count: int) -> Cache:
        """The cache, with room for `count` tokens at pos and on. Raises ValueError."""
        pos, seq_len = self._pos, self._config.seq_len
        if not 0 <= pos <= seq_len - count:
            raise ValueError(
                f"{count} tokens at position {pos} do not fit into the context of {seq_len}"
            )
        self._reserve(pos + count)
        return Cache(pos, self._keys, self._values, self._scores)

    def _advance(self, cache: Cache, count: int) -> Cache:
        """What the next pass takes, after `count` tokens were read."""
        self._pos = cache.pos + count
        return cache._replace(pos=self._pos)

    def _scratch_for(self, count: int) -> Scratch:
        """Scratch for `count` tokens; the one for a single token is kept."""
        return self._scratch if count == 1 else Scratch.for_tokens(count, self._config)


def _copy(
    keys: np.ndarray, values: np.ndarray, count: int, to_keys: np.ndarray, to_values: np.ndarray
) -> None:
    """Copy the first `count` positions of all layers' cache."""
    blocks = -(-count // kernels.BLOCK)
    to_keys[:, :, :blocks] = keys[:, :, :blocks]
    to_values[:, :, :count] = values[:, :, :count]


class Transformer:
    """A Llama network: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    It is read-only: any number of States can run through it. Raises ValueError for weights that
    are not of the shapes that `config` says, or that the kernels would misread.
    """

    def __init__(self, config: Config, weights: Weights):
        for name, value, kind in (("config", config, Config), ("weights", weights, Weights)):
            if not isinstance(value, kind):
                raise wrong(name, f"of type {kind.__name__}", value)
        self._config = config
        self._weights = weights
        self._own = weights = weights.views()  # before the check: what is checked stays as it is
        weights.check(config)
        self._eps = np.float32(config.norm_eps)
        # run.c's expression in its precision: 1 / powf(theta, i / head_dim) for i = 0, 2, 4 ...
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        powers = np.float64(config.rope_theta) ** exponents.astype(np.float64)
        self._frequencies = np.float32(1) / powers.astype(np.float32)
        self._one_token = self._kernel()
        if self._one_token:
            self._ends, self._layers = weights.addresses()
            self._work = sum(math.prod(matrix.shape) for matrix in weights.multiplied)
            kernels.expect(self._one_token)

    def __repr__(self) -> str:
        c = self.config
        return (
            f"{type(self).__name__}({c.n_layers} layers of dim {c.dim}, {c.n_heads} heads, "
            f"context {c.seq_len:,}, vocabulary {c.vocab_size:,})"
        )

    @property
    def config(self) -> Config:
        """The shape of the network. Not to be exchanged: the weights were checked against it."""
        return self._config

    @property
    def weights(self) -> Weights:
        """Not to be exchanged: the kernel for one token has their addresses."""
        return self._weights

    @property
    def stride(self) -> int:
        """How many tokens `greedy` may read in one call, so that no one waits; 1: it is no use."""
        if not self._one_token or self._differs("forward", "_read"):
            return 1
        return max(min(_GREEDY_WORK // self._work, _GREEDY_TOKENS), 1)

    def _differs(self, *methods: str) -> bool:
        """Whether any of these is another one than this class's: a subclass's, or put in place."""
        own = (getattr(getattr(self, name), "__func__", None) for name in methods)
        return any(a is not getattr(Transformer, b) for a, b in zip(own, methods, strict=True))

    def _kernel(self) -> Callable[..., None] | None:
        """The kernel for one token; None if a step is another one here, or a matrix's kind."""
        if self._differs("attend", "feed_forward", "_classify"):
            return None
        kernel_of: dict[type[Linear] | None, Callable[..., None] | None] = {
            Dense: kernels.one_token_float32,
            Int8: kernels.one_token_int8,
        }
        return kernel_of.get(self._own.kind)

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles are made anew: the addresses are those of this one's arrays."""
        return type(self), (self.config, self.weights)

    def forward(
        self, tokens: Sequence[int] | np.ndarray, state: State, all_logits: bool = False
    ) -> np.ndarray:
        """Read `tokens` (T,) at state.pos and on; return what follows the last of them.

        Returns float32 logits (vocab_size,), or those of every token (T, vocab_size) if
        `all_logits`; the array is the caller's. Raises ValueError for a token outside the
        vocabulary, no tokens, more of them than the context has room for, and a State that another
        call is reading.
        """
        tokens = self._checked(tokens, state)
        count, vocab_size = len(tokens), self.config.vocab_size
        logits = np.empty((count if all_logits else 1, vocab_size), np.float32)
        size = BLOCK if kernels.may_use_threads() else 1
        with state._owner:
            cache = state._cache(count)
            for start in range(0, count, size):
                block = tokens[start : start + size]
                last = start + len(block) == count
                wanted = logits[start:][: len(block)] if all_logits else logits[: int(last)]
                state._note(block)
                self._read(block, cache, state._scratch_for(len(block)), wanted)
                cache = state._advance(cache, len(block))
        return logits if all_logits else logits[0]

    def greedy(self, token: int, state: State, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Read `token` at state.pos, and `count` - 1 more, each the likeliest after those before.

        Returns them, (count,) int64, and what follows each, float32 logits (count, vocab_size): to
        the bit what `forward` says of one after the other, but without Python in between, which
        takes as long as a small network. `stride` is a good count. Raises ValueError as `forward`
        does, and where there is no kernel for one token: in a subclass, or of mixed matrices.
        """
        if not self._one_token:
            raise ValueError("greedy: no kernel goes through this network token by token")
        count = whole("count", count, 0)
        tokens = self._checked(np.full(count, whole("token", token)), state)
        logits = np.empty((count, self.config.vocab_size), np.float32)
        with state._owner:
            cache = state._cache(count)
            self._read_one_by_one(tokens, cache, state._scratch_for(1), logits)
            state._note(tokens)
            state._advance(cache, count)
        return tokens, logits

    def _checked(self, tokens: Sequence[int] | np.ndarray, state: State) -> np.ndarray:
        """The one border to the kernels: what passes here is in range."""
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or not tokens.size or tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens must be one or more integers in a row, not {tokens!r}")
        tokens = tokens.astype(np.int64)  # a copy, so that the kernels see one type of array
        # Read without a sign, -1 is the largest. One token is it: that is the usual case.
        worst = int(tokens.view(np.uint64).argmax()) if tokens.size > 1 else 0
        if not 0 <= tokens[worst] < self.config.vocab_size:
            most = self.config.vocab_size - 1
            raise ValueError(f"token {tokens[worst]} is not in the vocabulary of 0 to {most}")
        if not isinstance(state, State):
            raise wrong("state", "a State", state)
        if state.config is not self.config and state.config != self.config:
            raise ValueError("the state was made for a model of another shape")
        return tokens

    def _read(self, tokens: np.ndarray, cache: Cache, s: Scratch, logits: np.ndarray) -> None:
        """One block through all layers: s.x becomes the residual stream behind the last.

        The last of the tokens are classified, as many as `logits` has rows for.
        """
        if len(tokens) == 1 and self._one_token:
            self._read_one_by_one(tokens, cache, s, logits)
        else:
            self._own.embedding.rows(tokens, s.x)
            kernels.rope_angles(self._frequencies, cache.pos, s.cos, s.sin)
            cached = zip(self._own.layers, cache.keys, cache.values, strict=True)
            for layer, keys, values in cached:
                self.attend(layer, keys, values, cache, s)
                self.feed_forward(layer, s)
            self._classify(s, logits)

    def _read_one_by_one(
        self, tokens: np.ndarray, cache: Cache, s: Scratch, logits: np.ndarray
    ) -> None:
        """The first of `tokens` at cache.pos; the others become the likeliest behind it."""
        assert self._one_token
        pos, *arrays = cache
        where = tokens, pos, self._frequencies, self._eps, self._ends, self._layers
        members = kernels.members(self._work)
        self._one_token(*where, s.arrays, *arrays, logits, members)

    def attend(
        self, layer: Layer, keys: np.ndarray, values: np.ndarray, cache: Cache, s: Scratch
    ) -> None:
        """x += wo(attention(rope(wq h), rope(wk h), wv h)), where h = rmsnorm(x).

        keys, values: those of this layer, of `cache`.
        """
        kernels.rmsnorm(s.x, layer.attn_norm, self._eps, s.h)
        layer.wq(s.h, s.q)
        layer.wk(s.h, s.k)
        layer.wv(s.h, s.v)
        kernels.rope(s.q, s.k, s.v, s.cos, s.sin, cache.pos, keys, values)
        work = 2 * s.q.size * (cache.pos + len(s.q))
        attention = kernels.attention if kernels.members(work) == 1 else kernels.attention_threaded
        attention(s.q, keys, values, cache.pos, cache.scores, s.mixed)
        layer.wo(s.mixed, s.h)
        kernels.add(s.x, s.h)

    def feed_forward(self, layer: Layer, s: Scratch) -> None:
        """x += w_down(silu(w_gate h) * w_up h), where h = rmsnorm(x)."""
        kernels.rmsnorm(s.x, layer.ffn_norm, self._eps, s.h)
        layer.w_gate(s.h, s.gate)
        layer.w_up(s.h, s.up)
        kernels.swiglu(s.gate, s.up)
        layer.w_down(s.gate, s.h)
        kernels.add(s.x, s.h)

    def _classify(self, s: Scratch, logits: np.ndarray) -> None:
        """logits = classifier(rmsnorm(x)), of the last tokens. logits: (rows, vocab_size)."""
        if rows := len(logits):
            kernels.rmsnorm(s.x[-rows:], self._own.final_norm, self._eps, s.h[-rows:])
            self._own.classifier(s.h[-rows:], logits)
