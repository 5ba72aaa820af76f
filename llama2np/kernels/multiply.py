"""Matrices times one token, or a few of int8: rows shared among threads, for both kinds of matrix.

Here a matrix is a tuple of arrays, (w,) or (q, scales), and so is an input that is ready for it,
(x,) or (x_q, x_scales, x_sums), with a row for each token; of float32 there is one. Up to three
matrices that read the same input go through in one parallel region: waking the threads costs as
much as a small matrix. A threaded kernel is one of its own, because numba's disk cache cannot tell
apart one body compiled with two sets of flags (#6845).
"""

import numpy as np
from numba import float32, int8, int64, prange, types

from llama2np.kernels.calls import called
from llama2np.kernels.dots import all_dots, dot
from llama2np.kernels.int8 import call_int8_rows, quantize
from llama2np.kernels.jit import exact, inner

_PART = 16  # rows of int8, which are short, that a thread takes at a time


@inner
def _as_it_is(x, w):
    """The input of a float32 matrix. x: (1, n)."""
    return (x,)


@inner
def _quantized(x, w):
    """The input of an int8 matrix (q, scales): x, rounded to int8. x: (T, n) float32."""
    count, groups = x.shape[0], w[1].shape[1]
    q, scales = np.empty(x.shape, np.int8), np.empty((count, groups), np.float32)
    sums = np.empty((count, groups), np.int32)
    quantize(x, q, scales, sums)
    return q, scales, sums


@inner
def _alone_float32(w, x, out):
    all_dots(w[0], x[0][0], out[0])


@inner(parallel=True)
def _share_float32(rows, a, b, c, x, out_a, out_b, out_c):
    """The first `rows` rows of three matrices, taken as one below the other."""
    n, x = a[0].shape[1], x[0].reshape(-1)
    a_rows, b_rows = a[0].shape[0], b[0].shape[0]
    a, b, c = a[0].reshape(-1), b[0].reshape(-1), c[0].reshape(-1)
    out_a, out_b, out_c = out_a.reshape(-1), out_b.reshape(-1), out_c.reshape(-1)
    for row in prange(rows):
        i, w, out = np.int64(row), a, out_a
        if i >= a_rows + b_rows:
            i, w, out = i - a_rows - b_rows, c, out_c
        elif i >= a_rows:
            i, w, out = i - a_rows, b, out_b
        dot(w, i, n, x, out, i)


@inner
def _alone_int8(w, x, out):
    call_int8_rows(w[0], w[1], 0, w[0].shape[0], x[0], x[1], x[2], out)


@inner(forceinline=True)
def _parts(rows):
    return -(-rows // _PART)


@inner(forceinline=True)
def _part_int8(part, w, x, out):
    start = part * _PART
    call_int8_rows(w[0], w[1], start, min(start + _PART, w[0].shape[0]), x[0], x[1], x[2], out)


@inner(parallel=True)
def _share_int8(rows, a, b, c, x, out_a, out_b, out_c):
    """The first `rows` rows of three matrices, taken as one below the other."""
    a_parts, b_parts = _parts(a[0].shape[0]), _parts(b[0].shape[0])
    if rows <= a[0].shape[0]:
        b_parts = 0
    c_rows = max(0, rows - a[0].shape[0] - b[0].shape[0])
    for part in prange(a_parts + b_parts + _parts(c_rows)):
        i = np.int64(part)
        if i < a_parts:
            _part_int8(i, a, x, out_a)
        elif i < a_parts + b_parts:
            _part_int8(i - a_parts, b, x, out_b)
        else:
            _part_int8(i - a_parts - b_parts, c, x, out_c)


def _multiply(prepared, alone, share):
    """The kernel below for one kind of matrix, from what it makes of x, and its loops.

    `alone` runs on one thread, `share` on many.
    """

    @exact
    def multiply(count, a, b, c, x, out_a, out_b, out_c, shared):
        """Each out (T, d) = x (T, n) times its matrix (d, n), for the first `count` of them.

        Threads share the rows if there are `shared` multiply-adds or more.
        """
        rows = a[0].shape[0]
        if count > 1:
            rows += b[0].shape[0]
        if count > 2:
            rows += c[0].shape[0]
        ready = prepared(x, a)
        if rows * x.size >= shared:
            share(rows, a, b, c, ready, out_a, out_b, out_c)
        else:
            alone(a, ready, out_a)
            if count > 1:
                alone(b, ready, out_b)
            if count > 2:
                alone(c, ready, out_c)

    return multiply


multiply_float32 = _multiply(_as_it_is, _alone_float32, _share_float32)
multiply_int8 = _multiply(_quantized, _alone_int8, _share_int8)

_FLOATS, _INT8S = float32[:, ::1], int8[:, ::1]


def _called(multiply, *arrays):
    """multiply, for others to call. arrays: the types of those that make up a matrix."""
    matrix, outs = types.BaseTuple.from_types(arrays), (_FLOATS, _FLOATS, _FLOATS)
    return called(multiply, int64, matrix, matrix, matrix, _FLOATS, *outs, int64)


call_multiply_float32 = _called(multiply_float32, _FLOATS)
call_multiply_int8 = _called(multiply_int8, _INT8S, _FLOATS)


@exact
def matmul(w, x, out, shared):
    """out = x @ w.T for one token. w: (d, n), x: (1, n), out: (1, d)."""
    w = (w,)
    call_multiply_float32(1, w, w, w, x, out, out, out, shared)


@exact
def matmul_int8(q, scales, x, out, shared):
    """out = quantized(x) @ (q * scales).T for a few tokens. x: (T, n), out: (T, d) float32.

    q: (d, n) int8, scales: (d, n / group). Each token gets the bits that it would have alone.
    """
    w = (q, scales)
    call_multiply_int8(1, w, w, w, x, out, out, out, shared)
