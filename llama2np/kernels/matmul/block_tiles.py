"""Matrices in GGUF's number formats times many tokens: a panel of rows is unpacked, then tiles.

A panel is ROWS rows of the matrix as bytes, float32 scales, and offsets (block_panels.py). It is
unpacked once for all tokens into scratch, which the L1 or L2 cache holds. As in int8_tiles.py, the
lanes of a tile are tokens, and `lay` packs the input for it. The operations have the order of
block_rows.py, so the bits are equal.

Of the four sums of an output, one is computed after the other: it stays in a register, and only
every fourth group is read. Storing and loading sums for each group took a fifth of the time.

    sums[0]: groups 0, 4, 8 ...      sums[1]: groups 1, 5, 9 ...      and so on
"""

from functools import cache

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.matmul import block_unpack as unpack
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.matmul.block_panels import unpacker
from llama2np.kernels.matmul.block_rows import instructions, padded
from llama2np.kernels.matmul.block_unpack import PADDING, const
from llama2np.kernels.matmul.int8_isa import ISA
from llama2np.kernels.matmul.int8_tiles import NARROW
from llama2np.kernels.matmul.int8_tiles import padded as padded_tokens
from llama2np.kernels.runtime.jit import cpu_has, exact, inner
from llama2np.kernels.runtime.op import SCRATCH
from llama2np.kernels.runtime.vectors import (
    F32,
    I8,
    I32,
    call,
    cells,
    data_of,
    load,
    pick,
    same,
    spread,
    stepped,
    store,
)

# Rows of the matrix in a panel, and tokens in a wide tile: the integer sums and the float32 sums of
# a tile stay in registers. AVX-512 has 32 vector registers of 16 lanes.
ROWS, WIDE = (6, 32) if cpu_has("avx512f") else (4, 16)
_PADDED = 1 << (ROWS - 1).bit_length()  # the outputs of a token in scratch: a power of two
SUMS = (4 * ROWS + _PADDED) * WIDE  # float32 of scratch: the four sums of a tile, and its outputs


