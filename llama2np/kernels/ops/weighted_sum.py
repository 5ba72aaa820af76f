"""SIMD weighted sums: each lane of a vector is a separate float32 sum, added in order.

A compiler may not reorder the additions of one sum, so it cannot vectorize a single sum. Many sums
can be computed in parallel lanes. LLVM does not find this in a loop over memory, so the vector
instructions are explicit.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.runtime.jit import PLAIN, SLICES, inner
from llama2np.kernels.runtime.vectors import F32, cells, data_of, load, same, spread, stepped, store


def _side_by_side(lanes, vectors=1):
    """A function (weights, w, count, rows, r, step, out, o, on) that fills out[o : o + width].

    width is lanes * vectors. With `on`, it adds to the values of out. LLVM keeps vectors of 8 and
    16 in registers, but not one of 48.
    """
    vector = ir.VectorType(F32, lanes)

    def generate(context, builder, signature, arguments):
        weights, rows, out = data_of(context, builder, signature, arguments, 0, 3, 6)
        _, w, count, _, r, step, _, o, on = arguments
        sums = cells(builder, same(vector, 0.0), 1, vectors)
        with builder.if_then(on):
            for (_, v), total in sums.items():
                builder.store(load(builder, out, stepped(builder, o, lanes, v), vector), total)
        with cgutils.for_range(builder, count) as loop:
            weight = builder.load(builder.gep(weights, [builder.add(w, loop.index)]))
            weight = spread(builder, weight, vector)
            here = builder.add(r, builder.mul(loop.index, step))
            for (_, v), total in sums.items():
                row = load(builder, rows, stepped(builder, here, lanes, v), vector)
                row = builder.fmul(weight, row)
                builder.store(builder.fadd(builder.load(total), row), total)
        for (_, v), total in sums.items():
            store(builder, builder.load(total), out, stepped(builder, o, lanes, v))
        return context.get_dummy_value()

    @intrinsic
    def side_by_side(_context, weights, w, count, rows, r, step, out, o, on):
        at = types.intp
        return types.void(weights, at, at, rows, at, at, out, at, types.boolean), generate

    return side_by_side


_sums64, _sums48, _sums32 = _side_by_side(16, 4), _side_by_side(16, 3), _side_by_side(16, 2)
_sums16, _sums8 = _side_by_side(16), _side_by_side(8)


@inner(forceinline=True)
def weighted_sum(weights, w, count, rows, r, step, out, o, width, on):
    """out[o + i] = the sum of weights[w + k] * rows[r + k * step + i] for k = 0, 1 ... count - 1.

    This is for i < width; each sum is added in that order. With `on`, the sums start with the
    values of out. All arrays are flat float32.
    """
    done = 0
    if SLICES:
        if not on:
            out[o : o + width] = 0
        for k in range(count):
            out[o : o + width] += weights[w + k] * rows[r + k * step : r + k * step + width]
        done = width
    elif not PLAIN:
        while width - done >= 64:
            _sums64(weights, w, count, rows, r + done, step, out, o + done, on)
            done += 64
        # The rest in as few passes over the rows as possible, since each pass reads all of them.
        if width - done >= 48:
            _sums48(weights, w, count, rows, r + done, step, out, o + done, on)
            done += 48
        if width - done >= 32:
            _sums32(weights, w, count, rows, r + done, step, out, o + done, on)
            done += 32
        if width - done >= 16:
            _sums16(weights, w, count, rows, r + done, step, out, o + done, on)
            done += 16
        if width - done >= 8:
            _sums8(weights, w, count, rows, r + done, step, out, o + done, on)
            done += 8
    for i in range(done, width):
        total = out[o + i] if on else np.float32(0)
        for k in range(count):
            total += weights[w + k] * rows[r + k * step + i]
        out[o + i] = total
