"""The int8 loops: Q8_0 matrices, with runq.c's arithmetic.

A row is cut into groups of int8 values with one float32 scale each. Sums over a group are exact, in
int32; the float32 steps after them are runq.c's, in its order. So the result does not depend on the
CPU, on how a prompt is cut, or on the number of threads. Group sizes 32 and 64 are the fast ones.
"""

import math

import numpy as np

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
def _sized_rows(size, q, scales, start, end, x, x_scales, x_sums, out):
    n, groups = q.shape[1], scales.shape[1]
    done = groups // 4 * 4 if size == 32 or size == 64 else 0
    q, scales = q.reshape(-1), scales.reshape(-1)
    for i in range(start, end):
        at, total = i * groups, np.float32(0)
        for g in range(0, done, 4):
            w, v = i * n + g * size, g * size
            p = _products4(size, q, w, x, v, scales, at + g, x_scales, x_sums, g)
            total = total + p[0] + p[1] + p[2] + p[3]
        for g in range(done, groups):
            product = np.float32(dot(q, i * n + g * size, x, g * size, size))
            total += product * scales[at + g] * x_scales[g]
        out[i] = total


@exact
def int8_rows(q, scales, start, end, x, x_scales, x_sums, out):
    """out[i] = row i of q * scales times x * x_scales, for start <= i < end.

    q: (d, n) int8, scales: (d, n / group) float32, x: (n,) int8, x_scales: (n / group,) float32,
    x_sums: (n / group,) int32, the sums of x over each group, out: (d,) float32. Compiled apart for
    the usual group sizes.
    """
    size = q.shape[1] // scales.shape[1]
    if size == 64:
        _sized_rows(64, q, scales, start, end, x, x_scales, x_sums, out)
    elif size == 32:
        _sized_rows(32, q, scales, start, end, x, x_scales, x_sums, out)
    else:
        _sized_rows(size, q, scales, start, end, x, x_scales, x_sums, out)


@exact
def dequantize_rows(q, scales, rows, out):
    """out[t] = q[rows[t]] * its scales. q: (d, n) int8, scales: (d, n / group), out: (T, n)."""
    group = q.shape[1] // scales.shape[1]
    for t in range(rows.shape[0]):
        for g in range(scales.shape[1]):
            for i in range(g * group, (g + 1) * group):
                out[t, i] = np.float32(q[rows[t], i]) * scales[rows[t], g]
