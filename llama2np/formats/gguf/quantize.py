"""Quantize to GGUF's formats: the inverse of model/gguf_blocks.py. quantize_k.py has Q4_K and Q6_K.

The bytes are those of the package `gguf` (quants.py), which are those of llama.cpp's reference
functions (quantize_row_q4_0_ref and so on in ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llama2np.formats.dtypes import bfloat16
from llama2np.formats.gguf.quantize_k import q4_k, q6_k
from llama2np.model.gguf_blocks import FORMATS


def quantize(values: np.ndarray, kind: str) -> np.ndarray:
    """values (rows, n) float32 -> (rows, bytes of a row) uint8, in a format of QUANTIZED or FLOATS.

    Raises ValueError for values that the format cannot represent: nan and inf in blocks, and
    numbers beyond its range.
    """
    if kind in FLOATS:
        return _floats(values, kind)
    if not np.isfinite(values).all():
        raise ValueError(f"has values that are nan or inf, which {kind} cannot represent")
    blocks = values.reshape(-1, FORMATS[kind].values)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        made = QUANTIZED[kind](blocks)
        if not np.isfinite(made[:, _SCALES[kind]].view("<f2")).all():
            raise ValueError(f"has values beyond the range of {kind}: use F32")
    return made.reshape(len(values), -1)


def _floats(values: np.ndarray, kind: str) -> np.ndarray:
    dtype = FLOATS[kind]()
    with np.errstate(over="ignore", invalid="ignore"):
        made = values.astype(dtype)
        if np.isinf(made).any() and not np.isinf(values).any():
            raise ValueError(f"has values beyond the range of {kind}: use F32")
    return np.ascontiguousarray(made).view(np.uint8)


def _inverse(d: np.ndarray) -> np.ndarray:
    """1 / d; 0 where that is not a float32. Such a block becomes zeros in float16 in any case."""
    inverse = np.float32(1) / d
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2").view(np.uint8)


def _nibbles(integers: np.ndarray) -> np.ndarray:
    """(blocks, 32) uint8 -> (blocks, 16): the lower 4 bits of value i, and of value i + 16."""
    return integers[:, :16] & 15 | integers[:, 16:] << 4


def _fifth_bits(integers: np.ndarray) -> np.ndarray:
    return np.packbits(integers >> 4, axis=-1, bitorder="little")


def _symmetric(blocks: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """d, and integers 0 ... levels - 1: the value of largest magnitude becomes the lowest one."""
    at = np.abs(blocks).argmax(axis=-1, keepdims=True)
    d = np.take_along_axis(blocks, at, axis=-1) / np.float32(-levels // 2)
    integers = np.trunc(blocks * _inverse(d) + np.float32(levels // 2 + 0.5))
    return d, integers.astype(np.uint8).clip(0, levels - 1)


def _from_smallest(blocks: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """d, the smallest value, and integers 0 ... levels - 1 between that and the largest."""
    smallest = blocks.min(axis=-1, keepdims=True)
    d = (blocks.max(axis=-1, keepdims=True) - smallest) / np.float32(levels - 1)
    integers = np.trunc((blocks - smallest) * _inverse(d) + np.float32(0.5))
    return d, smallest, integers.astype(np.uint8).clip(0, levels - 1)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    d, integers = _symmetric(blocks, 16)
    return np.concatenate([_half(d), _nibbles(integers)], axis=-1)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    d, smallest, integers = _from_smallest(blocks, 16)
    return np.concatenate([_half(d), _half(smallest), _nibbles(integers)], axis=-1)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    d, integers = _symmetric(blocks, 32)
    return np.concatenate([_half(d), _fifth_bits(integers), _nibbles(integers)], axis=-1)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    d, smallest, integers = _from_smallest(blocks, 32)
    parts = [_half(d), _half(smallest), _fifth_bits(integers), _nibbles(integers)]
    return np.concatenate(parts, axis=-1)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    d = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    ratio = blocks * _inverse(d)
    whole = np.floor(np.abs(ratio))
    rounded = whole + (np.abs(ratio) - whole >= 0.5)  # halves away from zero
    integers = np.copysign(rounded, ratio).astype(np.int8).view(np.uint8)
    return np.concatenate([_half(d), integers], axis=-1)


QUANTIZED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Q8_0": _q8_0,
    "Q6_K": q6_k,
    "Q5_1": _q5_1,
    "Q5_0": _q5_0,
    "Q4_K": q4_k,
    "Q4_1": _q4_1,
    "Q4_0": _q4_0,
}
# Where the float16 numbers of a block are.
_SCALES = {"Q8_0": slice(0, 2), "Q5_0": slice(0, 2), "Q4_0": slice(0, 2)}
_SCALES |= {"Q5_1": slice(0, 4), "Q4_1": slice(0, 4), "Q4_K": slice(0, 4), "Q6_K": slice(208, 210)}
FLOATS: dict[str, Callable[[], np.dtype]] = {
    "F32": lambda: np.dtype("<f4"),
    "F16": lambda: np.dtype("<f2"),
    "BF16": bfloat16,
}
