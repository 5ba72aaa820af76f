"""What a network knows: matrices that know how to apply themselves, in frozen records.

Arrays are views of the mapped file: nothing is copied, and any number of sequences may share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

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

    @property
    def arrays(self) -> tuple[tuple[np.ndarray, ...], ...]:
        """The array, or the arrays, of each of these."""
        values = (getattr(self, part.name) for part in fields(self))
        return tuple((v,) if isinstance(v, np.ndarray) else v.arrays for v in values)


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole network. `classifier` is `embedding` itself where a checkpoint ties them."""

    embedding: Linear  # (vocab_size, dim), a row for each token
    layers: tuple[Layer, ...]
    final_norm: np.ndarray  # (dim,)
    classifier: Linear  # dim -> vocab_size

    @property
    def matrices(self) -> Iterator[Linear]:
        """Those of the ends and of all layers."""
        yield self.embedding
        yield self.classifier
        for layer in self.layers:
            values = (getattr(layer, part.name) for part in fields(layer))
            yield from (value for value in values if not isinstance(value, np.ndarray))

    def addresses(self) -> np.ndarray:
        """Where the arrays of the layers stand in memory: (n_layers, 9, 3) int64.

        In the order of Layer's fields: the address of the values, and, of an Int8, that of the
        scales and the size of a group. Good as long as these Weights are.
        """
        table = np.zeros((len(self.layers), len(fields(Layer)), 3), np.int64)
        for places, layer in zip(table, self.layers, strict=True):
            for place, arrays in zip(places, layer.arrays, strict=True):
                place[: len(arrays)] = [array.ctypes.data for array in arrays]
                if len(arrays) > 1:
                    place[2] = arrays[0].shape[1] // arrays[1].shape[1]
        return table

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
            _check_arrays(name, weight)


def _check_arrays(name: str, weight: Linear | np.ndarray) -> None:
    """Raise ValueError for values that do not stand as the kernels read them, by address."""
    arrays = (weight,) if isinstance(weight, np.ndarray) else weight.arrays
    for array, dtype in zip(arrays[::-1], (np.float32, np.int8), strict=False):
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(
                f"{name} is {array.dtype} with strides {array.strides}, expected "
                f"np.ascontiguousarray of {dtype.__name__}"
            )
    if len(arrays) > 1:
        (d, n), (rows, groups) = arrays[0].shape, arrays[1].shape
        if rows != d or not groups or n % groups:
            raise ValueError(f"{name}: the scales of {(d, n)} values have shape {(rows, groups)}")
