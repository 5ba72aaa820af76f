"""Matrices in GGUF's number formats times many tokens: a panel of rows is unpacked, then tiles.

A panel is ROWS rows of the matrix as bytes, float32 scales, and offsets. It is unpacked once for
all tokens into scratch, which the L1 or L2 cache holds. As in int8_tiles.py, the lanes of a tile
are tokens, and `lay` packs the input for it. The operations have the order of block_rows.py, so
the bits are equal.
"""

from functools import cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.matmul import block_scales
from llama2np.kernels.matmul import block_unpack as unpack
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.matmul.block_rows import instructions, padded
from llama2np.kernels.matmul.block_unpack import PADDING, const
from llama2np.kernels.matmul.int8_isa import ISA
from llama2np.kernels.matmul.int8_tiles import _WIDE, NARROW
from llama2np.kernels.matmul.int8_tiles import padded as padded_tokens
from llama2np.kernels.runtime.jit import exact, inner
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

ROWS = 4  # of the matrix in a panel
SUMS = 4 * ROWS * _WIDE  # float32 of scratch for the sums of a tile


def panel_words(n, group):
    """The float32 of scratch that a panel of rows of n values takes, besides SUMS."""
    width = -(-n // PADDING) * PADDING
    return ROWS * (width // 4 + 2 * (width // group))


def fits(n):
    """Whether a panel of rows of n values fits into a thread's scratch memory."""
    return 4 * (SUMS + panel_words(n, 16)) <= SCRATCH


def unpacker(kind, isa):
    """An intrinsic that unpacks a row of `blocks` blocks, which begins at w[at].

    (w, at, blocks, values, v, scales, offsets, g): the bytes go to values[v:], the scales and, if
    the format has any, the offsets of its groups to scales[g:] and offsets[g:]; up to a multiple of
    PADDING values. All arrays are flat.
    """

    def generate(context, builder, signature, arguments):
        w, values, scales, offsets = data_of(context, builder, signature, arguments, 0, 3, 5, 6)
        _, at, blocks, _, v, _, _, g = arguments
        row = builder.gep(builder.bitcast(w, I8.as_pointer()), [at])
        values = builder.bitcast(values, I8.as_pointer())

        def step(places_of, first):
            places = places_of(row)
            value = builder.add(v, builder.mul(first, const(kind.values)))
            group = builder.add(g, builder.mul(first, const(kind.values // kind.group)))
            vectors = sum(unpack.vectors(builder, kind, isa, places), [])
            order = unpack.order(kind.group, 64 * len(vectors))
            for vector, numbers in zip(vectors, order, strict=True):
                _store_in_order(builder, vector, numbers, values, value)
            for found, out in zip(
                block_scales.scales(builder, kind, isa, places), (scales, offsets), strict=True
            ):
                if found is not None:
                    store(builder, found, out, group)

        unpack.walk(builder, kind, blocks, step)
        return context.get_dummy_value()

    @intrinsic
    def unpack_row(_context, w, at, blocks, values, v, scales, offsets, g):
        i = types.intp
        return types.void(w, i, i, values, i, scales, offsets, i), generate

    return unpack_row


def _store_in_order(builder, vector, numbers, values, start):
    """Store the byte k of the vector at values[start + numbers[k]]. Runs of 16 are adjacent."""
    size = 64 if numbers[63] - numbers[0] == 63 else 16
    for k in range(0, 64, size):
        part = vector if size == 64 else pick(builder, vector, vector, range(k, k + size))
        store(builder, part, values, builder.add(start, const(numbers[k])))


def _group(kind, isa, width):
    """An intrinsic that adds the products of one group of values, for a panel and a tile's tokens.

    (panel, p, row_stride, scales, offsets, g, groups, x, here, x_scales, x_sums, x_offsets, side,
    sums, s): the group of row r begins at panel[p + r * row_stride] and has scales[g + r * groups]
    and offsets at the same index. The group of the tile begins at x[here], in words of four int8;
    its `width` x_scales, x_sums and x_offsets begin at index `side`. sums[s:] is (ROWS, width). All
    arrays are flat.
    """
    lanes = min(isa.lanes, width)
    integers, vectors = ir.VectorType(I32, lanes), range(width // lanes)

    def generate(context, builder, signature, arguments):
        panel, scales, offsets, x, x_scales, x_sums, x_offsets, sums = data_of(
            context, builder, signature, arguments, 0, 3, 4, 7, 9, 10, 11, 13
        )
        _, p, row_stride, _, _, g, groups, _, here, _, _, _, side, _, s = arguments
        panel = builder.gep(builder.bitcast(panel, I8.as_pointer()), [p])
        x = builder.gep(x, [here])
        x_scales, x_sums, x_offsets = (
            builder.gep(each, [side]) for each in (x_scales, x_sums, x_offsets)
        )
        totals = cells(builder, same(integers, 0), ROWS, len(vectors))
        if bias := unpack.excess(kind, isa):
            for (_, v), total in totals.items():
                excess = load(builder, x_sums, const(v * lanes), integers)
                builder.store(builder.mul(excess, same(integers, -bias)), total)
        _add_dots(builder, kind, isa, panel, row_stride, x, totals)
        for r in range(ROWS):
            number = stepped(builder, g, groups, r)
            of_row = [builder.gep(each, [number]) for each in (scales, offsets)]
            row = [builder.load(totals[r, v]) for v in vectors]
            out = builder.gep(sums, [builder.add(s, const(r * width))])
            _add_scaled(builder, kind, row, of_row, x_scales, x_offsets, out)
        return context.get_dummy_value()

    @intrinsic
    def group(
        _context, panel, p, row_stride, scales, offsets, g, groups, x, here, x_scales, x_sums,
        x_offsets, side, sums, s,
    ):  # fmt: skip
        i = types.intp
        kinds = (panel, i, i, scales, offsets, i, i, x, i, x_scales, x_sums, x_offsets, i, sums, i)
        return types.void(*kinds), generate

    return group


def _add_dots(builder, kind, isa, panel, row_stride, x, totals):
    """Add the products of a group of integers to totals {(row, vector of tokens): pointer}.

    panel, x: pointers to the group; the rows of the panel are row_stride bytes apart.
    """
    integers, vectors = totals[0, 0].type.pointee, len(totals) // ROWS
    int8s, instruction = ir.VectorType(I8, 4 * integers.count), unpack.instruction(kind, isa)
    with cgutils.for_range(builder, const(kind.group // 4)) as loop:
        at = builder.mul(loop.index, const(4))
        word = builder.mul(loop.index, const(vectors * integers.count))
        words = [stepped(builder, word, integers.count, v) for v in range(vectors)]
        tokens = [load(builder, x, word, int8s) for word in words]
        for r in range(ROWS):
            four = builder.gep(panel, [stepped(builder, at, row_stride, r)])
            four = builder.load(builder.bitcast(four, I32.as_pointer()), align=1)
            weights = builder.bitcast(spread(builder, four, integers), int8s)
            for v, token in enumerate(tokens):
                total = instruction(builder, builder.load(totals[r, v]), weights, token)
                builder.store(total, totals[r, v])


def _add_scaled(builder, kind, totals, of_row, x_scales, x_offsets, out):
    """Add a row's totals of a group, scaled, to out; see block_rows.py.

    totals: vectors of tokens; of_row: pointers to the scale and the offset of the row.
    """
    lanes = totals[0].type.count
    floats, fma = ir.VectorType(F32, lanes), f"llvm.fma.v{lanes}f32"
    scale = spread(builder, builder.load(of_row[0]), floats)
    if kind.offset is not None:
        offset = spread(builder, builder.load(of_row[1]), floats)
    for v, total in enumerate(totals):
        place = const(v * lanes)
        value = builder.fmul(builder.sitofp(total, floats), scale)
        sum_ = load(builder, out, place, floats)
        sum_ = call(builder, fma, floats, value, load(builder, x_scales, place, floats), sum_)
        if kind.offset is not None:
            by = load(builder, x_offsets, place, floats)
            sum_ = call(builder, fma, floats, offset, by, sum_)
        store(builder, sum_, out, place)


@cache
def _tile(kind, isa, width):
    """A function that multiplies a panel and the tile of the tokens from t on.

    (panel, scales, offsets, n, x, x_scales, x_sums, x_offsets, t, sums): it fills sums[: ROWS *
    width], (ROWS, width). sums: (SUMS,). All arrays are flat.
    """
    form = KINDS[kind]
    add_group, size, block = _group(form, instructions(isa), width), form.group, ROWS * width

    @exact(forceinline=True)
    def tile(panel, scales, offsets, n, x, x_scales, x_sums, x_offsets, t, sums):
        groups, stride = n // size, padded(n)
        sums[: 4 * block] = 0
        for g in range(groups):
            side = t * groups + g * width
            add_group(
                panel, g * size, stride, scales, offsets, g, stride // size, x,
                side * (size // 4), x_scales, x_sums, x_offsets, side, sums, g % 4 * block,
            )  # fmt: skip
        for k in range(block):
            even, odd = sums[k] + sums[k + 2 * block], sums[k + block] + sums[k + 3 * block]
            sums[k] = even + odd

    return tile


@exact(forceinline=True)
def _store_tile(sums, width, i, t, d, tokens, terms, out):
    """out[t + lane, i + r] = sums[r, lane], for the tokens that exist; with 2 terms, of two lanes.

    sums, out: flat.
    """
    for lane in range(min(width, tokens - t) // terms):
        for r in range(ROWS):
            at = r * width + lane * terms
            value = sums[at] if terms == 1 else sums[at] + sums[at + 1]
            out[(t // terms + lane) * d + i + r] = value


@cache
def many(kind, isa=ISA):
    """The product for many tokens: fills columns of out (tokens, d) for some panels of ROWS rows.

    (w, n, d, x, x_scales, x_sums, x_offsets, tokens, terms, out, first, last, scratch): w (d, bytes
    of a row) uint8 in blocks of the number format `kind`; the panels are first ... last - 1, and
    the last one of the matrix may overlap the one before. x (in words of four int8), x_scales,
    x_sums, x_offsets: the input (see block_rows.quantize, but without padding), packed by
    int8_tiles.lay, `terms` rows for each token. scratch: (SUMS + panel_words(n, group),) float32.
    All arrays are flat.
    """
    form, rows = KINDS[kind], ROWS
    wide_tile, narrow_tile = _tile(kind, isa, _WIDE), _tile(kind, isa, NARROW)
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
        wide = end // _WIDE * _WIDE
        for number in range(first, last):
            i = min(number * rows, d - rows)
            for r in range(rows):
                at = (i + r) * blocks * nbytes
                unpack_row(w, at, blocks, panel, r * stride, scales, offsets, r * groups)
            for t in range(0, wide, _WIDE):
                wide_tile(panel, scales, offsets, n, x, x_scales, x_sums, x_offsets, t, sums)
                _store_tile(sums, _WIDE, i, t, d, count, terms, out)
            for t in range(wide, end, NARROW):
                narrow_tile(panel, scales, offsets, n, x, x_scales, x_sums, x_offsets, t, sums)
                _store_tile(sums, NARROW, i, t, d, count, terms, out)

    return multiply


@cache
def dequantize(kind, isa=ISA):
    """A function (w, row, out, scratch) that writes the values of a row of blocks to out (n,).

    w: (rows, bytes of a row) uint8, flat. scratch: (panel_words(n, group),) float32 is enough. The
    values are equal to Blocks.rows, to the last bit.
    """
    form, isa = KINDS[kind], instructions(isa)
    unpack_row, excess = unpacker(form, isa), unpack.excess(form, isa)
    as_int8, has_offsets = form.signed and not excess, form.offset is not None
    group, values, nbytes = form.group, form.values, form.nbytes

    @exact
    def read(w, row, out, scratch):
        n = out.shape[0]
        stride, blocks = padded(n), n // values
        panel, scales = scratch[: stride // 4], scratch[stride // 4 :]
        offsets = scales[stride // group :]
        unpack_row(w, row * blocks * nbytes, blocks, panel, 0, scales, offsets, 0)
        for g in range(n // group):
            for i in range(g * group, (g + 1) * group):
                byte = panel.view(np.uint8)[i]
                number = np.int32(np.int8(byte)) if as_int8 else np.int32(byte)
                value = np.float32(np.int32(number - np.int32(excess))) * scales[g]
                out[i] = value + offsets[g] if has_offsets else value

    return read
