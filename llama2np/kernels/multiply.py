"""Matrices times one token, or a few of int8: rows shared among threads, for both kinds of matrix.

Here a matrix is a tuple of arrays, (w,) or (q, scales), and so is an input that is ready for it,
(x,) or (x_q, x_scales, x_sums), with a row for each token; of float32 there is one. Up to three matrices that read the same input go through in one
parallel region: waking the threads costs as much as a small matrix. A threaded kernel is one of its
own, because numba's disk cache cannot tell apart one body compiled with two sets of flags (#6845).
"""

import numpy as np
from numba import prange

from llama2np.kernels.dots import all_dots, dot
from llama2np.kernels.int8 import int8_rows, quantize
from llama2np.kernels.jit import exact

_PART = 16  # rows of int8, which are short, that a thread takes at a time


@exact
def float32_input(x, w):
    """x as multiply_float32 takes it. x: (1, n)."""
    return (x,)


@exact
def int8_input(x, w):
    """x, rounded to int8, as multiply_int8 takes it. x: (T, n) float32, w: (q, scales)."""
    count, groups = x.shape[0], w[1].shape[1]
    q, scales = np.empty(x.shape, np.int8), np.empty((count, groups), np.float32)
    sums = np.empty((count, groups), np.int32)
    quantize(x, q, scales, sums)
    return q, scales, sums


@exact
def _alone_float32(w, x, out):
    all_dots(w[0], x[0][0], out[0])


@exact(parallel=True)
def _share_float32(w, x, out):
    n, flat, x, out = w[0].shape[1], w[0].reshape(-1), x[0].reshape(-1), out.reshape(-1)
    for row in prange(w[0].shape[0]):
        dot(flat, np.int64(row), n, x, out, np.int64(row))


@exact(parallel=True)
def _share_some_float32(rows, a, b, c, x, out_a, out_b, out_c):
    """The first `rows` rows of three matrices, taken as one below the other."""
    n, x = a[0].shape[1], x[0].reshape(-1)
    out_a, out_b, out_c = out_a.reshape(-1), out_b.reshape(-1), out_c.reshape(-1)
    a_rows, b_rows = a[0].shape[0], b[0].shape[0]
    flat_a, flat_b, flat_c = a[0].reshape(-1), b[0].reshape(-1), c[0].reshape(-1)
    for row in prange(rows):
        i = np.int64(row)
        if i < a_rows:
            dot(flat_a, i, n, x, out_a, i)
        elif i < a_rows + b_rows:
            dot(flat_b, i - a_rows, n, x, out_b, i - a_rows)
        else:
            dot(flat_c, i - a_rows - b_rows, n, x, out_c, i - a_rows - b_rows)


@exact
def _alone_int8(w, x, out):
    int8_rows(w[0], w[1], 0, w[0].shape[0], x[0], x[1], x[2], out)


@exact(forceinline=True)
def _parts(rows):
    return -(-rows // _PART)


@exact(forceinline=True)
def _part_int8(part, w, x, out):
    start = part * _PART
    int8_rows(w[0], w[1], start, min(start + _PART, w[0].shape[0]), x[0], x[1], x[2], out)


@exact(parallel=True)
def _share_int8(w, x, out):
    for part in prange(_parts(w[0].shape[0])):
        _part_int8(np.int64(part), w, x, out)


@exact(parallel=True)
def _share_some_int8(rows, a, b, c, x, out_a, out_b, out_c):
    """The first `rows` rows of three matrices, taken as one below the other."""
    a_parts, b_parts = _parts(a[0].shape[0]), _parts(b[0].shape[0])
    c_rows = max(0, rows - a[0].shape[0] - b[0].shape[0])
    for part in prange(a_parts + b_parts + _parts(c_rows)):
        i = np.int64(part)
        if i < a_parts:
            _part_int8(i, a, x, out_a)
        elif i < a_parts + b_parts:
            _part_int8(i - a_parts, b, x, out_b)
        else:
            _part_int8(i - a_parts - b_parts, c, x, out_c)


def _multiply(alone, share, share_some):
    """The kernel below for one kind of matrix, from its loops: on one thread, on many."""

    @exact
    def multiply(count, a, b, c, x, out_a, out_b, out_c, shared):
        """Each out (T, d) = x times its matrix (d, n), for the first `count` of them.

        Threads share the rows if there are `shared` multiply-adds or more.
        """
        rows = a[0].shape[0]
        if count > 1:
            rows += b[0].shape[0]
        if count > 2:
            rows += c[0].shape[0]
        work = rows * x[0].size
        if work >= shared and count > 1:
            share_some(rows, a, b, c, x, out_a, out_b, out_c)
        elif work >= shared:
            share(a, x, out_a)
        else:
            alone(a, x, out_a)
            if count > 1:
                alone(b, x, out_b)
            if count > 2:
                alone(c, x, out_c)

    return multiply


multiply_float32 = _multiply(_alone_float32, _share_float32, _share_some_float32)
multiply_int8 = _multiply(_alone_int8, _share_int8, _share_some_int8)


@exact
def matmul(w, x, out, shared):
    """out = x @ w.T for one token. w: (d, n), x: (1, n), out: (1, d)."""
    w = (w,)
    multiply_float32(np.int64(1), w, w, w, (x,), out, out, out, shared)


@exact
def matmul_int8(q, scales, x, out, shared):
    """out = quantized(x) @ (q * scales).T for a few tokens. x: (T, n), out: (T, d) float32.

    q: (d, n) int8, scales: (d, n / group). Each token gets the bits that it would have alone.
    """
    w = (q, scales)
    multiply_int8(np.int64(1), w, w, w, int8_input(x, w), out, out, out, shared)
