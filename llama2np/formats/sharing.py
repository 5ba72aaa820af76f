"""The tensors of a rank: rows and columns of those in a file. model/shares.py says which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llama2np.formats.mapped import forget, in_huge_pages, in_small_pages, is_mapped
from llama2np.model.gguf_blocks import Blocks
from llama2np.model.shares import COLUMNS, ROWS, Parts, Share, base_of, by_rows
from llama2np.model.weights import Dense, Int8, Tensor, Weights


def share_of(weights: Weights, share: Share) -> Weights:
    """The tensors of a rank.

    Rows are views of the mapped file. Columns are copies, for which the kernels need no strides;
    the pages of the file that were read for them are given back. Rows of an array that is not
    mapped are copied too, so that the whole array can be freed. Where a rank has columns of wo or
    w_down, their biases are those of rank 0 only: the terms of all ranks are added. Only the rows
    of a rank are mapped in huge pages: these would reach into the rows of others.
    """
    found: dict[str, Tensor] = {}
    for tensor in weights.values():
        for array in tensor.arrays if not isinstance(tensor, np.ndarray) else (tensor,):
            in_small_pages(array)
    for name, tensor in weights.items():
        base, bias = base_of(name), name.endswith(".bias")
        if base in ROWS:
            found[name] = _rows(tensor, share.parts(ROWS[base]))
        elif by_rows(name, weights):
            found[name] = _rows(tensor, share.parts("dim"))
        elif base not in COLUMNS:
            found[name] = tensor
        elif not bias:
            found[name] = Dense(_across(tensor.w, share.parts(COLUMNS[base])))  # type: ignore[union-attr]
        elif not share.rank:
            found[name] = tensor
    return Weights(found)


def _rows(tensor: Tensor, parts: Parts) -> Tensor:
    if isinstance(tensor, np.ndarray):
        return _cut(tensor, parts)
    if isinstance(tensor, Dense):
        return Dense(_cut(tensor.w, parts))
    if isinstance(tensor, Int8):
        return Int8(_cut(tensor.q, parts), _cut(tensor.scales, parts))
    if isinstance(tensor, Blocks):
        return replace(tensor, data=_cut(tensor.data, parts))
    raise ValueError(f"{tensor!r} has no values")


def _cut(array: np.ndarray, parts: Parts) -> np.ndarray:
    """Rows of an array, or a part of a vector."""
    pieces = [array[first:end] for first, end in parts]
    if len(pieces) == 1 and is_mapped(array):
        in_huge_pages(pieces[0])
        return pieces[0]
    return np.concatenate(pieces)


def _across(array: np.ndarray, parts: Parts) -> np.ndarray:
    """Columns of an array: a copy."""
    copied = np.concatenate([array[:, first:end] for first, end in parts], axis=1)
    forget(array)
    return copied