def panel_words(n, group):
    """The float32 of scratch that a panel of rows of n values takes, besides SUMS."""
    width = -(-n // PADDING) * PADDING
    return ROWS * (width // 4 + 2 * (width // group))


def fits(n):
    """Whether a panel of rows of n values fits into a thread's scratch memory."""
    return 4 * (SUMS + panel_words(n, 16)) <= SCRATCH


def _multiplier(kind, isa, width):
    """An intrinsic that multiplies a panel and a tile of tokens.

    (panel, stride, scales, offsets, groups, x, x_scales, x_sums, x_offsets, side, sums): row r of
    the panel begins at panel[r * stride] and has scales[r * stride / group] and offsets at the same
    index; `groups` groups are multiplied. `width` x_scales, x_sums and x_offsets of each group of
    the tile begin at index `side`, and its values, in words of four int8, at x[side * group / 4].
    It fills sums[: 4 * ROWS * width], (4, ROWS, width). All arrays are flat.
    """
    lanes = min(isa.lanes, width)
    vectors = range(width // lanes)
    zeros = same(ir.VectorType(F32, lanes), 0.0)

    def generate(context, builder, signature, arguments):
        panel, *sides, x, x_scales, x_sums, x_offsets, sums = data_of(
            context, builder, signature, arguments, 0, 2, 3, 5, 6, 7, 8, 10
        )
        _, stride, _, _, groups, _, _, _, _, side, _ = arguments
        panel = builder.bitcast(panel, I8.as_pointer())
        x = builder.gep(x, [builder.mul(side, const(kind.group // 4))])
        inputs = [x, *(builder.gep(each, [side]) for each in (x_scales, x_sums, x_offsets))]
        row_groups = builder.udiv(stride, const(kind.group))
        rows = [
            [builder.gep(panel, [stepped(builder, const(0), stride, r)])]
            + [builder.gep(each, [stepped(builder, const(0), row_groups, r)]) for each in sides]
            for r in range(ROWS)
        ]
        with cgutils.for_range(builder, const(4)) as outer:
            totals = cells(builder, zeros, ROWS, len(vectors))
            count = builder.udiv(builder.sub(builder.add(groups, const(3)), outer.index), const(4))
            with cgutils.for_range(builder, count) as loop:
                g = builder.add(outer.index, builder.mul(loop.index, const(4)))
                _add_group(builder, kind, isa, rows, inputs, g, totals)
            for (r, v), total in totals.items():
                at = builder.mul(outer.index, const(ROWS * width))
                at = builder.add(at, const(r * width + v * lanes))
                store(builder, builder.load(total), sums, at)
        return context.get_dummy_value()

    @intrinsic
    def multiply(
        _context, panel, stride, scales, offsets, groups, x, x_scales, x_sums, x_offsets, side, sums
    ):
        i = types.intp
        kinds = (panel, i, scales, offsets, i, x, x_scales, x_sums, x_offsets, i, sums)
        return types.void(*kinds), generate

    return multiply


def _add_group(builder, kind, isa, rows, inputs, g, totals):
    """Add the products of group g to totals {(row, vector of tokens): pointer to float32}.

    rows: for each row of the panel, pointers to its bytes, scales and offsets; inputs: pointers to
    the tile's x, scales, sums and offsets.
    """
    lanes = totals[0, 0].type.pointee.count
    integers, vectors = ir.VectorType(I32, lanes), range(len(totals) // ROWS)
    x, *sides = inputs
    first = builder.mul(g, const(len(vectors) * lanes))
    x = builder.gep(x, [builder.mul(first, const(kind.group // 4))])
    x_scales, x_sums, x_offsets = (builder.gep(each, [first]) for each in sides)
    dots = cells(builder, same(integers, 0), ROWS, len(vectors))
    if bias := unpack.excess(kind, isa):
        for (_, v), total in dots.items():
            excess = load(builder, x_sums, const(v * lanes), integers)
            builder.store(builder.mul(excess, same(integers, -bias)), total)
    start = builder.mul(g, const(kind.group))
    _add_dots(builder, kind, isa, [builder.gep(row[0], [start]) for row in rows], x, dots)
    for r, (_, *of_row) in enumerate(rows):
        of_row = [builder.gep(each, [g]) for each in of_row]
        some = [(dots[r, v], totals[r, v]) for v in vectors]
        _add_scaled(builder, kind, some, of_row, x_scales, x_offsets)


def _add_dots(builder, kind, isa, rows, x, totals):
    """Add the products of a group of integers to totals {(row, vector of tokens): pointer}.

    rows, x: pointers to the group.
    """
    integers, vectors = totals[0, 0].type.pointee, len(totals) // ROWS
    int8s, instruction = ir.VectorType(I8, 4 * integers.count), unpack.instruction(kind, isa)
    with cgutils.for_range(builder, const(kind.group // 4)) as loop:
        at = builder.mul(loop.index, const(4))
        word = builder.mul(loop.index, const(vectors * integers.count))
        words = [stepped(builder, word, integers.count, v) for v in range(vectors)]
        tokens = [load(builder, x, word, int8s) for word in words]
        for r, row in enumerate(rows):
            four = builder.bitcast(builder.gep(row, [at]), I32.as_pointer())
            weights = spread(builder, builder.load(four, align=1), integers)
            weights = builder.bitcast(weights, int8s)
            for v, token in enumerate(tokens):
                total = instruction(builder, builder.load(totals[r, v]), weights, token)
                builder.store(total, totals[r, v])


def _add_scaled(builder, kind, some, of_row, x_scales, x_offsets):
    """Add a row's dot products of a group, scaled, to its totals; see block_rows.py.

    some: pointers to dot products and totals, for vectors of tokens. of_row: pointers to the scale
    and the offset of the row.
    """
    floats = some[0][1].type.pointee
    fma = f"llvm.fma.v{floats.count}f32"
    scale = spread(builder, builder.load(of_row[0]), floats)
    if kind.offset is not None:
        offset = spread(builder, builder.load(of_row[1]), floats)
    for v, (dots, total) in enumerate(some):
        place = const(v * floats.count)
        value = builder.fmul(builder.sitofp(builder.load(dots), floats), scale)
        by = load(builder, x_scales, place, floats)
        sum_ = call(builder, fma, floats, value, by, builder.load(total))
        if kind.offset is not None:
            by = load(builder, x_offsets, place, floats)
            sum_ = call(builder, fma, floats, offset, by, sum_)
        builder.store(sum_, total)


def _adder(width):
    """An intrinsic (sums): add the four sums, transpose, and store the outputs after them.

    sums: (4, ROWS, width), then the outputs, (width, _PADDED); flat. Interleaving the first half of
    the rows with the second half is one of log2(_PADDED) rounds, as here with four:

        a0 a1 ...  b0 b1 ...  c0 c1 ...  d0 d1 ...      rows a, b, c, d
        a0 c0 a1 c1 ...       b0 d0 b1 d1 ...           1st round: a with c, b with d
        a0 b0 c0 d0 a1 b1 c1 d1 ...                     2nd round
    """
    lanes, block = min(16, width), ROWS * width
    floats, half = ir.VectorType(F32, lanes), lanes // 2
    mixed = [[k + side for k in range(i, i + half) for side in (0, lanes)] for i in (0, half)]

    def total(builder, sums, at):
        parts = [load(builder, sums, const(m * block + at), floats) for m in range(4)]
        even, odd = (builder.fadd(parts[m], parts[m + 2]) for m in (0, 1))
        return builder.fadd(even, odd)

    def generate(context, builder, signature, arguments):
        (sums,) = data_of(context, builder, signature, arguments, 0)
        for start in range(0, width, lanes):
            rows = [total(builder, sums, r * width + start) for r in range(ROWS)]
            rows += rows[: _PADDED - ROWS]  # any others; they are not used
            for _ in range(_PADDED.bit_length() - 1):
                pairs = list(zip(rows[: _PADDED // 2], rows[_PADDED // 2 :], strict=True))
                rows = [pick(builder, *pair, numbers) for pair in pairs for numbers in mixed]
            for k, row in enumerate(rows):
                store(builder, row, sums, const(4 * block + start * _PADDED + k * lanes))
        return context.get_dummy_value()

    @intrinsic
    def add(_context, sums):
        return types.void(sums), generate

    return add


@intrinsic
def _copy(_context, values, i, terms, out, at):
    """out[at : at + ROWS] = the outputs values[i:] of a token; with 2 terms, of two, added."""
    floats = ir.VectorType(F32, _PADDED)
    parts = (range(4), range(4, ROWS)) if ROWS > 4 else (range(4),)  # vectors of 4 and 2

    def generate(context, builder, signature, arguments):
        values, out = data_of(context, builder, signature, arguments, 0, 3)
        _, i, terms, _, at = arguments

        def put(value):
            for part in parts:
                some = pick(builder, value, value, part)
                store(builder, some, out, builder.add(at, const(part[0])))

        value = load(builder, values, i, floats)
        two = builder.icmp_signed("==", terms, const(2))
        with builder.if_else(two) as (then, otherwise):
            with then:
                more = load(builder, values, builder.add(i, const(_PADDED)), floats)
                put(builder.fadd(value, more))
            with otherwise:
                put(value)
        return context.get_dummy_value()

    i = types.intp
    return types.void(values, i, i, out, i), generate


@cache
def _tile(kind, isa, width):
    """A function that multiplies a panel and the tile of the tokens from t on.

    (panel, scales, offsets, n, x, x_scales, x_sums, x_offsets, t, sums, i, d, tokens, terms, out):
    the arguments of `many`; the panel has the rows i, i + 1 ... of the matrix. All arrays are flat.
    """
    form = KINDS[kind]
    multiply, add, size = _multiplier(form, instructions(isa), width), _adder(width), form.group

    @exact(forceinline=True)
    def tile(
        panel, scales, offsets, n, x, x_scales, x_sums, x_offsets, t, sums, i, d, tokens, terms, out
    ):  # fmt: skip
        groups, stride, side = n // size, padded(n), t * (n // size)
        multiply(panel, stride, scales, offsets, groups, x, x_scales, x_sums, x_offsets, side, sums)
        add(sums)
        for token in range(min(width, tokens - t) // terms):
            at = 4 * width * ROWS + token * terms * _PADDED
            _copy(sums, at, terms, out, (t // terms + token) * d + i)

    return tile


@cache
def many(kind, isa=ISA):
    """The product for many tokens: fills columns of out (tokens, d) for some panels of ROWS rows.

    (w, n, d, x, x_scales, x_sums, x_offsets, tokens, terms, out, first, last, scratch): w (d, bytes
    of a row) uint8 in blocks of the number format `kind`; the panels are first ... last - 1, and
    the last one of the matrix may overlap the one before. x (in words of four int8), x_scales,
    x_sums, x_offsets: the input (see block_rows.quantize, but without padding), packed by
    int8_tiles.lay into tiles of WIDE, `terms` rows for each token. scratch: float32, (SUMS +
    panel_words(n, group),). All arrays are flat.
    """
    form, rows = KINDS[kind], ROWS
    wide_tile, narrow_tile = _tile(kind, isa, WIDE), _tile(kind, isa, NARROW)
    unpack_row = unpacker(form, instructions(isa))
    group, values, nbytes, words = form.group, form.values, form.nbytes, SUMS

    @inner
    def multiply(
        w, n, d, x, x_scales, x_sums, x_offsets, tokens, terms, out, first, last, scratch
    ):  # fmt: skip
        stride, count = padded(n), tokens * terms
        groups, blocks = stride // group, n // values
        sums, panel = scratch[:words], scratch[words : words + rows * (stride // 4)]
        scales = scratch[words + rows * (stride // 4) :]
        offsets = scales[rows * groups :]
        end = padded_tokens(count)
        wide = end // WIDE * WIDE
        for number in range(first, last):
            i = min(number * rows, d - rows)
            for r in range(rows):
                at = (i + r) * blocks * nbytes
                unpack_row(w, at, blocks, panel, r * stride, scales, offsets, r * groups)
            for t in range(0, wide, WIDE):
                wide_tile(
                    panel, scales, offsets, n, x, x_scales, x_sums, x_offsets, t, sums,
                    i, d, count, terms, out,
                )  # fmt: skip
            for t in range(wide, end, NARROW):
                narrow_tile(
                    panel, scales, offsets, n, x, x_scales, x_sums, x_offsets, t, sums,
                    i, d, count, terms, out,
                )  # fmt: skip

    return multiply
