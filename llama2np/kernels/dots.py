"""Rows of a float32 matrix times one token, or a few, in vectors as wide as the CPU has them.

A row is summed by lanes, the lanes at its end. Two vectors advance together, because one alone
would wait for itself: a fused multiply-add takes four cycles. Every product of a row and a token
is summed in this way, with whichever others it shares its loads, so a few tokens get the bits that
each would have alone.
"""

import itertools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.jit import PLAIN, SLICES, cpu_has, exact, inner
from llama2np.kernels.vectors import (
    AHEAD,
    F32,
    I32,
    cells,
    data_of,
    load,
    load_first,
    prefetch,
    same,
    stepped,
)

_LANES, _VECTORS = 16 if cpu_has("avx512f") else 8, 2
_STEP = _LANES * _VECTORS
FEW = 12  # tokens, up to which this is faster than tiles


def _sums(count, tokens=False):
    """A function (a, at, apart, n, b, start, out, o, step): `count` rows of a times one of b.

    The rows of a are the matrix's, and that of b is a token; or with `tokens` the other way round.
    out[o + r * step] = the sum of a[at + r * apart + k] * b[start + k] over k < n, for r < count.
    All arrays are flat.
    """
    vector = ir.VectorType(F32, _LANES)

    def generate(context, builder, signature, arguments):
        a, b, out = data_of(context, builder, signature, arguments, 0, 4, 6)
        _, at, apart, n, _, start, _, o, step = arguments
        totals = cells(builder, same(vector, 0.0), count, _VECTORS)

        def advance(first, read):
            """Add the products of the next _STEP values; read(base, index, k) is a vector of k."""
            for v in range(_VECTORS):
                k = builder.add(first, ir.Constant(n.type, v * _LANES))
                shared = read(b, builder.add(start, k), k)  # before a: that way round is faster
                for r in range(count):
                    values = read(a, builder.add(stepped(builder, at, apart, r), k), k)
                    product = builder.fmul(shared, values, flags=("contract",))
                    total = builder.fadd(builder.load(totals[r, v]), product, flags=("contract",))
                    builder.store(total, totals[r, v])

        def ahead(first):
            """Ask for what the matrix has further on, in these rows or in those behind them."""
            rows = [(a, stepped(builder, at, apart, r)) for r in range(count)]
            if tokens:
                rows = [(b, start)]
            for (base, row), byte in itertools.product(rows, range(0, 4 * _STEP, 64)):
                k = builder.add(first, ir.Constant(n.type, (AHEAD + byte) // 4))
                prefetch(builder, base, builder.add(row, k))

        steps = builder.sdiv(n, ir.Constant(n.type, _STEP))
        with cgutils.for_range(builder, steps) as loop:
            first = builder.mul(loop.index, ir.Constant(n.type, _STEP))
            ahead(first)
            advance(first, lambda base, index, _: load(builder, base, index, vector))
        rest = builder.mul(steps, ir.Constant(n.type, _STEP))
        with builder.if_then(builder.icmp_signed("<", rest, n)):
            advance(
                rest,
                lambda base, index, k: load_first(builder, base, index, vector, builder.sub(n, k)),
            )
        for r in range(count):
            total = builder.fadd(*(builder.load(totals[r, v]) for v in range(_VECTORS)))
            total = _add_lanes(builder, total)
            builder.store(total, builder.gep(out, [stepped(builder, o, step, r)]))
        return context.get_dummy_value()

    @intrinsic
    def sums(_context, a, at, apart, n, b, start, out, o, step):
        i = types.intp
        return types.void(a, i, i, i, b, i, out, i, i), generate

    return sums


def _add_lanes(builder, total):
    """The sum of the lanes of a vector, one half added to the other until one is left."""
    while (half := total.type.count // 2) >= 1:
        low, high = (
            ir.Constant(ir.VectorType(I32, half), list(range(start, start + half)))
            for start in (0, half)
        )
        low, high = (builder.shuffle_vector(total, total, lanes) for lanes in (low, high))
        total = builder.fadd(low, high)
    return builder.extract_element(total, ir.Constant(I32, 0))


_one_row, _four_rows = _sums(1), _sums(4)
_one_token, _two_tokens, _four_tokens = (_sums(count, tokens=True) for count in (1, 2, 4))


@inner(forceinline=True)
def dot(w, i, n, x, out, o):
    """out[o] = row i of w times x. All are flat; a row of w has n values."""
    if SLICES:
        out[o] = (w[i * n : i * n + n] * x).sum()
    elif PLAIN:
        total = np.float32(0)
        for k in range(n):
            total += w[i * n + k] * x[k]
        out[o] = total
    else:
        _one_row(w, i * n, 0, n, x, 0, out, o, 0)


@inner
def all_dots(w, first, last, x, out):
    """out[0, i] = row i of w times x, for first <= i < last. w: (d, n), x: (1, n), out: (1, d).

    Four rows share the loads of x. They stand far apart, at the beginnings of four quarters: memory
    is faster at four places at once than at one, and than in four neighbours by turns.
    """
    n, quarter = w.shape[1], np.int64(0) if PLAIN else (last - first) // 4
    w, x, out = w.reshape(-1), x.reshape(-1), out.reshape(-1)
    for i in range(first, first + quarter):
        _four_rows(w, i * n, quarter * n, n, x, 0, out, i, quarter)
    for i in range(first + 4 * quarter, last):
        dot(w, i, n, x, out, i)


@exact(parallel=True)
def _matmul_few(w, x, out):
    """out = x @ w.T for a few tokens. w: (d, n), x: (T, n), out: (T, d). Threads share the rows.

    A row of w comes from memory once; tokens by fours share the loads of it.
    """
    (d, n), count = w.shape, x.shape[0]
    w, x, out = w.reshape(-1), x.reshape(-1), out.reshape(-1)
    for row in prange(d):
        i, t = np.int64(row), 0
        while count - t >= 4:
            _four_tokens(x, t * n, n, n, w, i * n, out, t * d + i, d)
            t += 4
        if count - t >= 2:
            _two_tokens(x, t * n, n, n, w, i * n, out, t * d + i, d)
            t += 2
        if count - t >= 1:
            _one_token(x, t * n, n, n, w, i * n, out, t * d + i, d)


# With indices checked, or without a compiler, a few tokens go one by one.
matmul_few: Any = None if PLAIN else _matmul_few
