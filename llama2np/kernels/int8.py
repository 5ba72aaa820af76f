"""The int8 loops: Q8_0 matrices, with runq.c's arithmetic.

A row is cut into groups of int8 values with one float32 scale each. Sums over a group are exact, in
int32; the float32 steps after them are runq.c's, in its order. So the result does not depend on the
CPU, on how a prompt is cut, or on the number of threads. Group sizes 32 and 64 are the fast ones.
"""

import math

import numpy as np
from numba import prange

from llama2np.kernels.int8_dot import FLAVOUR, dot, products4
from llama2np.kernels.jit import exact

_products4_32, _products4_64 = products4(FLAVOUR, 32), products4(FLAVOUR, 64)


@exact
def quantize(x, q, scales, sums):
    """Round x to q * scale, by groups. x: (T, n) float32, q: (T, n) int8, scales: (n / group, T).

    The scale takes a group's largest magnitude to 127; halves are rounded away from zero.
    sums: (n / group, T) int32, the sum of q over each group.
    """
    tokens, groups = x.shape[0], scales.shape[0]
    group = x.shape[1] // groups
    x, q = x.reshape(tokens, groups, group), q[:tokens].reshape(tokens, groups, group)
    bits = x.view(np.int32)  # of positive floats, they sort alike; nan is the largest
    for t in range(tokens):
        for g in range(groups):
            largest = np.int32(0)
            for i in range(group):
                largest = np.int32(max(largest, np.int32(bits[t, g, i] & np.int32(0x7FFFFFFF))))
            magnitude = np.int32(largest)
            scale = magnitude.view(np.float32) / np.float32(127)
            scales[g, t] = scale
            usable = np.float32(0) < scale < np.float32(np.inf)  # not nan either
            for i in range(group):
                # float64: in float32, 0.49999997 + 0.5 is 1
                ratio = np.float64(x[t, g, i] / scale) if usable else 0.0
                q[t, g, i] = np.int8(np.int32(ratio + math.copysign(0.5, ratio)))
            total = np.int32(0)
            for i in range(group):
                total = np.int32(total + np.int32(q[t, g, i]))
            sums[g, t] = total


@exact(forceinline=True)
def _products4(size, a, i, i_step, b, j, j_step, a_scales, s, s_step, b_scales, b_sums, r):
    if size == 64:
        return _products4_64(a, i, i_step, b, j, j_step, a_scales, s, s_step, b_scales, b_sums, r)
    return _products4_32(a, i, i_step, b, j, j_step, a_scales, s, s_step, b_scales, b_sums, r)


# In the functions below all arrays are flat. `groups` is the number of groups in a row, `size` that
# of values in a group; row i of q meets token t of `tokens`.


@exact
def _any_groups(first, groups, size, i, q, scales, t, tokens, x, x_scales, total):
    """Add the products of the groups from `first` on to `total`, one by one."""
    for g in range(first, groups):
        products = dot(q, (i * groups + g) * size, x, (t * groups + g) * size, size)
        total += np.float32(products) * scales[i * groups + g] * x_scales[g * tokens + t]
    return total


@exact(forceinline=True)
def _one_token(groups, size, i, q, scales, x, x_scales, x_sums):
    """Groups by fours: with one token, its scales stand side by side."""
    at, total, fours = i * groups, np.float32(0), groups // 4 * 4
    for g in range(0, fours, 4):
        w, v = (at + g) * size, g * size
        p = _products4(size, q, w, size, x, v, size, scales, at + g, 1, x_scales, x_sums, g)
        total = total + p[0] + p[1] + p[2] + p[3]
    return _any_groups(fours, groups, size, i, q, scales, 0, 1, x, x_scales, total)


@exact(forceinline=True)
def _four_tokens(groups, size, i, q, scales, t, tokens, x, x_scales, x_sums):
    """Tokens by fours: a group of q is loaded once for all of them."""
    at, n = i * groups, groups * size
    a = b = c = d = np.float32(0)
    for g in range(groups):
        w, v, r = (at + g) * size, t * n + g * size, g * tokens + t
        p = _products4(size, q, w, 0, x, v, n, scales, at + g, 0, x_scales, x_sums, r)
        a, b, c, d = a + p[0], b + p[1], c + p[2], d + p[3]
    return a, b, c, d


@exact(forceinline=True)
def _sized_row(groups, size, i, q, scales, tokens, x, x_scales, x_sums, out):
    """Row i of q times all tokens. `out` alone is not flat: (T, d)."""
    if size != 32 and size != 64:
        for t in range(tokens):
            zero = np.float32(0)
            out[t, i] = _any_groups(0, groups, size, i, q, scales, t, tokens, x, x_scales, zero)
    elif tokens == 1:
        out[0, i] = _one_token(groups, size, i, q, scales, x, x_scales, x_sums)
    else:
        for t in range(0, tokens, 4):
            four = _four_tokens(groups, size, i, q, scales, t, tokens, x, x_scales, x_sums)
            out[t, i], out[t + 1, i], out[t + 2, i], out[t + 3, i] = four


@exact(forceinline=True)
def _row(groups, size, i, q, scales, tokens, x, x_scales, x_sums, out):
    """`_sized_row`, compiled apart for the usual sizes."""
    if size == 64:
        _sized_row(groups, 64, i, q, scales, tokens, x, x_scales, x_sums, out)
    elif size == 32:
        _sized_row(groups, 32, i, q, scales, tokens, x, x_scales, x_sums, out)
    else:
        _sized_row(groups, size, i, q, scales, tokens, x, x_scales, x_sums, out)


@exact
def matmul_int8(q, scales, x, x_scales, x_sums, out):
    """out = (x * x_scales) @ (q * scales).T. q: (d, n), x: (T, n) int8, out: (T, d) float32.

    scales: (d, n / group), x_scales: (n / group, T) float32, x_sums: (n / group, T) int32, the sums
    of x over each group. T is 1 or a multiple of 4.
    """
    groups, tokens = x_scales.shape
    size, w, w_scales = x.shape[1] // groups, q.reshape(-1), scales.reshape(-1)
    v, v_scales, v_sums = x.reshape(-1), x_scales.reshape(-1), x_sums.reshape(-1)
    for i in range(q.shape[0]):
        _row(groups, size, i, w, w_scales, tokens, v, v_scales, v_sums, out)


@exact(parallel=True)
def matmul_int8_threaded(q, scales, x, x_scales, x_sums, out):
    """`matmul_int8` with the rows of q shared among threads."""
    groups, tokens = x_scales.shape
    size, w, w_scales = x.shape[1] // groups, q.reshape(-1), scales.reshape(-1)
    v, v_scales, v_sums = x.reshape(-1), x_scales.reshape(-1), x_sums.reshape(-1)
    for i in prange(q.shape[0]):
        _row(groups, size, np.int64(i), w, w_scales, tokens, v, v_scales, v_sums, out)


@exact
def dequantize_rows(q, scales, rows, out):
    """out[t] = q[rows[t]] * its scales. q: (d, n) int8, scales: (d, n / group), out: (T, n)."""
    group = q.shape[1] // scales.shape[1]
    for t in range(rows.shape[0]):
        for g in range(scales.shape[1]):
            for i in range(g * group, (g + 1) * group):
                out[t, i] = np.float32(q[rows[t], i]) * scales[rows[t], g]
