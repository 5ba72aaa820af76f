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
from llama2np.kernels.matmul.block_unpack import BYTES, PADDING, WORDS, const
from llama2np.kernels.matmul.int8_isa import ISA, ISAS, PORTABLE
from llama2np.kernels.runtime.jit import exact, inner
from llama2np.kernels.runtime.vectors import (
    AHEAD,
    F32,
    I8,
    I16,
    I32,
    call,
    cells,
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
ROWS = 4  # of a matrix that are multiplied in turns
INPUT_GROUP = 32  # values of the input that share a scale
_FOUR = ir.VectorType(F32, 4)


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
    """The sums of four adjacent lanes of 1, 2 or 4 vectors of 16 int32: a vector, in their order.

    Lanes are added in each quarter of the vectors, since such shuffles are cheap:

        a: a0 a1 a2 a3   b: b0 b1 b2 b3   ->   a0 a2 b0 b2 + a1 a3 b1 b3
    """
    count = len(totals)
    largest = 4 * unpack.together(kind) * unpack.largest(kind) * 127  # of a lane
    for _ in range(2):
        narrow = count == 4 and largest < 2**15 and isa.lanes == 16
        add = _add_adjacent_narrow if narrow else _add_adjacent
        firsts, seconds = totals[::2], totals[1::2] or totals
        totals = [add(builder, *pair) for pair in zip(firsts, seconds, strict=True)]
        largest *= 2
    (total,) = totals  # lane 4 q + k is the sum of quarter q of the k-th vector
    return pick(builder, total, total, [4 * q + k for k in range(count) for q in range(4)])


def _add_adjacent(builder, a, b):
    def lanes(parity):
        return [16 * v + 4 * q + k + parity for q in range(4) for v in (0, 1) for k in (0, 2)]

    return builder.add(*(pick(builder, a, b, lanes(parity)) for parity in (0, 1)))


def _add_adjacent_narrow(builder, a, b):
    """The same with AVX-512 for numbers that fit into int16: two instructions instead of three."""
    int16s = ir.VectorType(I16, 32)
    both = call(builder, "llvm.x86.avx512.packssdw.512", int16s, a, b)
    return call(builder, "llvm.x86.avx512.pmaddw.d.512", WORDS, both, same(int16s, 1))


def _add_blocks(builder, kind, isa, places, x, totals):
    """Add the products of some blocks of a row to the totals of each token.

    x: for each token the pointers to its integers, scales, sums and offsets at the first of these
    blocks. totals: pointers to vectors of four sums.
    """
    values = unpack.vectors(builder, kind, isa, places)
    scales, offsets = block_scales.scales(builder, kind, isa, places)
    for (q, x_scales, x_sums, x_offsets), total_at in zip(x, totals, strict=True):
        dots, at = [], 0
        for together in values:
            total = same(WORDS, 0)
            for value in together:
                total = unpack.dot(
                    builder, kind, isa, total, value, load(builder, q, const(at), BYTES)
                )
                at += 64
            dots.append(total)
        dots = _group_sums(builder, kind, isa, dots)
        if bias := unpack.excess(kind, isa):
            sums = load(builder, x_sums, const(0), dots.type)
            dots = builder.sub(dots, builder.mul(sums, same(dots.type, bias)))
        products = builder.fmul(builder.sitofp(dots, scales.type), scales)
        total = builder.load(total_at)
        for g in range(0, scales.type.count, 4):
            total = _fma(builder, _four(builder, products, g), x_scales, g, total)
            if offsets is not None:
                total = _fma(builder, _four(builder, offsets, g), x_offsets, g, total)
        builder.store(total, total_at)


def _four(builder, vector, first):
    """Lanes first ... first + 3."""
    return pick(builder, vector, vector, range(first, first + 4))


def _fma(builder, a, x, g, total):
    return call(builder, "llvm.fma.v4f32", _FOUR, a, load(builder, x, const(g), _FOUR), total)


def products(kind, rows, tokens, isa):
    """An intrinsic that multiplies some rows of a matrix and some tokens.

    Its arguments: (w, first, stride, limit, blocks, q, scales, sums, offsets, t, width, out). All
    arrays are flat. The rows have `blocks` blocks. They begin at w[first], w[first + stride] ...,
    but those after w[limit] are replaced by the row that begins there. q, scales, sums and offsets:
    see `quantize`; they are those of the tokens t, t + 1 ..., and `width` is a token's padded
    number of values. It fills out[: rows * tokens], (rows, tokens).
    """

    def generate(context, builder, signature, arguments):
        w, *inputs, out = data_of(context, builder, signature, arguments, 0, 5, 6, 7, 8, 11)
        _, first_row, stride, limit, blocks, _, _, _, _, t, width, _ = arguments
        w, starts = builder.bitcast(w, I8.as_pointer()), []
        for r in range(rows):
            at = stepped(builder, first_row, stride, r)
            at = builder.select(builder.icmp_signed("<", at, limit), at, limit)
            starts.append(builder.gep(w, [at]))
        totals = cells(builder, same(_FOUR, 0.0), rows, tokens)
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
            x = list(begins(builder.mul(first, const(kind.values))))
            for r, row in enumerate(starts):
                places = places_of(row)
                for byte in range(0, kind.nbytes * len(places), 64):
                    prefetch(builder, places[0], const(AHEAD + byte))
                _add_blocks(builder, kind, isa, places, x, [totals[r, k] for k in range(tokens)])

        unpack.walk(builder, kind, blocks, step)
        for (r, token), total in totals.items():
            total = builder.load(total)
            for half in (2, 1):
                parts = [pick(builder, total, total, range(k, k + half)) for k in (0, half)]
                total = builder.fadd(*parts)
            store(builder, total, out, const(r * tokens + token))
        return context.get_dummy_value()

    @intrinsic
    def multiply(
        _context, w, first, stride, limit, blocks, q, scales, sums, offsets, t, width, out
    ):  # fmt: skip
        i = types.intp
        return types.void(w, i, i, i, i, q, scales, sums, offsets, i, i, out), generate

    return multiply


@cache
def few(kind, isa=ISA, rows=ROWS):
    """The product for a small batch: a function that fills columns first ... last - 1 of out.

    (w, n, d, q, scales, sums, offsets, tokens, terms, out, first, last, spare): w (d, bytes of a
    row) uint8 in blocks of the number format `kind`; the input of `tokens` tokens, see `quantize`:
    q (tokens * terms, padded n), scales, sums, offsets; out (tokens, d) float32. All arrays are
    flat. With 2 terms, the input of token t is the sum of rows 2 t and 2 t + 1. spare: (2 * rows,)
    float32, scratch.
    """
    form, isa = KINDS[kind], instructions(isa)
    one, two = (products(form, rows, count, isa) for count in (1, 2))
    values, nbytes = form.values, form.nbytes

    @exact
    def multiply(w, n, d, q, scales, sums, offsets, tokens, terms, out, first, last, spare):
        blocks, width, count = n // values, padded(n), tokens * terms
        # The rows come from equal parts of the range: memory is read in several sequential streams.
        part, size = (last - first + rows - 1) // rows, blocks * nbytes
        stride, limit = part * size, (last - 1) * size
        for i in range(first, first + part):
            at, t = i * size, np.int64(0)
            while count - t >= 2:  # two share the unpacked blocks
                two(w, at, stride, limit, blocks, q, scales, sums, offsets, t, width, spare)
                for r in range(rows):
                    row = min(i + r * part, last - 1)  # the last row may be computed repeatedly
                    if terms == 2:
                        out[t // 2 * d + row] = spare[2 * r] + spare[2 * r + 1]
                    else:
                        out[t * d + row], out[t * d + d + row] = spare[2 * r], spare[2 * r + 1]
                t += 2
            if t < count:
                one(w, at, stride, limit, blocks, q, scales, sums, offsets, t, width, spare)
                for r in range(rows):
                    out[t * d + min(i + r * part, last - 1)] = spare[r]

    return multiply
