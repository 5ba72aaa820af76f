"""The int8 loops: Q8_0 matrices, with runq.c's arithmetic.

A row is divided into groups of int8 values with one float32 scale each. Sums over a group are
exact, in int32; the float32 operations after them are runq.c's, in its order. So the result does
not depend on the CPU, on the blocks of a prompt, or on the number of threads. Group sizes 32 and 64
are the fastest.
"""

import math

import numpy as np
from numba import float32, int8, int32, int64

from llama2np.kernels.matmul.int8_dot import dot, products4
from llama2np.kernels.matmul.int8_isa import ISA
from llama2np.kernels.runtime.jit import exact, inner, separate
from llama2np.kernels.runtime.link import linked


@inner
def quantize(x, q, scales, sums):
    """Quantize x to q * scale, by groups. x: (T, n) float32, q: (T, n) int8.

    The scale maps a group's largest magnitude to 127; halves are rounded away from zero.
    scales: (T, n / group) float32; sums: (T, n / group) int32, the sum of q over each group.
    """
    tokens, groups = scales.shape
    group = x.shape[1] // groups
    x, q = x.reshape(tokens, groups, group), q.reshape(tokens, groups, group)
    # The bits of positive floats have the same order as the floats; nan is the largest.
    bits = x.view(np.int32)
    for t in range(tokens):
        for g in range(groups):
            largest = np.int32(0)
            for i in range(group):
                largest = np.int32(max(largest, np.int32(bits[t, g, i] & np.int32(0x7FFFFFFF))))
            magnitude = np.int32(largest)
            scale = magnitude.view(np.float32) / np.float32(127)
            scales[t, g] = scale
            usable = np.float32(0) < scale < np.float32(np.inf)  # false for nan, too
            for i in range(group):
                # in float64, because in float32 0.49999997 + 0.5 is 1
                ratio = np.float64(x[t, g, i] / scale) if usable else 0.0
                q[t, g, i] = np.int8(np.int32(ratio + math.copysign(0.5, ratio)))
            total = np.int32(0)
            for i in range(group):
                total = np.int32(total + np.int32(q[t, g, i]))
            sums[t, g] = total


@exact(forceinline=True)
def _product(q, at, x, to, group, scale, x_scale):
    """The product of one group, which begins at q[at] and x[to]."""
    return np.float32(dot(q, at, x, to, group)) * scale * x_scale


def _rows_of(size):
    """`int8_rows` for groups of `size` values; None means any size."""
    products = products4(ISA, size) if size else None

    @exact(forceinline=True)
    def rows(q, scales, n, group, d, x, x_scales, x_sums, count, out, start, end):
        groups, half = n // group, (end - start + 1) // 2
        fours = groups // 4 * 4 if size else 0
        # Two rows share the loads of x. They come from both halves of the range: see float32.few.
        for i in range(start, start + half):
            j = min(i + half, end - 1)  # the last row may be computed twice
            for t in range(count):  # the inner loop, so that a row of q is read from memory once
                a, b, s, u, r = i * n, j * n, i * groups, j * groups, t * groups
                one, two = np.float32(0), np.float32(0)
                if size is not None:
                    for g in range(0, fours, 4):
                        k, to = g * size, t * n + g * size
                        p = products(q, a + k, x, to, scales, s + g, x_scales, x_sums, r + g)
                        one = one + p[0] + p[1] + p[2] + p[3]
                        p = products(q, b + k, x, to, scales, u + g, x_scales, x_sums, r + g)
                        two = two + p[0] + p[1] + p[2] + p[3]
                for g in range(fours, groups):
                    k, to = g * group, t * n + g * group
                    one += _product(q, a + k, x, to, group, scales[s + g], x_scales[r + g])
                    two += _product(q, b + k, x, to, group, scales[u + g], x_scales[r + g])
                out[t * d + i], out[t * d + j] = one, two

    return rows


_rows_of_64, _rows_of_32, _rows_of_any = _rows_of(64), _rows_of(32), _rows_of(None)


@separate
def int8_rows(q, scales, n, group, d, x, x_scales, x_sums, count, out, start, end):
    """out[t, i] = row i of q * scales times x[t] * x_scales[t], for start <= i < end, t < count.

    q: (d, n) int8, scales: (d, n / group) float32, x: (count, n) int8, x_scales: (count, n / group)
    float32, x_sums: (count, n / group) int32, the sums of x over each group, out: (count, d)
    float32; all of them flat. There is a compiled form for each of the usual group sizes.
    """
    if group == 64:
        _rows_of_64(q, scales, n, group, d, x, x_scales, x_sums, count, out, start, end)
    elif group == 32:
        _rows_of_32(q, scales, n, group, d, x, x_scales, x_sums, count, out, start, end)
    else:
        _rows_of_any(q, scales, n, group, d, x, x_scales, x_sums, count, out, start, end)


_FLOATS, _INT8S, _INT32S = float32[::1], int8[::1], int32[::1]
_KINDS = (_INT8S, _FLOATS, *(int64,) * 3, _INT8S, _FLOATS, _INT32S, int64, _FLOATS, int64, int64)
call_int8_rows = linked(int8_rows, *_KINDS)


@inner
def dequantize_row(q, scales, out):
    """out = q * its scales. q: (n,) int8, scales: (n / group,), out: (n,)."""
    group = q.shape[0] // scales.shape[0]
    for g in range(scales.shape[0]):
        for i in range(g * group, (g + 1) * group):
            out[i] = np.float32(q[i]) * scales[g]
