"""Rows of a float32 matrix times one token, in vectors as wide as the CPU has them.

A row is summed by lanes, the lanes at its end. Two vectors advance together, because one alone
would wait for itself: a fused multiply-add takes four cycles.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.jit import PLAIN, kernel
from llama2np.kernels.vectors import F32, I32, cells, data_of, load, load_first, same, stepped

_LANES, _VECTORS = 16, 2
_STEP = _LANES * _VECTORS


def _sums(count):
    """A function (w, at, n, x, out, o): out[o + r] = the sum of w[at + r * n + k] * x[k].

    For r < count, over k < n. All arrays are flat.
    """
    vector = ir.VectorType(F32, _LANES)

    def generate(context, builder, signature, arguments):
        w, x, out = data_of(context, builder, signature, arguments, 0, 3, 4)
        _, at, n, _, _, o = arguments
        totals = cells(builder, same(vector, 0.0), count, _VECTORS)

        def advance(start, read):
            """Add the products of the next _STEP values; read(base, index, k) is a vector of k."""
            for v in range(_VECTORS):
                k = builder.add(start, ir.Constant(n.type, v * _LANES))
                values = read(x, k, k)  # before w: that way round is faster
                for r in range(count):
                    weights = read(w, builder.add(stepped(builder, at, n, r), k), k)
                    product = builder.fmul(values, weights, flags=("contract",))
                    total = builder.fadd(builder.load(totals[r, v]), product, flags=("contract",))
                    builder.store(total, totals[r, v])

        steps = builder.sdiv(n, ir.Constant(n.type, _STEP))
        with cgutils.for_range(builder, steps) as loop:
            start = builder.mul(loop.index, ir.Constant(n.type, _STEP))
            advance(start, lambda base, index, _: load(builder, base, index, vector))
        rest = builder.mul(steps, ir.Constant(n.type, _STEP))
        with builder.if_then(builder.icmp_signed("<", rest, n)):
            advance(
                rest,
                lambda base, index, k: load_first(builder, base, index, vector, builder.sub(n, k)),
            )
        for r in range(count):
            total = builder.fadd(*(builder.load(totals[r, v]) for v in range(_VECTORS)))
            total = _add_lanes(builder, total)
            builder.store(total, builder.gep(out, [stepped(builder, o, 1, r)]))
        return context.get_dummy_value()

    @intrinsic
    def sums(_context, w, at, n, x, out, o):
        i = types.intp
        return types.void(w, i, i, x, out, i), generate

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


_one, _four = _sums(1), _sums(4)


@kernel(forceinline=True)
def dot(w, i, n, x, out, o):
    """out[o] = row i of w times x. All are flat; a row of w has n values."""
    if PLAIN:
        out[o] = 0
        for k in range(n):
            out[o] += w[i * n + k] * x[k]
    else:
        _one(w, i * n, n, x, out, o)


@kernel
def all_dots(w, x, out):
    """out = w times x. w: (d, n), x: (n,), out: (d,).

    Rows by fours share the loads of x. That pays for a matrix that stays in the cache; a large one
    is read faster row by row, as memory has it.
    """
    d, n = w.shape
    w = w.reshape(-1)
    fours = 0 if PLAIN else d // 4 * 4
    for i in range(0, fours, 4):
        _four(w, i * n, n, x, out, i)
    for i in range(fours, d):
        dot(w, i, n, x, out, i)
