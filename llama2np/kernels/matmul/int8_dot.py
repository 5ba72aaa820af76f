"""Dot products of int8 groups for a small batch. Four groups are computed together, so that they
share the instructions that add up the lanes of a vector.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llama2np.kernels.matmul.int8_isa import ISAS
from llama2np.kernels.runtime.jit import SLICES, exact
from llama2np.kernels.runtime.vectors import AHEAD, F32, I8, I32, data_of, load, prefetch, same


def products4(isa, size):
    """A function that multiplies four adjacent pairs of groups of `size` values, 32 or 64.

    (a, i, b, j, a_scales, s, b_scales, b_sums, r) -> four float32. The k-th is the sum of a * b
    over the groups that begin at i + k * size and j + k * size, times a_scales[s + k], times
    b_scales[r + k]; b_sums[r + k] is the sum of the group of b. All arrays are flat: a, b int8,
    b_sums int32, the scales float32.
    """
    return _portable(size) if isa == "portable" else _wide(ISAS[isa], size)


@exact(forceinline=True)
def dot(a, i, b, j, size):
    """The sum of a[i + k] * b[j + k] over k < size. a, b: flat int8 arrays."""
    if SLICES:
        return np.int32((a[i : i + size].astype(np.int32) * b[j : j + size]).sum())
    total = np.int32(0)
    # Unsigned indices need no test for negative values, so the loop is vectorized.
    for k in range(np.uint64(size)):
        total = np.int32(total + np.int32(a[np.uint64(i) + k]) * np.int32(b[np.uint64(j) + k]))
    return total


def _portable(size):
    @exact(forceinline=True)
    def products4(a, i, b, j, a_scales, s, b_scales, b_sums, r):
        p0 = np.float32(dot(a, i, b, j, size))
        p1 = np.float32(dot(a, i + size, b, j + size, size))
        p2 = np.float32(dot(a, i + 2 * size, b, j + 2 * size, size))
        p3 = np.float32(dot(a, i + 3 * size, b, j + 3 * size, size))
        return (
            p0 * a_scales[s] * b_scales[r],
            p1 * a_scales[s + 1] * b_scales[r + 1],
            p2 * a_scales[s + 2] * b_scales[r + 2],
            p3 * a_scales[s + 3] * b_scales[r + 3],
        )

    return products4


def _wide(isa, size):
    lanes = min(isa.lanes, 8)
    int8s, integers = ir.VectorType(I8, 4 * lanes), ir.VectorType(I32, lanes)
    four_floats, four_integers = ir.VectorType(F32, 4), ir.VectorType(I32, 4)

    def sums_of(builder, a, i, b, j):
        sums = []
        for group in range(0, 4 * size, size):
            total = same(integers, 0)
            for offset in range(group, group + size, 4 * lanes):
                at = ir.Constant(i.type, offset)
                left = load(builder, a, builder.add(i, at), integers)
                left = builder.bitcast(isa.biased(builder, left), int8s)
                right = load(builder, b, builder.add(j, at), int8s)
                total = isa.instruction(builder, total, left, right)
            sums.append(total)
        return _add_lanes(builder, sums)

    def generate(context, builder, signature, arguments):
        arrays = data_of(context, builder, signature, arguments, 0, 2, 4, 6, 7)
        a, b, a_scales, b_scales, b_sums = arrays
        _, i, _, j, _, s, _, _, r = arguments
        for offset in range(AHEAD, AHEAD + 4 * size, 64):
            prefetch(builder, a, builder.add(i, ir.Constant(i.type, offset)))
        prefetch(builder, a_scales, builder.add(s, ir.Constant(s.type, AHEAD // size)))
        sums = sums_of(builder, a, i, b, j)
        if isa.bias:
            excess = load(builder, b_sums, r, four_integers)
            sums = builder.sub(sums, builder.mul(excess, same(four_integers, isa.bias)))
        floats = builder.sitofp(sums, four_floats)
        floats = builder.fmul(floats, load(builder, a_scales, s, four_floats))
        floats = builder.fmul(floats, load(builder, b_scales, r, four_floats))
        numbers = [builder.extract_element(floats, ir.Constant(I32, k)) for k in range(4)]
        return context.make_tuple(builder, signature.return_type, numbers)

    @intrinsic
    def products4(_context, a, i, b, j, a_scales, s, b_scales, b_sums, r):
        at = types.intp
        result = types.UniTuple(types.float32, 4)
        return result(a, at, b, at, a_scales, at, b_scales, b_sums, at), generate

    return products4


def _add_lanes(builder, sums):
    """A vector of four lanes from four vectors: lane k is the sum of the lanes of sums[k]."""

    def pick(a, b, *lanes):
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    def in_four(total):
        while (half := total.type.count // 2) >= 4:
            low, high = range(half), range(half, 2 * half)
            total = builder.add(pick(total, total, *low), pick(total, total, *high))
        return total

    # Interleave the vectors: adding adjacent lanes is a single instruction, but a slow one.
    a, b, c, d = map(in_four, sums)
    left = builder.add(pick(a, b, 0, 4, 1, 5), pick(a, b, 2, 6, 3, 7))  # a b a b
    right = builder.add(pick(c, d, 0, 4, 1, 5), pick(c, d, 2, 6, 3, 7))
    return builder.add(pick(left, right, 0, 1, 4, 5), pick(left, right, 2, 3, 6, 7))
