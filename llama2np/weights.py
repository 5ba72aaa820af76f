"""What a network knows: matrices that know how to apply themselves, in frozen records.

Arrays are views of the mapped file: nothing is copied, and any number of sequences may share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from llama2np import kernels
from llama2np.config import Config

# From about this many values on, sharing the rows among threads costs less than it saves.
_THREADED_SIZE = 65536


@dataclass(frozen=True, slots=True)
class Dense:
    """A float32 matrix w (d, n). Calling it multiplies: out = x @ w.T."""

    w: np.ndarray
    _matmul: Callable = field(init=False, repr=False)
    _tiled: bool = field(init=False, repr=False)  # whether many tokens go through in tiles

    def __post_init__(self) -> None:
        threaded = self.w.size >= _THREADED_SIZE
        matmul = kernels.matmul_threaded if threaded else kernels.matmul
        object.__setattr__(self, "_matmul", matmul)
        tiled = len(self.w) >= kernels.ROWS and kernels.matmul_tiles is not None
        object.__setattr__(self, "_tiled", tiled)

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs: (d, n)."""
        return self.w.shape

    def __call__(self, x: np.ndarray, out: np.ndarray) -> None:
        """out = x @ w.T. x: (T, n), out: (T, d) float32."""
        if len(x) > 1 and self._tiled:
            kernels.matmul_tiles(self.w, in_tiles(x), out)
        else:
            self._matmul(self.w, x, out)

    def rows(self, tokens: np.ndarray, out: np.ndarray) -> None:
        """out[t] = w[tokens[t]]: the matrix as a table. tokens: (T,) int, out: (T, n) float32."""
        out[:] = self.w[tokens]


@dataclass(frozen=True, slots=True)
class Int8:
    """A Q8_0 matrix: q (d, n) int8, and scales (d, n / group) float32. Used like a Dense."""

    q: np.ndarray
    scales: np.ndarray
    _matmul: Callable = field(init=False, repr=False)
    _tiled: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        threaded = self.q.size >= _THREADED_SIZE
        matmul = kernels.matmul_int8_threaded if threaded else kernels.matmul_int8
        (d, n), groups = self.q.shape, self.scales.shape[1]
        fits = d >= kernels.INT8_ROWS and n // groups % 4 == 0
        object.__setattr__(self, "_matmul", matmul)
        object.__setattr__(self, "_tiled", fits and kernels.matmul_int8_tiles is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs: (d, n)."""
        return self.q.shape

    def __call__(self, x: np.ndarray, out: np.ndarray) -> None:
        """out = quantized(x) @ w.T, as runq.c computes it. x: (T, n), out: (T, d) float32."""
        x_q = np.empty(x.shape, np.int8)
        x_scales = np.empty((len(x), self.scales.shape[1]), np.float32)
        x_sums = np.empty(x_scales.shape, np.int32)
        kernels.quantize(x, x_q, x_scales, x_sums)
        if len(x) > 1 and self._tiled:
            tiles = in_tiles(x_q.view(np.int32)), in_tiles(x_scales), in_tiles(x_sums)
            kernels.matmul_int8_tiles(self.q, self.scales, *tiles, out)
        else:
            self._matmul(self.q, self.scales, x_q, x_scales, x_sums, out)

    def rows(self, tokens: np.ndarray, out: np.ndarray) -> None:
        """out[t] = w[tokens[t]], dequantized. tokens: (T,) int, out: (T, n) float32."""
        kernels.dequantize_rows(self.q, self.scales, tokens, out)


def in_tiles(x: np.ndarray) -> np.ndarray:
    """x, (T, n) of a 32-bit type, as the kernels for many tokens want it: (T padded, n)."""
    tiles = np.empty((-(-len(x) // kernels.LANES) * kernels.LANES, x.shape[1]), x.dtype)
    kernels.to_tiles(x.view(np.int32), tiles.view(np.int32))
    return tiles


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

    def check(self, config: Config) -> None:
        """Raise ValueError unless all shapes are those of `config`: the kernels do not look."""
        dim, kv_dim, hidden_dim = config.dim, config.kv_dim, config.hidden_dim
        square, table, key = (dim, dim), (config.vocab_size, dim), (kv_dim, dim)
        up, down = (hidden_dim, dim), (dim, hidden_dim)
        shapes = {"wq": square, "wk": key, "wv": key, "wo": square, "w_gate": up, "w_up": up}
        shapes |= {"w_down": down, "attn_norm": (dim,), "ffn_norm": (dim,)}
        if len(self.layers) != config.n_layers:
            raise ValueError(f"there are {len(self.layers)} layers, expected {config.n_layers}")
        expected = [("embedding", self.embedding, table), ("classifier", self.classifier, table)]
        expected.append(("final_norm", self.final_norm, (dim,)))
        for i, layer in enumerate(self.layers):
            for name, shape in shapes.items():
                expected.append((f"{name} of layer {i}", getattr(layer, name), shape))
        for name, weight, shape in expected:
            if weight.shape != shape:
                raise ValueError(f"{name} has shape {weight.shape}, expected {shape}")
