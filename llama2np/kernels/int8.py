"""The int8 loops: Q8_0 matrices, with runq.c's arithmetic.

A row is cut into groups of int8 values with one float32 scale each. Sums over a group are exact, in
int32; the float32 steps after them are runq.c's, in its order. Group sizes of 32, 64 and multiples
of 32 are the fast ones.
"""

import math

import numpy as np
from numba import prange

from llama2np.kernels.int8_dot import dot32, dot64
from llama2np.kernels.jit import exact


@exact
def quantize(x, q, scales):
    """Round x to q * scale, by groups. x: (T, n) float32, q: (T, n) int8, scales: (T, n / group).

    The scale takes a group's largest magnitude to 127; halves are rounded away from zero.
    """
    group = x.shape[1] // scales.shape[1]
    bits = x.view(np.int32)  # of positive floats, they sort alike; nan is the largest
    for t in range(x.shape[0]):
        for g in range(scales.shape[1]):
            largest = np.int32(0)
            for i in range(g * group, (g + 1) * group):
                largest = max(largest, np.int32(bits[t, i] & 0x7FFFFFFF))
            magnitude = np.int32(largest)
            scale = magnitude.view(np.float32) / np.float32(127)
            scales[t, g] = scale
            divisor = scale if scale != 0 else np.float32(1)
            for i in range(g * group, (g + 1) * group):
                # float64: in float32, 0.49999997 + 0.5 is 1
                ratio = np.float64(x[t, i] / divisor)
                q[t, i] = np.int8(ratio + math.copysign(0.5, ratio))


@exact
def _group_dot(a, b, start, group):
    """The sum of a[i] * b[i] for `group` values from `start` on. a, b: (n,) int8."""
    if group == 64:
        return dot64(a, b, start)
    end, total = start + group, np.int32(0)
    while end - start >= 32:
        total = np.int32(total + dot32(a, b, start))
        start += 32
    for i in range(np.uint64(start), np.uint64(end)):
        total = np.int32(total + np.int32(a[i]) * np.int32(b[i]))
    return total


@exact
def _row_dot(q, scales, x, x_scales):
    """The product of two quantized rows. q, x: (n,) int8, scales, x_scales: (n / group,)."""
    group = q.shape[0] // scales.shape[0]
    total = np.float32(0)
    for g in range(scales.shape[0]):
        total += np.float32(_group_dot(q, x, g * group, group)) * scales[g] * x_scales[g]
    return total


@exact
def matmul_int8(q, scales, x, x_scales, out):
    """out = (x * x_scales) @ (q * scales).T. q: (d, n), x: (T, n) int8, out: (T, d) float32.

    scales: (d, n / group), x_scales: (T, n / group) float32.
    """
    for i in range(q.shape[0]):
        for t in range(x.shape[0]):
            out[t, i] = _row_dot(q[i], scales[i], x[t], x_scales[t])


@exact(parallel=True)
def matmul_int8_threaded(q, scales, x, x_scales, out):
    """`matmul_int8` with the rows of q shared among threads."""
    for i in prange(q.shape[0]):
        for t in range(x.shape[0]):
            out[t, i] = _row_dot(q[i], scales[i], x[t], x_scales[t])


@exact
def dequantize_rows(q, scales, rows, out):
    """out[t] = q[rows[t]] * its scales. q: (d, n) int8, scales: (d, n / group), out: (T, n)."""
    group = q.shape[1] // scales.shape[1]
    for t in range(rows.shape[0]):
        for g in range(scales.shape[1]):
            for i in range(g * group, (g + 1) * group):
                out[t, i] = np.float32(q[rows[t], i]) * scales[rows[t], g]
