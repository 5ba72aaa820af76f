"""What a network knows: matrices that know how to apply themselves, in frozen records.

Arrays are views of the mapped file: nothing is copied, and any number of sequences may share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from llama2np import kernels
from llama2np.config import Config


@dataclass(frozen=True, slots=True)
class Dense:
    """A float32 matrix w (d, n). Calling it multiplies: out = x @ w.T."""

    w: np.ndarray

    def __repr__(self) -> str:
        return f"Dense{self.shape}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs: (d, n)."""
        return self.w.shape

    def __call__(self, x: np.ndarray, out: np.ndarray) -> None:
        """out = x @ w.T. x: (T, n), out: (T, d) float32."""
        count, members = len(x), kernels.members(x.shape[0] * self.w.size)
        if count > kernels.FEW and kernels.matmul_tiles and len(self.w) >= kernels.ROWS:
            kernels.matmul_tiles(self.w, in_tiles(x), out)
        elif count > 1 and kernels.matmul_few and members > 1:
            kernels.matmul_few(self.w, x, out)
        else:
            for t in range(count):
                kernels.matmul(self.w, x[t : t + 1], out[t : t + 1], members)

    def rows(self, tokens: np.ndarray, out: np.ndarray) -> None:
        """out[t] = w[tokens[t]]: the matrix as a table. tokens: (T,) int, out: (T, n) float32."""
        out[:] = self.w[tokens]

    @property
    def arrays(self) -> tuple[np.ndarray]:
        """What the kernels take for it."""
        return (self.w,)

    def check(self, name: str) -> None:
        """Raise ValueError unless the values stand as the kernels read them."""
        check_array(name, self.w, np.float32)


