"""The tensors of a network by name. The arrays are views of the mapped file: nothing is copied.

A matrix is (outputs, inputs), as stored. The tensors of block i are called "layers.i.wq" and so on;
a bias has the name of its matrix or norm, followed by ".bias".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from llama2np.model.config import Config
from llama2np.model.gguf_blocks import Blocks

_FLOATS = "float32", "bfloat16", "float16"  # bfloat16 is the type of the package ml_dtypes


@cache
def _name(dtype: np.dtype) -> str:
    """NumPy's name of a number format. It is kept, since NumPy makes it anew each time."""
    return str(dtype)


@dataclass(frozen=True, slots=True)
class Dense:
    """A matrix w (d, n) of float32, bfloat16 or float16."""

    w: np.ndarray

    def __repr__(self) -> str:
        return f"Dense{self.shape}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs: (d, n)."""
        return self.w.shape

    @property
    def kind(self) -> str:
        """The number format: "float32", "bfloat16" or "float16"."""
        return _name(self.w.dtype)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that hold it."""
        return (self.w,)

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """The rows for `tokens` (T,): (T, n) float32."""
        return np.asarray(self.w[tokens], np.float32)

    def check(self, name: str) -> None:
        """Raise ValueError unless the values are stored as the kernels read them."""
        check_array(name, self.w, self.w.dtype if self.kind in _FLOATS else np.float32)


@dataclass(frozen=True, slots=True)
class Int8:
    """A Q8_0 matrix: q (d, n) int8, and scales (d, n / group) float32."""

    q: np.ndarray
    scales: np.ndarray

    def __repr__(self) -> str:
        return f"Int8{self.shape}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs: (d, n)."""
        return self.q.shape

    @property
    def kind(self) -> str:
        """The number format: "int8"."""
        return "int8"

    @property
    def group(self) -> int:
        """The number of values that share a scale."""
        return int(self.q.shape[1] // self.scales.shape[1])

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that hold it."""
        return self.q, self.scales

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """The rows for `tokens` (T,), dequantized: (T, n) float32."""
        q, scales = self.q[tokens].astype(np.float32), self.scales[tokens]
        values: np.ndarray = q.reshape(*scales.shape, -1) * scales[..., None]
        return values.reshape(q.shape)

    def check(self, name: str) -> None:
        """Raise ValueError unless values and scales are stored as the kernels read them."""
        check_array(name, self.q, np.int8)
        check_array(f"scales of {name}", self.scales, np.float32)
        (d, n), scales = self.q.shape, self.scales.shape
        if len(scales) != 2 or scales[0] != d or not scales[1] or n % scales[1]:
            raise ValueError(f"{name}: the scales of {(d, n)} values have shape {scales}")


@dataclass(frozen=True, slots=True)
class Outline:
    """A tensor of which only the shape is known: for checking a network before it is read."""

    shape: tuple[int, ...]

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Nothing is read yet."""
        return ()


Matrix = Dense | Int8 | Blocks
# An array is a norm or a bias, (n,) float32. An Outline can be checked, but not computed with.
Tensor = Matrix | np.ndarray | Outline

# The shape of each tensor in terms of Config: two names for a matrix, one for a norm. First the
# tensors of a block, then those that occur once in a network. These are a Llama's, which a .bin
# file has and the trainer makes; new tensors belong into OTHER_SHAPES.
LAYER_SHAPES: dict[str, tuple[str, ...]] = {
    "attn_norm": ("dim",),
    "wq": ("q_dim", "dim"),
    "wk": ("kv_dim", "dim"),
    "wv": ("kv_dim", "dim"),
    "wo": ("dim", "q_dim"),
    "ffn_norm": ("dim",),
    "w_gate": ("hidden_dim", "dim"),
    "w_up": ("hidden_dim", "dim"),
    "w_down": ("dim", "hidden_dim"),
}
SHAPES = LAYER_SHAPES | {
    "embedding": ("vocab_size", "dim"),
    "final_norm": ("dim",),
    "classifier": ("classifier_rows", "dim"),
}
# The tensors that only some architectures have.
OTHER_SHAPES: dict[str, tuple[str, ...]] = {
    "position_embedding": ("seq_len", "dim"),
    "type_embedding": ("n_types", "dim"),
    "router": ("n_experts", "dim"),
    "q_norm": ("head_dim",),
    "k_norm": ("head_dim",),
    "post_attn_norm": ("dim",),
    "post_ffn_norm": ("dim",),
    "embedding_norm": ("dim",),
    "pooler": ("dim", "dim"),
    "mlm_dense": ("dim", "dim"),
    "mlm_norm": ("dim",),
    "labels": ("n_labels", "dim"),
}
MATRICES = tuple(name for name, shape in SHAPES.items() if len(shape) == 2)  # may be quantized


def shape_of(name: str, config: Config) -> tuple[int, ...] | None:
    """The shape of the tensor `name` ("wq", "layers.2.wq", "wq.bias", "layers.0.experts.3.w_up");
    None if it is unknown.
    """
    base = name.removesuffix(".bias").rpartition(".")[2]
    numbers = SHAPES.get(base) or OTHER_SHAPES.get(base)
    if numbers is None:
        return None
    shape = tuple(int(getattr(config, number)) for number in numbers)
    return shape[:1] if name.endswith(".bias") else shape


def described(name: str) -> str:
    """The name in messages: "wq of layer 2"."""
    if not name.startswith("layers."):
        return name
    _, layer, base = name.split(".", 2)
    return f"{base} of layer {layer}"


class Weights(Mapping[str, Tensor]):
    """The tensors of a network by name: read-only.

    `weights["layers.2.wq"]` and `weights.layers[2].wq` are the same. A tied classifier is the same
    object as the embedding.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = dict(tensors)
        self._layers = tuple(SimpleNamespace(**layer) for layer in self._by_layer())

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_tensors"][name]
        except KeyError:
            raise AttributeError(f"there is no tensor {name!r}") from None

    def __repr__(self) -> str:
        return f"Weights({len(self._layers)} layers, {len(self)} tensors, {self.nbytes:,} bytes)"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._tensors,)

    def own(self) -> Weights:
        """The same values in separate arrays: views, or copies of arrays that are not aligned.

        If the caller changes the shape or type of one of the old arrays, these do not change.
        """
        made: dict[int, Tensor] = {}  # a shared tensor stays shared
        for tensor in self.values():
            made.setdefault(id(tensor), _own(tensor))
        return Weights({name: made[id(tensor)] for name, tensor in self.items()})

    @property
    def layers(self) -> tuple[Any, ...]:
        """The tensors of each block: `layers[2].wq`."""
        return self._layers

    @property
    def matrices(self) -> dict[str, Matrix]:
        """All tensors but norms and biases."""
        return {n: t for n, t in self._tensors.items() if isinstance(t, Matrix)}

    @property
    def arrays(self) -> list[np.ndarray]:
        """The arrays of all tensors; a shared one occurs once."""
        arrays = [a for t in self.values() for a in (t.arrays if hasattr(t, "arrays") else (t,))]
        return list({id(array): array for array in arrays}.values())

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors; a shared one counts once."""
        return sum(array.nbytes for array in self.arrays)

    def _by_layer(self) -> list[dict[str, Tensor]]:
        layers: list[dict[str, Tensor]] = []
        for name, tensor in self._tensors.items():
            if name.startswith("layers."):
                _, number, base = name.split(".", 2)
                while len(layers) <= int(number):
                    layers.append({})
                layers[int(number)][base.replace(".", "_")] = tensor
        return layers


def _own(tensor: Tensor) -> Tensor:
    if isinstance(tensor, np.ndarray):
        return tensor.view() if tensor.flags.aligned else tensor.copy()
    if isinstance(tensor, Blocks):
        return replace(tensor, data=tensor.data.view())
    if not isinstance(tensor, Dense | Int8):
        return tensor
    return type(tensor)(*(_own(array) for array in tensor.arrays))  # type: ignore[arg-type]


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor of any number format as float32: (d, n) or (n,); a view where it is so already."""
    if isinstance(tensor, Blocks):
        return tensor.dequantize()
    if isinstance(tensor, Int8):
        return tensor.rows(np.arange(tensor.shape[0]))
    if isinstance(tensor, Dense):
        return np.asarray(tensor.w, np.float32)
    if not isinstance(tensor, np.ndarray):
        raise ValueError(f"{tensor!r} has no values")
    return tensor


def check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the tensor is a matrix of shape (d, n), or a float32 vector (n,)."""
    if isinstance(tensor, Outline):
        if tensor.shape != shape:
            raise ValueError(f"{described(name)} has shape {tensor.shape}, expected {shape}")
        return
    matrix = isinstance(tensor, Matrix)
    if matrix != (len(shape) == 2) or not (matrix or isinstance(tensor, np.ndarray)):
        expected = "Dense or Int8 or Blocks" if len(shape) == 2 else "a float32 array"
        raise ValueError(
            f"{described(name)} is of type {type(tensor).__name__}, expected {expected}"
        )
    if tensor.shape != shape:
        raise ValueError(f"{described(name)} has shape {tensor.shape}, expected {shape}")
    if isinstance(tensor, np.ndarray):
        check_array(described(name), tensor, np.float32)
    else:
        tensor.check(described(name))


def check_array(name: str, array: np.ndarray, dtype: Any) -> None:
    """Raise ValueError for an array of another type, or with gaps."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} is {array.dtype} with strides {array.strides}, expected "
            f"np.ascontiguousarray of {np.dtype(dtype).name}"
        )
