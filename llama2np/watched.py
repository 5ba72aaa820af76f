"""The forward pass with a stop at each array, for the hooks of trace.py.

It takes transformer.py's steps through the same weights and kernels, and equals it to the last bit
(the tests hold it to that). Nothing there knows of it: who does not look pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llama2np import kernels
from llama2np.arguments import having
from llama2np.config import Config
from llama2np.trace import ENDS, Hook, Place
from llama2np.transformer import Cache, Scratch, Transformer
from llama2np.weights import Layer

Show = Callable[[str, np.ndarray], None]  # show(name, array)
Visit = Callable[[np.ndarray, Place], None]


class Watched(Transformer):
    """A Transformer whose arrays are shown to hooks, which may change them, in the order given.

    The network it was made from is not touched. Hooks of a Watched one come first.
    Raises ValueError for a layer that the network has not, and for a network of another kind.
    """

    def __init__(self, transformer: Transformer, hooks: Sequence[Hook]):
        for hook in hooks:
            expected = "a Trace, an Edit or what has names, layers and visit"
            having("a hook", hook, expected, "names", "layers", "visit")
        if type(transformer) not in (Transformer, Watched):
            raise ValueError(f"hooks are for a Transformer, not for {type(transformer).__name__}")
        super().__init__(transformer.config, transformer.weights)
        before = transformer.hooks if isinstance(transformer, Watched) else ()
        self.hooks: tuple[Hook, ...] = (*before, *hooks)
        self._visits: dict[tuple[str, int | None], list[Visit]] = {}
        for hook in self.hooks:
            layers = _layers(hook, self.config)
            for name in hook.names:
                for layer in (None,) if name in ENDS else layers:
                    self._visits.setdefault((name, layer), []).append(hook.visit)

    def __reduce__(self) -> tuple[object, ...]:
        return Watched, (Transformer(self.config, self.weights), self.hooks)

    def _read(self, tokens: np.ndarray, cache: Cache, s: Scratch, logits: np.ndarray) -> None:
        positions = np.arange(cache.pos, cache.pos + len(tokens))
        self._own.embedding.rows(tokens, s.x)
        self._show("embedding", None, s.x, positions)
        kernels.rope_angles(self._frequencies, cache.pos, s.cos, s.sin)
        for i, layer in enumerate(self._own.layers):

            def show(name: str, array: np.ndarray, i: int = i) -> None:
                self._show(name, i, array, positions)

            self._attend(layer, cache, s, i, show)
            self._feed_forward(layer, s, show)
        self._classify(s, logits)
        if rows := len(logits):
            self._show("logits", None, logits, positions[-rows:])

    def _show(self, name: str, layer: int | None, array: np.ndarray, positions: np.ndarray) -> None:
        # A view for each: its shape is the hook's to change, that of `array` is not.
        for visit in self._visits.get((name, layer), ()):
            visit(array.view(), Place(name, layer, positions.copy()))

    def _attend(self, layer: Layer, cache: Cache, s: Scratch, i: int, show: Show) -> None:
        """`Transformer.attend`, step by step."""
        keys, values, pos = cache.keys[i], cache.values[i], cache.pos
        by_head = len(s.x), -1, self.config.head_dim
        kernels.rmsnorm(s.x, layer.attn_norm, self._eps, s.h)
        show("attn_norm", s.h)
        layer.wq(s.h, s.q)
        layer.wk(s.h, s.k)
        layer.wv(s.h, s.v)
        kernels.rope(s.q, s.k, s.v, s.cos, s.sin, pos, keys, values)
        show("q", s.q.reshape(by_head))
        if ("k", i) in self._visits:
            _show_keys(keys, pos, len(s.x), show)
        show("v", values[:, pos : pos + len(s.x)].swapaxes(0, 1))
        kernels.attention(s.q, keys, values, pos, cache.scores, s.mixed)
        if ("attention", i) in self._visits:
            _show_attention(s.q.reshape(by_head), keys, values, pos, show, s.mixed)
        show("mixed", s.mixed.reshape(by_head))
        layer.wo(s.mixed, s.h)
        show("attn_out", s.h)
        kernels.add(s.x, s.h)
        show("resid_mid", s.x)

    def _feed_forward(self, layer: Layer, s: Scratch, show: Show) -> None:
        """`Transformer.feed_forward`, step by step."""
        kernels.rmsnorm(s.x, layer.ffn_norm, self._eps, s.h)
        show("ffn_norm", s.h)
        layer.w_gate(s.h, s.gate)
        layer.w_up(s.h, s.up)
        show("gate", s.gate)
        show("up", s.up)
        kernels.swiglu(s.gate, s.up)
        show("mlp", s.gate)
        layer.w_down(s.gate, s.h)
        show("mlp_out", s.h)
        kernels.add(s.x, s.h)
        show("resid_post", s.x)


def _layers(hook: Hook, config: Config) -> list[int]:
    """The layers of a hook, counted from 0."""
    count = config.n_layers
    for layer in hook.layers or ():
        if not -count <= layer < count:
            raise ValueError(f"layer {layer} is not one of the {count}: 0 to {count - 1}")
    return [i for i in range(count) if hook.layers is None or {i, i - count} & {*hook.layers}]


def _show_keys(keys: np.ndarray, pos: int, count: int, show: Show) -> None:
    """Show `count` tokens' keys as (T, n_kv_heads, head_dim), and put them back into the cache."""
    block, lane = divmod(np.arange(pos, pos + count), kernels.BLOCK)
    k = keys[:, block, :, lane]
    show("k", k)
    keys[:, block, :, lane] = k


def _show_attention(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, pos: int, show: Show, out: np.ndarray
) -> None:
    """Show the weights (n_heads, T, positions); where they were changed, gather anew into out."""
    weights = attention_weights(q, keys, pos)
    shown = weights.copy()
    show("attention", shown)
    if not np.array_equal(weights, shown):
        grouped = shown.reshape(len(values), -1, shown.shape[2])  # a row for each (head, token)
        mixed = (grouped @ values[:, : shown.shape[2]]).reshape(*shown.shape[:2], -1)
        out[:] = mixed.swapaxes(0, 1).reshape(out.shape)


def attention_weights(q: np.ndarray, keys: np.ndarray, pos: int) -> np.ndarray:
    """Return softmax(q k / sqrt(head_dim)), causal: (n_heads, T, pos + T), a row's sum being 1.

    q: (T, n_heads, head_dim) at pos and on, after RoPE; keys: a cache as kernels/attention.py
    lays it out.
    """
    count, n_heads, head_dim = q.shape
    n_kv_heads, end = len(keys), pos + count
    columns = keys.swapaxes(1, 2).reshape(n_kv_heads, head_dim, -1)[:, :, :end]
    grouped = q.swapaxes(0, 1).reshape(n_kv_heads, -1, head_dim)  # heads that share their keys
    scores = (grouped @ columns).reshape(n_heads, count, end) / np.sqrt(np.float32(head_dim))
    scores[:, np.arange(end) > np.arange(pos, end)[:, None]] = -np.inf
    shares: np.ndarray = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return shares