@dataclass(frozen=True, slots=True)
class Int8:
    """A Q8_0 matrix: q (d, n) int8, and scales (d, n / group) float32. Used like a Dense."""

    q: np.ndarray
    scales: np.ndarray

    def __repr__(self) -> str:
        return f"Int8{self.shape}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs: (d, n)."""
        return self.q.shape

    def __call__(self, x: np.ndarray, out: np.ndarray) -> None:
        """out = quantized(x) @ w.T, as runq.c computes it. x: (T, n), out: (T, d) float32."""
        if len(x) > kernels.INT8_FEW and kernels.matmul_int8_tiles and self._fits_tiles():
            kernels.matmul_int8_tiles(self.q, self.scales, *self._in_tiles(x), out)
        else:
            members = kernels.members(len(x) * self.q.size)
            kernels.matmul_int8(self.q, self.scales, x, out, members)

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

    @property
    def group(self) -> int:
        """How many values share a scale."""
        return int(self.q.shape[1] // self.scales.shape[1])

    def check(self, name: str) -> None:
        """Raise ValueError unless values and scales stand as the kernels read them."""
        check_array(name, self.q, np.int8)
        check_array(f"scales of {name}", self.scales, np.float32)
        (d, n), scales = self.q.shape, self.scales.shape
        if len(scales) != 2 or scales[0] != d or not scales[1] or n % scales[1]:
            raise ValueError(f"{name}: the scales of {(d, n)} values have shape {scales}")


def in_tiles(x: np.ndarray) -> np.ndarray:
    """x, (T, n) of a 32-bit type, as the kernels for many tokens want it: (T padded, n)."""
    padded = -(-len(x) // kernels.LANES) * kernels.LANES
    tiles = kernels.aligned_zeros((padded, x.shape[1]), x.dtype)
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

    def __repr__(self) -> str:
        return f"Layer(wq={self.wq!r}, w_up={self.w_up!r}, ...)"

    @property
    def matrices(self) -> tuple[Linear, ...]:
        """All but the norms."""
        values = (getattr(self, part.name) for part in fields(self))
        return tuple(value for value in values if not isinstance(value, np.ndarray))


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole network. `classifier` is `embedding` itself where a checkpoint ties them."""

    embedding: Linear  # (vocab_size, dim), a row for each token
    layers: tuple[Layer, ...]
    final_norm: np.ndarray  # (dim,)
    classifier: Linear  # dim -> vocab_size

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))  # not a list, which can change

    def views(self) -> Weights:
        """The same values in arrays of its own: giving one of these another shape or type does
        not reach those."""
        own: Weights = _views(replace(self, layers=tuple(map(_views, self.layers))))
        return own

    def __repr__(self) -> str:
        tied = "tied" if self.classifier is self.embedding else repr(self.classifier)
        return (
            f"Weights(embedding={self.embedding!r}, {len(self.layers)} layers, classifier {tied})"
        )

    @property
    def kind(self) -> type[Linear] | None:
        """Dense or Int8, if all matrices are that; of one group size, and aligned in memory.

        Files hold such networks. None stands for any other, also of callables of a user's own.
        """
        matrices = [self.embedding, *self.multiplied]
        kinds = {type(matrix) for matrix in matrices}
        groups = {matrix.group for matrix in matrices if isinstance(matrix, Int8)}
        if len(kinds) > 1 or len(groups) > 1 or not kinds <= {Dense, Int8}:
            return None
        aligned = all(array.flags.aligned for matrix in matrices for array in matrix.arrays)
        return kinds.pop() if aligned else None

    @property
    def multiplied(self) -> list[Linear]:
        """The matrices that each token is multiplied by: all but the embedding."""
        return [matrix for layer in self.layers for matrix in layer.matrices] + [self.classifier]

    def addresses(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the arrays stand in memory, int64: the ends' (3, 3), the layers' (n_layers, 9, 3).

        In the order of kernels.ENDS and kernels.PLACES: the address of the values, and, of an
        Int8, that of the scales and the size of a group. Only if there is a `kind`, and as long as
        these Weights are alive.
        """
        layers = [_addresses(layer, kernels.PLACES) for layer in self.layers]
        return _addresses(self, kernels.ENDS), np.stack(layers)

    def check(self, config: Config) -> None:
        """Raise ValueError unless all is as the kernels, which do not look, take it to be.

        That is the shapes that `config` says, float32 norms, and what each matrix has to say.
        """
        dim, kv_dim, hidden_dim = config.dim, config.kv_dim, config.hidden_dim
        square, table, key = (dim, dim), (config.vocab_size, dim), (kv_dim, dim)
        up, down = (hidden_dim, dim), (dim, hidden_dim)
        shapes = {"wq": square, "wk": key, "wv": key, "wo": square}
        shapes |= {"w_gate": up, "w_up": up, "w_down": down}
        if len(self.layers) != config.n_layers:
            raise ValueError(f"there are {len(self.layers)} layers, expected {config.n_layers}")
        check_matrix("embedding", self.embedding, table)
        check_matrix("classifier", self.classifier, table)
        check_norm("final_norm", self.final_norm, dim)
        for i, layer in enumerate(self.layers):
            for name, shape in shapes.items():
                check_matrix(f"{name} of layer {i}", getattr(layer, name), shape)
            check_norm(f"attn_norm of layer {i}", layer.attn_norm, dim)
            check_norm(f"ffn_norm of layer {i}", layer.ffn_norm, dim)


def _views(record: Any) -> Any:
    """A copy of a Weights, a Layer, a Dense or an Int8, with a view of each array in it."""
    found = {}
    for part in fields(record):
        value = getattr(record, part.name)
        if isinstance(value, np.ndarray):
            found[part.name] = value.view()
        elif isinstance(value, Dense | Int8):
            found[part.name] = _views(value)
    return replace(record, **found)


def _addresses(owner: Layer | Weights, names: Sequence[str]) -> np.ndarray:
    """Rows of `Weights.addresses`."""
    table = np.zeros((len(names), 3), np.int64)
    for row, name in zip(table, names, strict=True):
        weight = getattr(owner, name)
        arrays = (weight,) if isinstance(weight, np.ndarray) else weight.arrays
        row[: len(arrays)] = [array.ctypes.data for array in arrays]
        row[2] = weight.group if isinstance(weight, Int8) else 0
    return table


def check_matrix(name: str, matrix: Linear, shape: tuple[int, int]) -> None:
    """Raise ValueError for what is no matrix of this shape (d, n)."""
    if not callable(matrix):
        raise ValueError(f"{name} is of type {type(matrix).__name__}, expected Dense or Int8")
    if matrix.shape != shape:
        raise ValueError(f"{name} has shape {matrix.shape}, expected {shape}")
    if isinstance(matrix, Dense | Int8):
        matrix.check(name)


def check_norm(name: str, norm: np.ndarray, dim: int) -> None:
    """Raise ValueError for what is no norm (dim,) float32."""
    if norm.shape != (dim,):
        raise ValueError(f"{name} has shape {norm.shape}, expected {(dim,)}")
    check_array(name, norm, np.float32)


def check_array(name: str, array: np.ndarray, dtype: type[np.generic]) -> None:
    """Raise ValueError for an array of another type, or with gaps."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} is {array.dtype} with strides {array.strides}, expected "
            f"np.ascontiguousarray of {dtype.__name__}"
        )
