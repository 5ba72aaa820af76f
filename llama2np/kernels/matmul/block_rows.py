"""Matrices in GGUF's number formats times a small batch of int8 inputs, block by block as stored.

The input of a token is int8 in groups of 32 with float32 scales (`quantize`). An output is computed
from the groups of values that share a scale, in their order; group g is added to sums[g % 4]:

    sums[g % 4] = fma(float32(dot of the integers of g) * scale of w, scale of x, sums[g % 4])
    sums[g % 4] = fma(offset of w, scale of x * float32(sum of x's integers), sums[g % 4])
    output = (sums[0] + sums[2]) + (sums[1] + sums[3])

The second line is for formats with offsets. The dot is exact, in int32. So all instruction sets,
and the tiles for many tokens (block_tiles.py), give the same bits.
"""

from functools import cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llama2np.kernels.matmul import block_scales
from llama2np.kernels.matmul import block_unpack as unpack
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.matmul.block_unpack import BYTES, PADDING, WORDS
from llama2np.kernels.matmul.int8_isa import ISA, ISAS, PORTABLE
from llama2np.kernels.runtime.jit import inner
from llama2np.kernels.runtime.vectors import (
    AHEAD,
    F32,
    I8,
    I16,
    I32,
    call,
    cells,
    const,
    data_of,
    load,
    pick,
    prefetch,
    same,
    spread,
    stepped,
    store,
)

FEW = 4  # tokens: up to this number (a small batch) this is faster than the tiles
ROWS = 4  # of a matrix that are multiplied together
INPUT_GROUP = 32  # values of the input that share a scale
_SUMS = ir.VectorType(F32, 4 * ROWS)


def instructions(isa):
    """The Isa of this name."""
    return ISAS.get(isa, PORTABLE)


