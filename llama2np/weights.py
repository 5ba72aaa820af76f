"""What a network knows: matrices that know how to apply themselves, in frozen records.

Arrays are views of the mapped file: nothing is copied, and any number of sequences may share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from llama2np import kernels

# From about this many values on, sharing the rows among threads costs less than it saves.
_THREADED_SIZE = 65536


@dataclass(frozen=True, slots=True)
class Dense:
    """A float32 matrix w (d, n). Calling it multiplies: out = x @ w.T."""

    w: np.ndarray
    _matmul: Callable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        threaded = self.w.size >= _THREADED_SIZE
        matmul = kernels.matmul_threaded if threaded else kernels.matmul
        object.__setattr__(self, "_matmul", matmul)

    def __call__(self, x: np.ndarray, out: np.ndarray) -> None:
        """out = x @ w.T. x: (T, n), out: (T, d) float32."""
        if x.shape[0] == 1:
            self._matmul(self.w, x, out)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # damaged weights: the sampler says
                np.matmul(x, self.w.T, out=out)

    def rows(self, tokens: np.ndarray, out: np.ndarray) -> None:
        """out[t] = w[tokens[t]]: the matrix as a table. tokens: (T,) int, out: (T, n) float32."""
        out[:] = self.w[tokens]


@dataclass(frozen=True, slots=True)
class Int8:
    """A Q8_0 matrix: q (d, n) int8, and scales (d, n / group) float32. Used like a Dense."""

    q: np.ndarray
    scales: np.ndarray
    _matmul: Callable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        threaded = self.q.size >= _THREADED_SIZE
        matmul = kernels.matmul_int8_threaded if threaded else kernels.matmul_int8
        object.__setattr__(self, "_matmul", matmul)

    def __call__(self, x: np.ndarray, out: np.ndarray) -> None:
        """out = quantized(x) @ w.T, as runq.c computes it. x: (T, n), out: (T, d) float32."""
        count, padded = len(x), len(x) if len(x) == 1 else -(-len(x) // 4) * 4  # tokens by fours
        x_q = np.zeros((padded, x.shape[1]), np.int8)
        x_scales = np.zeros((self.scales.shape[1], padded), np.float32)
        x_sums = np.zeros(x_scales.shape, np.int32)
        kernels.quantize(x, x_q, x_scales, x_sums)
        whole = out if padded == count else np.empty((padded, out.shape[1]), np.float32)
        self._matmul(self.q, self.scales, x_q, x_scales, x_sums, whole)
        if whole is not out:
            out[:] = whole[:count]

    def rows(self, tokens: np.ndarray, out: np.ndarray) -> None:
        """out[t] = w[tokens[t]], dequantized. tokens: (T,) int, out: (T, n) float32."""
        kernels.dequantize_rows(self.q, self.scales, tokens, out)


Linear = Dense | Int8


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. llama2.c's w1, w3, w2 are called w_gate, w_up, w_down here."""

    attn_norm: np.ndarray  # (dim,)
    wq: Linear  # dim -> n_heads * head_dim
    wk: Linear  # dim -> kv_dim
    wv: Linear  # dim -> kv_dim
    wo: Linear  # n_heads * head_dim -> dim
    ffn_norm: np.ndarray  # (dim,)
    w_gate: Linear  # dim -> hidden_dim
    w_up: Linear  # dim -> hidden_dim
    w_down: Linear  # hidden_dim -> dim


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole network. `classifier` is `embedding` itself where a checkpoint ties them."""

    embedding: Linear  # (vocab_size, dim), a row for each token
    layers: tuple[Layer, ...]
    final_norm: np.ndarray  # (dim,)
    classifier: Linear  # dim -> vocab_size
