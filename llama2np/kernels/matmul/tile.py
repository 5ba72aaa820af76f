"""Register tiles of rows by tokens, whose lanes run along k: the generator of the float products.

An output is the dot product of a row of the matrix and a token. The order of its additions is
always the same: lane j of a vector accumulator adds w[k] * x[k] for k = j, j + LANES,
j + 2 LANES ..., and then the halves of the vector are added until one number is left. The order
does not depend on the shape of the tile, so any number of tokens gives the same bits.

A tile of 2 rows and 3 tokens, in one step along k:

                      x[0][k:k+16]   x[1][k:k+16]   x[2][k:k+16]       3 loads
    w[0][k:k+16]        sum 0,0        sum 0,1        sum 0,2          2 loads
    w[1][k:k+16]        sum 1,0        sum 1,1        sum 1,2          6 multiply-adds
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.runtime.jit import cpu_has
from llama2np.kernels.runtime.vectors import (
    F32,
    I16,
    I32,
    cells,
    data_of,
    load,
    load_first,
    prefetch,
    same,
    store,
)

LANES = 16 if cpu_has("avx512f") else 8
_VECTOR = ir.VectorType(F32, LANES)

FLOAT32, BFLOAT16, FLOAT16 = "float32", "bfloat16", "float16"


def _read(builder, base, index, kind, count=None):
    """LANES values of a kind as float32; with `count`, only the first of them, and then zeros."""
    stored = _VECTOR if kind == FLOAT32 else ir.VectorType(I16, LANES)
    if count is None:
        value = load(builder, base, index, stored)
    else:
        value = load_first(builder, base, index, stored, count)
    if kind == BFLOAT16:  # bfloat16 is the upper half of a float32
        wide = builder.zext(value, ir.VectorType(I32, LANES))
        value = builder.bitcast(builder.shl(wide, same(wide.type, 16)), _VECTOR)
    if kind == FLOAT16:
        half = builder.bitcast(value, ir.VectorType(ir.HalfType(), LANES))
        value = builder.fpext(half, _VECTOR)
    return value


def _fold(builder, totals):
    """Add up the lanes of each of up to LANES vectors: (a vector of the sums, the lane of each).

    The halves of each vector are added in the usual order, but two vectors share an instruction:

        a: a0 a1 a2 a3   b: b0 b1 b2 b3   ->   a0 a1 b0 b1 + a2 a3 b2 b3
    """
    length = LANES  # of the part of a register that belongs to one vector
    # (register, indices of the vectors in it, in order)
    held = [(total, [i]) for i, total in enumerate(totals)]
    while length > 1:
        half, merged = length // 2, []
        for first in range(0, len(held), 2):
            (a, in_a), (b, in_b) = held[first], held[min(first + 1, len(held) - 1)]
            parts_a = [(k * length, vector) for k, vector in enumerate(in_a)]
            parts_b = [(LANES + k * length, vector) for k, vector in enumerate(in_b)]
            # Parts stay in their 128-bit quarter of the register, since such shuffles are cheaper.
            run = len(in_a) if half >= 4 else max(4 // length, 1)
            order = []
            for k in range(0, len(parts_a), run):
                order += parts_a[k : k + run] + parts_b[k : k + run]
            low, high = (
                builder.shuffle_vector(a, b, _lanes(at + j for at, _ in order for j in some))
                for some in (range(half), range(half, length))
            )
            merged.append((builder.fadd(low, high), [vector for _, vector in order]))
        held, length = merged, half
    ((value, vectors),) = held
    return value, [vectors.index(i) for i in range(len(totals))]


def _lanes(numbers):
    numbers = list(numbers)
    return ir.Constant(ir.VectorType(I32, len(numbers)), numbers)


def tile(rows, tokens, kind, *, adjacent=True, unroll=1, ahead=0, next_rows=0):
    """An intrinsic that multiplies a tile of `rows` rows of a matrix of a kind and `tokens` tokens.

    Its arguments: (w, at, row_stride, n, x, start, token_stride, out, o, out_row, out_token, sums,
    s, begins, ends, soon). All arrays are flat. It fills, for r < rows and t < tokens,

        out[o + r * out_row + t * out_token] = the sum over k < n of
            w[at + r * row_stride + k] * x[start + t * token_stride + k]

    adjacent: out_row is 1, and the sum may take several calls, one for each block of k. Between
    them the accumulators are in sums[s:]: they are loaded unless the tile `begins` in this call,
    and stored unless it `ends`. unroll: steps along k in one iteration of the loop. ahead: the
    prefetch distance of its rows in bytes. next_rows: the number of rows that are prefetched from
    w[soon] on.
    """
    size, step = 4 if kind == FLOAT32 else 2, LANES * unroll

    def generate(context, builder, signature, arguments):
        w, x, out, sums = data_of(context, builder, signature, arguments, 0, 4, 7, 11)
        _, at, row_stride, n, _, start, token_stride, _, o, out_row, out_token = arguments[:11]
        s, begins, ends, soon = arguments[12:]

        def const(value):
            return ir.Constant(n.type, value)

        def nth(base, stride, count):
            return builder.add(base, builder.mul(stride, const(count))) if count else base

        row_at = [builder.gep(w, [nth(at, row_stride, r)]) for r in range(rows)]
        token_at = [builder.gep(x, [nth(start, token_stride, t)]) for t in range(tokens)]
        totals = cells(builder, same(_VECTOR, 0.0), rows, tokens)
        kept = {place: nth(s, const(LANES), i) for i, place in enumerate(totals)}
        if adjacent:
            with builder.if_then(builder.not_(begins)):
                for place, total in totals.items():
                    builder.store(load(builder, sums, kept[place], _VECTOR), total)

        def advance(first, end=None):
            for k in (builder.add(first, const(u * LANES)) for u in range(unroll)):
                count = None if end is None else builder.sub(end, k)
                values = [_read(builder, base, k, FLOAT32, count) for base in token_at]
                for r, base in enumerate(row_at):
                    weights = _read(builder, base, k, kind, count)
                    for t, value in enumerate(values):
                        product = builder.fmul(weights, value, flags=("contract",))
                        total = builder.load(totals[r, t])
                        total = builder.fadd(total, product, flags=("contract",))
                        builder.store(total, totals[r, t])

        fetched = [(base, ahead) for base in row_at if ahead]
        fetched += [(builder.gep(w, [nth(soon, row_stride, r)]), 0) for r in range(next_rows)]
        steps = builder.sdiv(n, const(step))
        with cgutils.for_range(builder, steps) as loop:
            first = builder.mul(loop.index, const(step))
            for base, distance in fetched:
                for byte in range(0, size * step, 64):
                    prefetch(builder, base, builder.add(first, const((distance + byte) // size)))
            advance(first)
        rest = builder.mul(steps, const(step))
        with builder.if_then(builder.icmp_signed("<", rest, n)):
            advance(rest, n)

        def finish():
            together = max(LANES // rows, 1)  # number of tokens whose sums are folded together
            for first in range(0, tokens, together):
                some = range(first, min(first + together, tokens))
                places = [(r, t) for t in some for r in range(rows)]
                value, lanes = _fold(builder, [builder.load(totals[place]) for place in places])
                for i, (r, t) in enumerate(places):
                    target = builder.gep(out, [nth(nth(o, out_token, t), out_row, r)])
                    if not adjacent:
                        lone = builder.extract_element(value, ir.Constant(I32, lanes[i]))
                        builder.store(lone, target)
                    elif r == 0:  # all rows of a token in one fold
                        row = builder.shuffle_vector(value, value, _lanes(lanes[i : i + rows]))
                        pointer = row.type.as_pointer()
                        builder.store(row, builder.bitcast(target, pointer), align=4)

        if adjacent:
            with builder.if_else(ends) as (then, otherwise):
                with then:
                    finish()
                with otherwise:
                    for place, total in totals.items():
                        store(builder, builder.load(total), sums, kept[place])
        else:
            finish()
        return context.get_dummy_value()

    @intrinsic
    def multiply(
        _context, w, at, row_stride, n, x, start, token_stride, out, o, out_row, out_token,
        sums, s, begins, ends, soon,
    ):  # fmt: skip
        i, flag = types.intp, types.boolean
        kinds = (w, i, i, i, x, i, i, out, i, i, i, sums, i, flag, flag, i)
        return types.void(*kinds), generate

    return multiply