def padded_width(n):
    """n, rounded up to whole steps of the unpacking."""
    return -(-n // PADDING) * PADDING


padded = inner(padded_width)  # for kernels


@inner
def quantize(x, rest, group, q, scales, sums, offsets):
    """Quantize a row x (n,) to int8 with a float32 scale for each INPUT_GROUP values.

    The scale maps the largest magnitude to 127; ties are rounded to even. q: (n,), or padded, int8,
    in the order of block_unpack.order. scales, sums, offsets: (width of q / group,): the scale of
    each group of `group` values (16 or 32), the sum of their integers (int32), and scale *
    float32(sum). The padding is 0. rest: (n,), becomes x - q * scale; it may be x.
    """
    per, spread = INPUT_GROUP // group, group == INPUT_GROUP
    for g in range(q.shape[0] // INPUT_GROUP):
        start = g * INPUT_GROUP
        first = g // 4 * 128 + g % 4 * 16 if spread else start
        second = first + 64 if spread else first + 16
        scale, sum_low, sum_high = np.float32(0), np.int32(0), np.int32(0)
        if start < x.shape[0]:
            scale, sum_low, sum_high = _quantize_group(x, start, rest, q, first, second)
        else:
            q[first : first + 16] = 0
            q[second : second + 16] = 0
        if per == 1:
            sum_low = np.int32(sum_low + sum_high)
        for part in range(per):
            at, total = g * per + part, sum_high if part else sum_low
            scales[at], sums[at], offsets[at] = scale, total, scale * np.float32(total)


@intrinsic
def _quantize_group(_context, x, start, rest, q, first, second):
    """Quantize x[start : start + 32]: 16 go to q[first:], 16 to q[second:], what is left to rest.

    Return the scale and the sums of the two parts of q.
    """
    floats, integers = ir.VectorType(F32, 16), ir.VectorType(I32, 16)

    def generate(context, builder, signature, arguments):
        x, rest, q = data_of(context, builder, signature, arguments, 0, 2, 3)
        _, start, _, _, first, second = arguments
        places = [builder.add(start, const(k)) for k in (0, 16)]
        values = [load(builder, x, place, floats) for place in places]
        # The bits of positive floats have the same order as the floats; nan is the largest.
        bits = [builder.bitcast(value, integers) for value in values]
        bits = [builder.and_(each, same(integers, 0x7FFFFFFF)) for each in bits]
        larger = builder.select(builder.icmp_signed(">", *bits), *bits)
        largest = call(builder, "llvm.vector.reduce.umax.v16i32", I32, larger)
        magnitude, most = builder.bitcast(largest, F32), ir.Constant(F32, 127.0)
        scale, inverse = builder.fdiv(magnitude, most), builder.fdiv(most, magnitude)
        # If all are 0 or one is not finite, all integers are 0: 0 * nan in the product is nan.
        finite = [
            builder.fcmp_ordered("<", number, ir.Constant(F32, float("inf")))
            for number in (scale, inverse)
        ]
        usable = spread(builder, builder.and_(*finite), ir.VectorType(ir.IntType(1), 16))
        inverse, scales = spread(builder, inverse, floats), spread(builder, scale, floats)
        results, big = [scale], same(floats, 3.0 * 2**22)
        for value, place, at in zip(values, places, (first, second), strict=True):
            ratio = builder.select(usable, builder.fmul(value, inverse), same(floats, 0.0))
            ratio = builder.fsub(builder.fadd(ratio, big), big)  # floats near `big` are integers
            rounded = builder.fptosi(ratio, integers)
            store(builder, builder.trunc(rounded, ir.VectorType(I8, 16)), q, at)
            store(builder, builder.fsub(value, builder.fmul(ratio, scales)), rest, place)
            results.append(call(builder, "llvm.vector.reduce.add.v16i32", I32, rounded))
        return context.make_tuple(builder, signature.return_type, results)

    i = types.intp
    result = types.Tuple((types.float32, types.int32, types.int32))
    return result(x, i, rest, q, i, i), generate


def _group_sums(builder, kind, isa, totals):
    """The sums of four adjacent lanes of four vectors of 16 int32.

    Lane 4 q + r of the result is that of quarter q of totals[r]. Lanes are added in each quarter of
    the vectors, since such shuffles are cheap:

        a: a0 a1 a2 a3   b: b0 b1 b2 b3   ->   a0 a2 b0 b2 + a1 a3 b1 b3
    """
    largest = 4 * unpack.together(kind) * unpack.largest(kind) * 127  # of a lane
    while len(totals) > 1:
        narrow = largest < 2**15 and isa.lanes == 16
        add = _add_adjacent_narrow if narrow else _add_adjacent
        pairs = zip(totals[::2], totals[1::2], strict=True)
        totals = [add(builder, *pair) for pair in pairs]
        largest *= 2
    return totals[0]


def _add_adjacent(builder, a, b):
    def lanes(parity):
        return [16 * v + 4 * q + k + parity for q in range(4) for v in (0, 1) for k in (0, 2)]

    return builder.add(*(pick(builder, a, b, lanes(parity)) for parity in (0, 1)))


def _add_adjacent_narrow(builder, a, b):
    """The same with AVX-512 for numbers that fit into int16: two instructions instead of three."""
    int16s = ir.VectorType(I16, 32)
    both = call(builder, "llvm.x86.avx512.packssdw.512", int16s, a, b)
    return call(builder, "llvm.x86.avx512.pmaddw.d.512", WORDS, both, same(int16s, 1))


def _add_blocks(builder, kind, isa, rows, x, totals):
    """Add the products of some blocks of four rows to the totals of each token.

    rows: the places of the blocks of each row. x: for each token the pointers to its integers,
    scales, sums and offsets at the first of these blocks. totals: a pointer for each token; lane
    4 q + r is sums[q] of row r.
    """
    size = unpack.together(kind)
    for g, (scales, offsets) in enumerate(block_scales.of_rows(builder, kind, isa, rows)):
        values = [unpack.four_groups(builder, kind, isa, places, g) for places in rows]
        for (q, x_scales, x_sums, x_offsets), total_at in zip(x, totals, strict=True):
            integers = [load(builder, q, const(64 * (g * size + k)), BYTES) for k in range(size)]
            dots = []
            for of_row in values:
                dot = same(WORDS, 0)
                for pair in zip(of_row, integers, strict=True):
                    dot = unpack.dot(builder, kind, isa, dot, *pair)
                dots.append(dot)
            dots = _group_sums(builder, kind, isa, dots)
            if bias := unpack.excess(kind, isa):
                excess = load(builder, x_sums, const(4 * g), ir.VectorType(I32, 4))
                excess = builder.mul(excess, same(excess.type, bias))
                dots = builder.sub(dots, _for_rows(builder, excess))
            products = builder.fmul(builder.sitofp(dots, _SUMS), scales)
            total = _fma(builder, products, x_scales, g, builder.load(total_at))
            if offsets is not None:
                total = _fma(builder, offsets, x_offsets, g, total)
            builder.store(total, total_at)


def _for_rows(builder, four):
    """A number for each of four groups, repeated for each row."""
    return pick(builder, four, four, [q for q in range(4) for _ in range(ROWS)])


def _fma(builder, a, x, g, total):
    factors = _for_rows(builder, load(builder, x, const(4 * g), ir.VectorType(F32, 4)))
    return call(builder, "llvm.fma.v16f32", _SUMS, a, factors, total)


def products(kind, tokens, isa):
    """An intrinsic that multiplies ROWS rows of a matrix and some tokens.

    Its arguments: (w, first, stride, limit, blocks, q, scales, sums, offsets, t, width, out). All
    arrays are flat. The rows have `blocks` blocks. They begin at w[first], w[first + stride] ...,
    but those after w[limit] are replaced by the row that begins there. q, scales, sums and offsets:
    see `quantize`; they are those of the tokens t, t + 1 ..., and `width` is a token's padded
    number of values. It fills out[: tokens * ROWS], (tokens, ROWS).
    """

    def generate(context, builder, signature, arguments):
        w, *inputs, out = data_of(context, builder, signature, arguments, 0, 5, 6, 7, 8, 11)
        _, first_row, stride, limit, blocks, _, _, _, _, t, width, _ = arguments
        w, starts = builder.bitcast(w, I8.as_pointer()), []
        for r in range(ROWS):
            at = stepped(builder, first_row, stride, r)
            at = builder.select(builder.icmp_signed("<", at, limit), at, limit)
            starts.append(builder.gep(w, [at]))
        totals = [at for _, at in cells(builder, same(_SUMS, 0.0), 1, tokens).items()]
        groups = builder.udiv(width, const(kind.group))

        def begins(value):
            """The pointers to the input from this value of the first token on, for each token."""
            group = builder.udiv(value, const(kind.group))
            for token in range(tokens):
                number = builder.add(t, const(token))
                at = [builder.add(builder.mul(number, width), value)]
                at += 3 * [builder.add(builder.mul(number, groups), group)]
                yield [builder.gep(base, [i]) for base, i in zip(inputs, at, strict=True)]

        def step(places_of, first):
            rows = [places_of(row) for row in starts]
            for places in rows:
                for byte in range(0, kind.nbytes * len(places), 64):
                    prefetch(builder, places[0], const(AHEAD + byte))
            x = list(begins(builder.mul(first, const(kind.values))))
            _add_blocks(builder, kind, isa, rows, x, totals)

        unpack.walk(builder, kind, blocks, step)
        for token, total in enumerate(totals):
            total = builder.load(total)
            for half in (8, 4):  # sums[0] + sums[2] and sums[1] + sums[3], then both
                parts = [pick(builder, total, total, range(k, k + half)) for k in (0, half)]
                total = builder.fadd(*parts)
            store(builder, total, out, const(ROWS * token))
        return context.get_dummy_value()

    @intrinsic
    def multiply(
        _context, w, first, stride, limit, blocks, q, scales, sums, offsets, t, width, out
    ):  # fmt: skip
        i = types.intp
        return types.void(w, i, i, i, i, q, scales, sums, offsets, i, i, out), generate

    return multiply


@cache
def few(kind, isa=ISA):
    """The product for a small batch: a function that fills columns first ... last - 1 of out.

    (w, n, d, q, scales, sums, offsets, tokens, terms, out, first, last, spare): w (d, bytes of a
    row) uint8 in blocks of the number format `kind`; the input of `tokens` tokens, see `quantize`:
    q (tokens * terms, padded n), scales, sums, offsets; out (tokens, d) float32. All arrays are
    flat. With 2 terms, the input of token t is the sum of rows 2 t and 2 t + 1. spare: (2 * ROWS,)
    float32, scratch.
    """
    form, isa = KINDS[kind], instructions(isa)
    one, two = (products(form, count, isa) for count in (1, 2))
    values, nbytes = form.values, form.nbytes

    @inner
    def multiply(w, n, d, q, scales, sums, offsets, tokens, terms, out, first, last, spare):
        blocks, width, count = n // values, padded(n), tokens * terms
        # The rows come from equal parts of the range: memory is read in several sequential streams.
        part, size = (last - first + ROWS - 1) // ROWS, blocks * nbytes
        stride, limit = part * size, (last - 1) * size
        for i in range(first, first + part):
            at, t = i * size, np.int64(0)
            while count - t >= 2:  # two share the unpacked blocks
                two(w, at, stride, limit, blocks, q, scales, sums, offsets, t, width, spare)
                for r in range(ROWS):
                    row = min(i + r * part, last - 1)  # the last row may be computed repeatedly
                    if terms == 2:
                        out[t // 2 * d + row] = spare[r] + spare[ROWS + r]
                    else:
                        out[t * d + row], out[t * d + d + row] = spare[r], spare[ROWS + r]
                t += 2
            if t < count:
                one(w, at, stride, limit, blocks, q, scales, sums, offsets, t, width, spare)
                for r in range(ROWS):
                    out[t * d + min(i + r * part, last - 1)] = spare[r]

    return multiply
