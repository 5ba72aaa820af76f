"""What a network knows: matrices that know how to apply themselves, in frozen records.

Arrays are views of the mapped file: nothing is copied, and any number of sequences may share them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from llama2np import kernels
from llama2np.config import Config


@dataclass(frozen=True, slots=True)
class Dense:
    """A float32 matrix w (d, n). Calling it multiplies: out = x @ w.T."""

    w: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs: (d, n)."""
        return self.w.shape

    def __call__(self, x: np.ndarray, out: np.ndarray) -> None:
        """out = x @ w.T. x: (T, n), out: (T, d) float32."""
        if len(x) > 1 and kernels.matmul_tiles and len(self.w) >= kernels.ROWS:
            kernels.matmul_tiles(self.w, in_tiles(x), out)
        else:
            for t in range(len(x)):
                kernels.matmul(self.w, x[t : t + 1], out[t : t + 1], kernels.shared())

    def rows(self, tokens: np.ndarray, out: np.ndarray) -> None:
        """out[t] = w[tokens[t]]: the matrix as a table. tokens: (T,) int, out: (T, n) float32."""
        out[:] = self.w[tokens]

    @property
    def arrays(self) -> tuple[np.ndarray]:
        """What the kernels take for it."""
        return (self.w,)


@dataclass(frozen=True, slots=True)
class Int8:
    """A Q8_0 matrix: q (d, n) int8, and scales (d, n / group) float32. Used like a Dense."""

    q: np.ndarray
    scales: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs: (d, n)."""
        return self.q.shape

    def __call__(self, x: np.ndarray, out: np.ndarray) -> None:
        """out = quantized(x) @ w.T, as runq.c computes it. x: (T, n), out: (T, d) float32."""
        if len(x) > 1 and kernels.matmul_int8_tiles and self._fits_tiles():
            kernels.matmul_int8_tiles(self.q, self.scales, *self._in_tiles(x), out)
        else:
            for t in range(len(x)):
                one = slice(t, t + 1)
                kernels.matmul_int8(self.q, self.scales, x[one], out[one], kernels.shared())

    def _fits_tiles(self) -> bool:
        (d, n), groups = self.q.shape, self.scales.shape[1]
        return bool(d >= kernels.INT8_ROWS and n // groups % 4 == 0)

    def _in_tiles(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x_q = np.empty(x.shape, np.int8)
        x_scales = np.empty((len(x), self.scales.shape[1]), np.float32)
        x_sums = np.empty(x_scales.shape, np.int32)
        kernels.quantize(x, x_q, x_scales, x_sums)
        return in_tiles(x_q.view(np.int32)), in_tiles(x_scales), in_tiles(x_sums)

    def rows(self, tokens: np.ndarray, out: np.ndarray) -> None:
        """out[t] = w[tokens[t]], dequantized. tokens: (T,) int, out: (T, n) float32."""
        kernels.dequantize_rows(self.q, self.scales, tokens, out)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """What the kernels take for it."""
        return self.q, self.scales


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
    arrays: tuple[Any, ...] = field(
        init=False, repr=False
    )  # all of these, as the kernels take them

    def __post_init__(self) -> None:
        values = (getattr(self, part.name) for part in fields(self) if part.init)
        arrays = tuple(v if isinstance(v, np.ndarray) else v.arrays for v in values)
        object.__setattr__(self, "arrays", arrays)


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
        shapes: dict[str, tuple[int, ...]] = {"attn_norm": (dim,), "ffn_norm": (dim,)}
        shapes |= {"wq": square, "wk": key, "wv": key, "wo": square}
        shapes |= {"w_gate": up, "w_up": up, "w_down": down}
        if len(self.layers) != config.n_layers:
            raise ValueError(f"there are {len(self.layers)} layers, expected {config.n_layers}")
        expected: list[tuple[str, Linear | np.ndarray, tuple[int, ...]]] = [
            ("embedding", self.embedding, table),
            ("classifier", self.classifier, table),
            ("final_norm", self.final_norm, (dim,)),
        ]
        for i, layer in enumerate(self.layers):
            for name, shape in shapes.items():
                expected.append((f"{name} of layer {i}", getattr(layer, name), shape))
        for name, weight, shape in expected:
            if weight.shape != shape:
                raise ValueError(f"{name} has shape {weight.shape}, expected {shape}")
