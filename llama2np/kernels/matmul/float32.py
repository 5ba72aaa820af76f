"""Products of float32, bfloat16 and float16 matrices with float32 tokens, for any number of tokens.

All kernels give the same bits (tile.py explains why). Nothing is packed or copied: the kernels read
the matrix in the mapped file.
"""

from functools import cache

import numpy as np

from llama2np.kernels.matmul.tile import FLOAT32, LANES, tile
from llama2np.kernels.runtime.jit import SLICES, inner
from llama2np.kernels.runtime.vectors import AHEAD, bfloat16, half

_WIDE = LANES == 16  # 32 vector registers of 16 lanes, or 16 of 8
FEW = 8  # tokens: up to this number (a small batch) `few` is faster
ROWS = 6 if _WIDE else 4  # rows of a tile for many tokens
_TOKENS = 4 if _WIDE else 3  # tokens of such a tile: its ROWS * _TOKENS sums stay in registers
# The loops of `many`, from the outer to the inner: blocks of rows, blocks of tokens (which stay in
# the L2 cache), tiles of rows, blocks of k (ROWS rows of them stay in L1), tiles of tokens.
_BLOCK_TILES, _BLOCK_TOKENS, _BLOCK_K = 8, 64, 1024
_NEXT_ROWS = 2  # rows of the next tile of rows that each of the first tiles prefetches
_TILE_SUMS = ROWS * _TOKENS * LANES
SUMS = _TILE_SUMS * (_BLOCK_TOKENS // _TOKENS + 2)  # float32 of scratch


@cache
def few(kind):
    """The product for up to FEW tokens: (w, n, d, x, tokens, out, first, last) -> None.

    Fills columns first ... last - 1 of out (tokens, d) = x (tokens, n) @ w (d, n).T; all are flat.
    Four rows share the loads of the tokens. They come from the four quarters of the range, because
    four sequential streams give more bandwidth than one, or than four adjacent rows.
    """
    far, lone = _sweep(4, kind), _sweep(1, kind)

    @inner
    def multiply(w, n, d, x, tokens, out, first, last):
        quarter = (last - first) // 4
        for i in range(first, first + quarter):
            far(w, i, quarter, n, d, x, tokens, out)
        for i in range(first + 4 * quarter, last):
            lone(w, i, np.int64(1), n, d, x, tokens, out)

    return multiply


def _sweep(rows, kind):
    """A function that multiplies `rows` rows of w, from i on with a stride of `apart` rows, by all
    tokens.
    """
    counts = (4, 2, 1) if _WIDE else (2, 2, 1)  # tokens in a tile
    most, two, one = (
        tile(rows, count, kind, adjacent=False, unroll=2 if count == 1 else 1, ahead=AHEAD)
        for count in counts
    )
    size = counts[0]

    @inner(forceinline=True)
    def sweep(w, i, apart, n, d, x, tokens, out):
        at, stride, t, zero, yes = i * n, apart * n, np.int64(0), np.int64(0), True
        while tokens - t >= size:
            to = t * d + i
            most(w, at, stride, n, x, t * n, n, out, to, apart, d, out, zero, yes, yes, zero)
            t += size
        if tokens - t >= 2:
            to = t * d + i
            two(w, at, stride, n, x, t * n, n, out, to, apart, d, out, zero, yes, yes, zero)
            t += 2
        if t < tokens:
            to = t * d + i
            one(w, at, stride, n, x, t * n, n, out, to, apart, d, out, zero, yes, yes, zero)

    return sweep


@cache
def many(kind):
    """The product for many tokens: (w, n, d, x, tokens, out, first, last, sums) -> None.

    Like `few`, but first ... last - 1 are tiles of ROWS rows each; the last tile of the matrix may
    overlap the one before. d >= ROWS. sums: (SUMS,) float32, scratch.
    """
    most, two, one = (tile(ROWS, count, kind, next_rows=_NEXT_ROWS) for count in (_TOKENS, 2, 1))
    plain = tile(ROWS, _TOKENS, kind)
    prefetching = -(-ROWS // _NEXT_ROWS) * _TOKENS  # tokens whose tiles prefetch the next rows

    @inner
    def rows_by_tokens(w, i, n, d, x, start, end, out, k, count, sums, begins, ends):
        """One tile of rows, from i on, times tokens start ... end - 1, over a block of k."""
        at, t, s, soon = i * n + k, start, np.int64(0), (i + ROWS) * n + k
        while min(start + prefetching, end) - t >= _TOKENS:
            x_at, to = t * n + k, t * d + i
            most(w, at, n, count, x, x_at, n, out, to, 1, d, sums, s, begins, ends, soon)
            t, s, soon = t + _TOKENS, s + _TILE_SUMS, soon + _NEXT_ROWS * n
        while end - t >= _TOKENS:
            x_at, to = t * n + k, t * d + i
            plain(w, at, n, count, x, x_at, n, out, to, 1, d, sums, s, begins, ends, soon)
            t, s = t + _TOKENS, s + _TILE_SUMS
        if end - t >= 2:
            x_at, to = t * n + k, t * d + i
            two(w, at, n, count, x, x_at, n, out, to, 1, d, sums, s, begins, ends, soon)
            t, s, soon = t + 2, s + 2 * ROWS * LANES, soon + _NEXT_ROWS * n
        if t < end:
            x_at, to = t * n + k, t * d + i
            one(w, at, n, count, x, x_at, n, out, to, 1, d, sums, s, begins, ends, soon)

    @inner
    def multiply(w, n, d, x, tokens, out, first, last, sums):
        blocks = -(-n // _BLOCK_K)
        size = -(-n // (blocks * LANES)) * LANES  # of a block of k, in whole vectors
        for block in range(first, last, _BLOCK_TILES):
            for start in range(0, tokens, _BLOCK_TOKENS):
                end = min(start + _BLOCK_TOKENS, tokens)
                for tile_ in range(block, min(block + _BLOCK_TILES, last)):
                    i = min(tile_ * ROWS, d - ROWS)
                    for b in range(blocks):
                        k, begins, ends = b * size, b == 0, b == blocks - 1
                        count = min(n - k, size)
                        rows_by_tokens(w, i, n, d, x, start, end, out, k, count, sums, begins, ends)

    return multiply


def to_float32(kind):
    """A function that converts a stored value of a number format to float32."""
    if kind == FLOAT32:
        return inner(lambda value: value, forceinline=True)
    return bfloat16 if kind == "bfloat16" else half


def plain(kind):
    """Like `few`, for any number of tokens, as plain loops whose indices can be checked."""
    value_of = to_float32(kind)

    @inner
    def multiply(w, n, d, x, tokens, out, first, last):
        for t in range(tokens):
            for i in range(first, last):
                total = np.float32(0)
                for k in range(n):
                    total += value_of(w[i * n + k]) * x[t * n + k]
                out[t * d + i] = total

    def by_slices(w, n, d, x, tokens, out, first, last):
        rows = value_of(w.reshape(d, n)[first:last])
        for t in range(tokens):
            out[t * d + first : t * d + last] = (rows * x[t * n : t * n + n]).sum(-1)

    return by_slices if SLICES else multiply
