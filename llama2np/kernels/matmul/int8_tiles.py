"""Q8_0 matrix products for many tokens, in register tiles, with runq.c's arithmetic.

Here the lanes of a tile are tokens. Four int8 of a row of the matrix, broadcast to a vector, are
multiplied by the same four of all tokens of the tile, in one instruction that sums the products:

                       token 0         token 1         token 2    ...
                     x[0][k:k+4]     x[1][k:k+4]     x[2][k:k+4]        one load
    q[i][k:k+4]  *   sum i,0 +=      sum i,1 +=      sum i,2 +=         one word, broadcast

The groups are added to an output as in int8.py and in the same order, so the results are equal to
the last bit. The tokens are packed for this first (`lay`).
"""

from functools import cache

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.matmul.int8_isa import ISA, ISAS
from llama2np.kernels.runtime.jit import cpu_has, inner
from llama2np.kernels.runtime.vectors import (
    F32,
    I8,
    I32,
    cells,
    data_of,
    load,
    prefetch,
    same,
    spread,
    stepped,
    store,
)

NARROW = 8  # tokens in a narrow tile: a block of tokens is padded to a multiple of it
WIDE = 64 if cpu_has("avx512f") else 16  # tokens in a wide tile
ROWS = 4  # of the matrix in a tile
FEW = 3 if ISA == "vnni" else 4  # tokens: up to this number (a small batch) int8.py is faster
SUMS = ROWS * WIDE  # float32 of scratch


def _group(isa, rows, width):
    """A function that adds the products of one group, for some rows and a tile's tokens, to sums.

    (q, at, row_step, fours, scales, s, s_step, x, here, x_scales, x_sums, side, sums): the group of
    row r, 4 * fours values, begins at q[at + r * row_step] and has scales[s + r * s_step]. The
    group of the tile begins at x[here], in words of four int8; its `width` x_scales and x_sums
    begin at index `side`. All arrays are flat; sums is (rows, width).
    """
    lanes = min(isa.lanes, width)
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
                weights = builder.bitcast(isa.spread(builder, four, integers), int8s)
                for v in vectors:
                    total = isa.instruction(builder, builder.load(totals[r, v]), weights, tokens[v])
                    builder.store(total, totals[r, v])

    def generate(context, builder, signature, arguments):
        q, scales, x, x_scales, x_sums, sums = data_of(
            context, builder, signature, arguments, 0, 4, 7, 9, 10, 12
        )
        _, at, row_step, fours, _, s, s_step, _, here, _, _, side, _ = arguments
        totals = cells(builder, same(integers, 0), rows, len(vectors))
        for (_, v), total in totals.items():
            excess = load(builder, x_sums, stepped(builder, side, lanes, v), integers)
            builder.store(builder.mul(excess, same(integers, -isa.bias)), total)
        for r in range(rows, 2 * rows):  # the same group of the next tile's rows
            prefetch(builder, q, stepped(builder, at, row_step, r))
            prefetch(builder, scales, stepped(builder, s, s_step, r))
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


def _tile(isa, width):
    """A function (q, i, n, size, scales, x, x_scales, x_sums, t, sums).

    sums (ROWS, width) = the rows of q from i on times the tile of the tokens from t on. All arrays
    are flat; a row of q has n values in groups of `size`.
    """
    add_group = _group(ISAS[isa], ROWS, width)

    @inner(forceinline=True)
    def tile(q, i, n, size, scales, x, x_scales, x_sums, t, sums):
        groups, fours = n // size, size // 4
        sums[: ROWS * width] = 0
        for g in range(groups):
            at, s, side = i * n + g * size, i * groups + g, t * groups + g * width
            here = side * fours
            add_group(q, at, n, fours, scales, s, groups, x, here, x_scales, x_sums, side, sums)

    return tile


@inner
def padded(tokens):
    """The number of tokens of a block, including the padding of the last tile."""
    return -(-tokens // NARROW) * NARROW


@inner
def lay(x, tokens, n, wide, first, last, out):
    """Pack tokens into tiles: NARROW tokens for each of first ... last - 1. x, out: flat, 32 bits.

    x is (tokens, n). out has (padded tokens, n) values: as many tiles of `wide` tokens as fit, then
    narrow ones. The tile of the tokens from t on begins at out[t * n] and is (n, width). Padding is
    zero.
    """
    narrow = padded(tokens) // wide * wide
    for i in range(first, last):
        begin = i * NARROW
        width = wide if begin < narrow else NARROW
        start = begin // width * width
        at = start * n + begin - start
        for t in range(NARROW):
            for k in range(n):
                out[at + k * width + t] = x[(begin + t) * n + k] if begin + t < tokens else 0


@inner(forceinline=True)
def _store_tile(sums, width, i, t, d, tokens, out):
    """out[t + lane, i + r] = sums[r, lane], for the tokens that exist. sums, out: flat."""
    for lane in range(min(width, tokens - t)):
        for r in range(ROWS):
            out[(t + lane) * d + i + r] = sums[r * width + lane]


@cache
def many(isa=ISA):
    """The product for many tokens, or None for the portable instruction set.

    (q, scales, n, size, d, x, x_scales, x_sums, tokens, out, first, last, sums): fills columns of
    out (tokens, d) for the tiles first ... last - 1 of ROWS rows each; the last tile of the matrix
    may overlap the one before. q: (d, n) int8 in groups of `size` (a multiple of 4), with scales;
    x (in words of four int8), x_scales, x_sums: packed by `lay`; sums: (SUMS,), scratch. All arrays
    are flat.
    """
    if isa not in ISAS:
        return None
    wide_tile, narrow_tile = _tile(isa, WIDE), _tile(isa, NARROW)

    @inner
    def multiply(q, scales, n, size, d, x, x_scales, x_sums, tokens, out, first, last, sums):
        end = padded(tokens)
        wide = end // WIDE * WIDE
        for tile in range(first, last):
            i = min(tile * ROWS, d - ROWS)
            for t in range(0, wide, WIDE):
                wide_tile(q, i, n, size, scales, x, x_scales, x_sums, t, sums)
                _store_tile(sums, WIDE, i, t, d, tokens, out)
            for t in range(wide, end, NARROW):
                narrow_tile(q, i, n, size, scales, x, x_scales, x_sums, t, sums)
                _store_tile(sums, NARROW, i, t, d, tokens, out)

    return multiply
