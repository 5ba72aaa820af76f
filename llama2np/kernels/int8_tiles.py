"""Q8_0 matrix products for many tokens, in tiles as those of tiles.py, with runq.c's arithmetic.

Four int8 of a row, spread over a vector, meet the same four of all the tokens of a tile in one
instruction that sums their products. What a group adds to a sum is what int8.py adds, in the same
order: the results are equal to the last bit.
"""

from functools import cache

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.int8_flavours import FLAVOUR, FLAVOURS
from llama2np.kernels.jit import exact
from llama2np.kernels.tiles import LANES, WIDE, from_tile
from llama2np.kernels.vectors import (
    F32,
    I8,
    I32,
    cells,
    data_of,
    load,
    same,
    spread,
    stepped,
    store,
)

INT8_ROWS = 4  # of q in a tile
INT8_FEW = 6  # tokens, up to which multiply.py is faster than tiles


def _group(flavour, rows, width):
    """A function that adds what one group of some rows and of a tile's tokens is worth to sums.

    (q, at, row_step, fours, scales, s, s_step, x, here, x_scales, x_sums, side, sums): the group of
    row r, 4 * fours values, begins at q[at + r * row_step] and has scales[s + r * s_step]; that of
    the tile begins at x[here], in words of four int8, and has `width` x_scales and x_sums from
    `side` on. All arrays are flat; sums is (rows, width).
    """
    lanes = flavour.lanes
    integers, floats = ir.VectorType(I32, lanes), ir.VectorType(F32, lanes)
    int8s, vectors = ir.VectorType(I8, 4 * lanes), range(width // lanes)

    def add_products(builder, q, at, row_step, fours, x, here, totals):
        with cgutils.for_range(builder, fours) as loop:
            at = stepped(builder, at, loop.index, 4)
            here = stepped(builder, here, loop.index, width)
            tokens = [load(builder, x, stepped(builder, here, lanes, v), int8s) for v in vectors]
            for r in range(rows):
                four = builder.gep(q, [stepped(builder, at, row_step, r)])
                four = builder.load(builder.bitcast(four, I32.as_pointer()), align=1)
                weights = spread(builder, flavour.biased(builder, four), integers)
                weights = builder.bitcast(weights, int8s)
                for v in vectors:
                    total = flavour.instruction(
                        builder, builder.load(totals[r, v]), weights, tokens[v]
                    )
                    builder.store(total, totals[r, v])

    def generate(context, builder, signature, arguments):
        q, scales, x, x_scales, x_sums, sums = data_of(
            context, builder, signature, arguments, 0, 4, 7, 9, 10, 12
        )
        _, at, row_step, fours, _, s, s_step, _, here, _, _, side, _ = arguments
        totals = cells(builder, same(integers, 0), rows, len(vectors))
        for (_, v), total in totals.items():
            excess = load(builder, x_sums, stepped(builder, side, lanes, v), integers)
            builder.store(builder.mul(excess, same(integers, -flavour.bias)), total)
        add_products(builder, q, at, row_step, fours, x, here, totals)
        for (r, v), total in totals.items():
            scale = builder.load(builder.gep(scales, [stepped(builder, s, s_step, r)]))
            value = builder.sitofp(builder.load(total), floats)
            value = builder.fmul(value, spread(builder, scale, floats))
            token_scales = load(builder, x_scales, stepped(builder, side, lanes, v), floats)
            place = ir.Constant(at.type, r * width + v * lanes)
            before = load(builder, sums, place, floats)
            value = builder.fadd(before, builder.fmul(value, token_scales))
            store(builder, value, sums, place)
        return context.get_dummy_value()

    @intrinsic
    def group(
        _context, q, at, row_step, fours, scales, s, s_step, x, here, x_scales, x_sums, side, sums
    ):
        i = types.intp
        kinds = (q, i, i, i, scales, i, i, x, i, x_scales, x_sums, i, sums)
        return types.void(*kinds), generate

    return group


@cache  # a wide tile may be as narrow as a narrow one
def _tile(flavour, rows, width):
    """A function (q, i, n, size, scales, x, x_scales, x_sums, t, sums).

    sums (rows, width) = rows i ... of q times the tile of the tokens from t on. All arrays are
    flat; a row of q has n values in groups of `size`.
    """
    add_group = _group(FLAVOURS[flavour], rows, width)

    @exact(forceinline=True)
    def tile(q, i, n, size, scales, x, x_scales, x_sums, t, sums):
        groups, fours = n // size, size // 4
        sums[:] = 0
        for g in range(groups):
            at, s, side = i * n + g * size, i * groups + g, t * groups + g * width
            here = side * fours
            add_group(q, at, n, fours, scales, s, groups, x, here, x_scales, x_sums, side, sums)

    return tile


def matmul_by_tiles(flavour):
    """The kernel below for one flavour; None for the portable one."""
    if flavour not in FLAVOURS:
        return None
    wide_tile, narrow_tile = _tile(flavour, INT8_ROWS, WIDE), _tile(flavour, INT8_ROWS, LANES)

    @exact(parallel=True)
    def matmul_int8_tiles(q, scales, x, x_scales, x_sums, out):
        """out = (x * x_scales) @ (q * scales).T, with all of x as `to_tiles` lays it out.

        q: (d, n), d >= INT8_ROWS, scales: (d, n / group), x: (T padded, n / 4) int32, words of four
        int8, x_scales, x_sums: (T padded, n / group), out: (T, d). The group size divides by 4.
        """
        (d, n), padded = q.shape, x.shape[0]
        size, wide = n // scales.shape[1], padded // WIDE * WIDE
        w, w_scales, v = q.reshape(-1), scales.reshape(-1), x.reshape(-1)
        v_scales, v_sums = x_scales.reshape(-1), x_sums.reshape(-1)
        for block in prange(-(-d // INT8_ROWS)):
            i = min(np.int64(block) * INT8_ROWS, d - INT8_ROWS)  # the last may repeat some rows
            sums = np.empty(INT8_ROWS * WIDE, np.float32)
            for t in range(0, wide, WIDE):
                wide_tile(w, i, n, size, w_scales, v, v_scales, v_sums, t, sums)
                from_tile(sums, INT8_ROWS, WIDE, i, t, out)
            for t in range(wide, padded, LANES):
                narrow_tile(w, i, n, size, w_scales, v, v_scales, v_sums, t, sums)
                from_tile(sums, INT8_ROWS, LANES, i, t, out)

    return matmul_int8_tiles


matmul_int8_tiles = matmul_by_tiles(FLAVOUR)
