"""float32 matrix products for many tokens: tiles of rows by tokens, whose sums stay in registers.

In a tile of x the tokens stand side by side, (n, width): one value of w, spread over a vector,
meets the values of all of them. Every sum runs over n in order, so the result does not depend on
how a prompt is cut. Register tiles: Goto and van de Geijn 2008.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.jit import PLAIN, cpu_has, exact
from llama2np.kernels.vectors import F32, cells, data_of, load, same, spread, stepped, store

LANES = 16  # tokens in a narrow tile: a block of tokens is padded to a multiple of it
# What fits in the CPU's registers: 32 of 16 float32, or else as few as 16 of 8.
WIDE = 64 if cpu_has("avx512f") else LANES
ROWS = 6  # of w in a tile


def _tile(rows, width):
    """A function (w, i, n, x, at, sums): sums = rows i ... of w times the tile at x[at].

    w (d, n) and x are flat; sums, (rows, width), is too.
    """
    vector, vectors = ir.VectorType(F32, LANES), width // LANES

    def generate(context, builder, signature, arguments):
        w, x, sums = data_of(context, builder, signature, arguments, 0, 3, 5)
        _, i, n, _, at, _ = arguments
        starts = [stepped(builder, builder.mul(i, n), n, r) for r in range(rows)]
        totals = cells(builder, same(vector, 0.0), rows, vectors)
        with cgutils.for_range(builder, n) as loop:
            k = loop.index
            here = builder.add(at, builder.mul(k, ir.Constant(k.type, width)))
            tokens = [
                load(builder, x, stepped(builder, here, LANES, v), vector) for v in range(vectors)
            ]
            for r, start in enumerate(starts):
                weight = builder.load(builder.gep(w, [builder.add(start, k)]))
                weight = spread(builder, weight, vector)
                for v, values in enumerate(tokens):
                    product = builder.fmul(weight, values, flags=("contract",))
                    total = builder.load(totals[r, v])
                    total = builder.fadd(total, product, flags=("contract",))
                    builder.store(total, totals[r, v])
        for (r, v), total in totals.items():
            place = ir.Constant(n.type, r * width + v * LANES)
            store(builder, builder.load(total), sums, place)
        return context.get_dummy_value()

    @intrinsic
    def tile(_context, w, i, n, x, at, sums):
        return types.void(w, types.intp, types.intp, x, types.intp, sums), generate

    return tile


_wide_tile, _narrow_tile = _tile(ROWS, WIDE), _tile(ROWS, LANES)


@exact(parallel=True)
def to_tiles(x, out):
    """Lay x out in tiles. x: (T, n) of 32 bits, out: (T padded to LANES, n), to be seen as flat.

    The tile of the tokens from t on begins at out[t]. There are as many WIDE ones as fit, then
    narrow ones; tokens that only pad are zeros.
    """
    (count, n), padded = x.shape, out.shape[0]
    wide, flat = padded // WIDE * WIDE, out.reshape(-1)
    for i in prange(padded // LANES):
        first = np.int64(i) * LANES
        width = WIDE if first < wide else LANES
        start = first // width * width
        at = start * n + first - start
        for t in range(LANES):
            for k in range(n):
                flat[at + k * width + t] = x[first + t, k] if first + t < count else 0


@exact(forceinline=True)
def from_tile(sums, rows, width, i, t, out):
    """out[t + lane, i + r] = sums[r, lane], for the tokens that exist. sums: flat (rows, width)."""
    for lane in range(min(width, out.shape[0] - t)):
        for r in range(rows):
            out[t + lane, i + r] = sums[r * width + lane]


@exact(parallel=True)
def _matmul_tiles(w, x, out):
    """out = x @ w.T, for x as `to_tiles` lays it out. w: (d, n), d >= ROWS, out: (T, d)."""
    (d, n), padded = w.shape, x.shape[0]
    wide, flat, tokens = padded // WIDE * WIDE, w.reshape(-1), x.reshape(-1)
    for block in prange(-(-d // ROWS)):
        i = min(np.int64(block) * ROWS, d - ROWS)  # the last block may repeat some rows
        sums = np.empty(ROWS * WIDE, np.float32)
        for t in range(0, wide, WIDE):
            _wide_tile(flat, i, n, tokens, t * n, sums)
            from_tile(sums, ROWS, WIDE, i, t, out)
        for t in range(wide, padded, LANES):
            _narrow_tile(flat, i, n, tokens, t * n, sums)
            from_tile(sums, ROWS, LANES, i, t, out)


# With indices checked, many tokens take the loops that have indices.
matmul_tiles: Any = None if PLAIN else _matmul_tiles
