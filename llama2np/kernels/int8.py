"""The int8 loops: Q8_0 matrices, with runq.c's arithmetic.

A row is cut into groups of int8 values with one float32 scale each. Sums over a group are exact, in
int32; the float32 steps after them are runq.c's, in its order. So the result does not depend on the
CPU, on how a prompt is cut, or on the number of threads. Group sizes 32 and 64 are the fast ones.
"""

import math

import numpy as np
from numba import prange

from llama2np.kernels.int8_dot import dot, products4
from llama2np.kernels.int8_flavours import FLAVOUR
from llama2np.kernels.jit import exact

_products4_32, _products4_64 = products4(FLAVOUR, 32), products4(FLAVOUR, 64)


@exact
def quantize(x, q, scales, sums):
    """Round x to q * scale, by groups. x: (T, n) float32, q: (T, n) int8, scales: (T, n / group).

    The scale takes a group's largest magnitude to 127; halves are rounded away from zero.
    sums: (T, n / group) int32, the sum of q over each group.
    """
    tokens, groups = scales.shape
    group = x.shape[1] // groups
    x, q = x.reshape(tokens, groups, group), q.reshape(tokens, groups, group)
    bits = x.view(np.int32)  # of positive floats, they sort alike; nan is the largest
    for t in range(tokens):
        for g in range(groups):
            largest = np.int32(0)
            for i in range(group):
                largest = np.int32(max(largest, np.int32(bits[t, g, i] & np.int32(0x7FFFFFFF))))
            magnitude = np.int32(largest)
            scale = magnitude.view(np.float32) / np.float32(127)
            scales[t, g] = scale
            usable = np.float32(0) < scale < np.float32(np.inf)  # not nan either
            for i in range(group):
                # float64: in float32, 0.49999997 + 0.5 is 1
                ratio = np.float64(x[t, g, i] / scale) if usable else 0.0
                q[t, g, i] = np.int8(np.int32(ratio + math.copysign(0.5, ratio)))
            total = np.int32(0)
            for i in range(group):
                total = np.int32(total + np.int32(q[t, g, i]))
            sums[t, g] = total


@exact(forceinline=True)
def _products4(size, a, i, b, j, a_scales, s, b_scales, b_sums, r):
    if size == 64:
        return _products4_64(a, i, b, j, a_scales, s, b_scales, b_sums, r)
    return _products4_32(a, i, b, j, a_scales, s, b_scales, b_sums, r)


@exact(forceinline=True)
def _sized_row(size, groups, i, q, scales, t, x, x_scales, x_sums):
    """Row i of q times token t. All arrays are flat; a row has `groups` groups of `size` values."""
    at, own, total, done = i * groups, t * groups, np.float32(0), 0
    if size == 32 or size == 64:
        done = groups // 4 * 4
        for g in range(0, done, 4):
            w, v = (at + g) * size, (own + g) * size
            p = _products4(size, q, w, x, v, scales, at + g, x_scales, x_sums, own + g)
            total = total + p[0] + p[1] + p[2] + p[3]
    for g in range(done, groups):
        product = np.float32(dot(q, (at + g) * size, x, (own + g) * size, size))
        total += product * scales[at + g] * x_scales[own + g]
    return total


@exact(forceinline=True)
def _row(size, groups, i, q, scales, t, x, x_scales, x_sums):
    """`_sized_row`, compiled apart for the usual sizes."""
    if size == 64:
        return _sized_row(64, groups, i, q, scales, t, x, x_scales, x_sums)
    if size == 32:
        return _sized_row(32, groups, i, q, scales, t, x, x_scales, x_sums)
    return _sized_row(size, groups, i, q, scales, t, x, x_scales, x_sums)


@exact
def matmul_int8(q, scales, x, x_scales, x_sums, out):
    """out = (x * x_scales) @ (q * scales).T. q: (d, n), x: (T, n) int8, out: (T, d) float32.

    scales: (d, n / group), x_scales: (T, n / group) float32, x_sums: (T, n / group) int32, the sums
    of x over each group.
    """
    groups, size = x_scales.shape[1], x.shape[1] // x_scales.shape[1]
    w, w_scales = q.reshape(-1), scales.reshape(-1)
    v, v_scales, v_sums = x.reshape(-1), x_scales.reshape(-1), x_sums.reshape(-1)
    for i in range(q.shape[0]):
        for t in range(x.shape[0]):
            out[t, i] = _row(size, groups, i, w, w_scales, t, v, v_scales, v_sums)


@exact(parallel=True)
def matmul_int8_threaded(q, scales, x, x_scales, x_sums, out):
    """`matmul_int8` with the rows of q shared among threads."""
    groups, size = x_scales.shape[1], x.shape[1] // x_scales.shape[1]
    w, w_scales = q.reshape(-1), scales.reshape(-1)
    v, v_scales, v_sums = x.reshape(-1), x_scales.reshape(-1), x_sums.reshape(-1)
    for i in prange(q.shape[0]):
        for t in range(x.shape[0]):
            out[t, i] = _row(size, groups, np.int64(i), w, w_scales, t, v, v_scales, v_sums)


@exact
def dequantize_rows(q, scales, rows, out):
    """out[t] = q[rows[t]] * its scales. q: (d, n) int8, scales: (d, n / group), out: (T, n)."""
    group = q.shape[1] // scales.shape[1]
    for t in range(rows.shape[0]):
        for g in range(scales.shape[1]):
            for i in range(g * group, (g + 1) * group):
                out[t, i] = np.float32(q[rows[t], i]) * scales[rows[t], g]
