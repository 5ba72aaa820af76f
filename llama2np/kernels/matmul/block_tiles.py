"""Matrices in GGUF's number formats times many tokens: a panel of rows is unpacked, then tiles.

A panel (block_panels.py) is ROWS rows of the matrix, unpacked once for all tokens into scratch,
which the L1 or L2 cache holds. As in int8_tiles.py, the lanes of a tile are tokens: four int8 of a
row, broadcast to a vector, are multiplied by the same four of each token. A tile of 12 rows and 16
tokens, in one step along k:

                            tokens 0 ... 15
                          x[0 ... 15][k:k+4]          one load
    w[0][k:k+4]  *          sums 0 +=                 one word of the panel, broadcast
    w[1][k:k+4]  *          sums 1 +=
    ...                     ...
    w[11][k:k+4] *          sums 11 +=

After each group these int32 sums are scaled and added to as many float32 sums; all of them are in
registers. An output has four float32 sums (see block_rows.py), of which only one is in a register
at a time: groups 0, 4, 8 ... of a segment are added to sums[0], then groups 1, 5, 9 ... to sums[1],
and so on. The operations of an output have the order of block_rows.py, so the bits are equal.

A CPU reads the next panel's blocks from memory during the multiplication: the tiles prefetch them.
"""

from functools import cache

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.matmul import block_unpack as unpack
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.matmul.block_panels import GROUPS, ROWS, panel_words, unpacker
from llama2np.kernels.matmul.block_rows import instructions, padded
from llama2np.kernels.matmul.int8_isa import ISA
from llama2np.kernels.matmul.int8_tiles import NARROW
from llama2np.kernels.matmul.int8_tiles import padded as padded_tokens
from llama2np.kernels.runtime.jit import cpu_has, inner
from llama2np.kernels.runtime.op import SCRATCH
from llama2np.kernels.runtime.vectors import (
    F32,
    I8,
    I32,
    call,
    cells,
    const,
    data_of,
    hidden,
    load,
    pick,
    prefetch,
    same,
    spread,
    store,
)

WIDE = 16  # tokens in a wide tile; a rest of up to NARROW tokens is a narrow one
SEGMENT = 512  # values of each row and each token, which the L1 cache holds
_PADDED = 16  # ROWS, as a power of two
SUMS = (4 * ROWS + _PADDED) * WIDE  # float32 of scratch: sums of a tile, then its outputs
# Vector registers of the CPU: up to 12 int32 and 12 float32 sums of a tile fit into 32 of them.
_REGISTERS = 32 if cpu_has("avx512f") or cpu_has("neon") else 16


def fits(n):
    """Whether a panel of rows of n values fits into a thread's scratch memory."""
    return 4 * (SUMS + panel_words(n, 16)) <= SCRATCH


def rows_of_tile(isa, width):
    """How many rows of a panel have their sums in registers together."""
    vectors = max(width // isa.lanes, 1)
    return max(ROWS // vectors, 3) if _REGISTERS == 32 else 4


def bytes_of_group(kind, rows):
    """The bytes of a group of values in some rows of a matrix, rounded up."""
    return -(-rows * kind.group * kind.nbytes // kind.values)


def _part(kind, isa, width):
    """An intrinsic that adds groups g, g + 4, g + 8 ... to the sums of a tile.

    (panel, scales, offsets, p, f, x, x_scales, x_sums, x_offsets, k, side, count, w, soon, sums,
    s): in the tile's first row, the first of `count` groups begins at panel[p] (in bytes) and has
    scales[f] and offsets[f]; its tokens begin at x[k] and have x_scales[side], x_sums[side], and
    x_offsets[side]. They are added to sums[s:], (rows, width). Meanwhile, lines are fetched from
    w[soon] on: for each group, as many bytes as these rows have in a group. All arrays are flat.
    """
    rows, lanes = rows_of_tile(isa, width), min(isa.lanes, width)
    floats = ir.VectorType(F32, lanes)
    fetched = bytes_of_group(kind, rows)
    line_step = GROUPS * (ROWS // rows) * fetched

    def generate(context, builder, signature, arguments):
        panel, scales, offsets, x, x_scales, x_sums, x_offsets, w, sums = data_of(
            context, builder, signature, arguments, 0, 1, 2, 5, 6, 7, 8, 12, 14
        )
        p, f, word, side, count = (arguments[k] for k in (3, 4, 9, 10, 11))
        soon, s = arguments[13], arguments[15]
        panel, w = (builder.bitcast(each, I8.as_pointer()) for each in (panel, w))
        panel, w = builder.gep(panel, [p]), builder.gep(w, [soon])
        of_rows = [builder.gep(each, [f]) for each in (scales, offsets)]
        x = builder.gep(x, [word])
        of_tokens = [builder.gep(each, [side]) for each in (x_scales, x_sums, x_offsets)]
        totals = cells(builder, same(floats, 0.0), rows, width // lanes)
        at = {(r, v): builder.add(s, const(r * width + v * lanes)) for r, v in totals}
        for place, total in totals.items():
            builder.store(load(builder, sums, at[place], floats), total)
        with cgutils.for_range(builder, count) as loop:

            def here(pointer, step):
                return builder.gep(pointer, [builder.mul(loop.index, const(step))])

            for byte in range(0, fetched, 64):
                prefetch(builder, here(w, line_step), const(byte))
            _add_group(
                builder, kind, isa, totals,
                [here(panel, ROWS * GROUPS * kind.group)]
                + [here(each, ROWS * GROUPS) for each in of_rows],
                [here(x, width * kind.group)] + [here(each, width * GROUPS) for each in of_tokens],
            )  # fmt: skip
        for place, total in totals.items():
            store(builder, builder.load(total), sums, at[place])
        return context.get_dummy_value()

    @intrinsic
    def add_part(
        _context, panel, scales, offsets, p, f, x, x_scales, x_sums, x_offsets, k, side, count,
        w, soon, sums, s,
    ):  # fmt: skip
        i = types.intp
        kinds = panel, scales, offsets, i, i, x, x_scales, x_sums, x_offsets, i, i, i, w, i, sums, i
        return types.void(*kinds), generate

    return add_part


def _add_group(builder, kind, isa, totals, panel, inputs):
    """Add the products of one group to totals {(row, vector of tokens): pointer to float32}.

    panel: pointers to the bytes, the scale and the offset of the group in the first row; inputs: to
    x, x_scales, x_sums and x_offsets of the group.
    """
    values, *of_rows = panel
    x, x_scales, x_sums, x_offsets = inputs
    floats = totals[0, 0].type.pointee
    lanes, rows = floats.count, 1 + max(r for r, _ in totals)
    integers, vectors = ir.VectorType(I32, lanes), range(len(totals) // rows)
    dots = cells(builder, same(integers, 0), rows, len(vectors))
    if bias := unpack.excess(kind, isa):
        for v in vectors:
            excess = load(builder, x_sums, const(v * lanes), integers)
            excess = builder.mul(excess, same(integers, -bias))
            for r in range(rows):
                builder.store(excess, dots[r, v])
    _add_dots(builder, kind, isa, values, x, dots)
    for r, v in totals:
        scale, offset = (
            spread(builder, builder.load(builder.gep(each, [const(r * GROUPS)])), floats)
            for each in of_rows
        )
        value = builder.fmul(builder.sitofp(builder.load(dots[r, v]), floats), scale)
        total = _fma(builder, value, x_scales, v, builder.load(totals[r, v]))
        if kind.offset is not None:
            total = _fma(builder, offset, x_offsets, v, total)
        builder.store(total, totals[r, v])


def _add_dots(builder, kind, isa, values, x, dots):
    """Add the products of the integers of a group to dots {(row, vector of tokens): pointer}."""
    integers, rows = dots[0, 0].type.pointee, 1 + max(r for r, _ in dots)
    vectors, size = range(len(dots) // rows), GROUPS * kind.group
    int8s, instruction = ir.VectorType(I8, 4 * integers.count), unpack.instruction(kind, isa)
    words = const(kind.group // 4)
    if _REGISTERS < 32:  # LLVM would unroll the loop, and then move sums from and to memory
        words = hidden(builder, words)
    with cgutils.for_range(builder, words) as loop:
        # Four adjacent words of a group, and the next four behind those of the other groups.
        others = builder.mul(builder.lshr(loop.index, const(2)), const(4 * (GROUPS - 1)))
        word = builder.add(loop.index, others)
        first = builder.mul(word, const(len(vectors) * integers.count))
        places = [builder.add(first, const(v * integers.count)) for v in vectors]
        tokens = [load(builder, x, place, int8s) for place in places]
        word = builder.gep(values, [builder.mul(word, const(4))])
        for r in range(rows):
            four = builder.gep(word, [const(r * size)])
            four = builder.load(builder.bitcast(four, I32.as_pointer()), align=4)
            weights = builder.bitcast(spread(builder, four, integers), int8s)
            for v, token in enumerate(tokens):
                dot = instruction(builder, builder.load(dots[r, v]), weights, token)
                builder.store(dot, dots[r, v])


def _fma(builder, a, x, v, total):
    x = load(builder, x, const(v * total.type.count), total.type)
    return call(builder, f"llvm.fma.v{total.type.count}f32", total.type, a, x, total)


def _finisher(width):
    """An intrinsic (sums): add the four sums of each output, transpose, and store after them.

    sums: (4, ROWS, width), then the outputs (width, _PADDED); flat. Rows of the first half, each
    interleaved with one of the second half, are one of log2(_PADDED) rounds; here with four rows:

        a0 a1 ...  b0 b1 ...  c0 c1 ...  d0 d1 ...
        a0 c0 a1 c1 ...       b0 d0 b1 d1 ...           first round: a with c, b with d
        a0 b0 c0 d0 a1 b1 c1 d1 ...                     second round
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
    def finish(_context, sums):
        return types.void(sums), generate

    return finish


@cache
def _tile(kind, isa, width):
    """A function that multiplies a panel and the tile of the rows of the input from t on.

    (panel, n, inputs, t, begin, end, terms, w, soon, sums, i, d, out): panel: the bytes, scales,
    and offsets; inputs: x, x_scales, x_sums, and x_offsets. Columns i ... i + ROWS - 1 of out
    (tokens, d) become the outputs of rows begin ... end - 1 of the input, as far as they are in
    this tile. sums: (SUMS,). All arrays are flat. w[soon:] is fetched for the next panel.
    """
    form, isa = KINDS[kind], instructions(isa)
    add_part, finish, size = _part(form, isa, width), _finisher(width), form.group
    rows, all_rows, lines = rows_of_tile(isa, width), ROWS, _PADDED
    slices, fetched = SEGMENT // (GROUPS * size), bytes_of_group(form, rows)

    @inner
    def tile(panel, n, inputs, t, begin, end, terms, w, soon, sums, i, d, out):
        groups, block, parts = n // size, all_rows * width, all_rows // rows
        values, scales, offsets = panel
        x, x_scales, x_sums, x_offsets = inputs
        start = t * (padded(n) // size)  # of the tile in x_scales
        sums[: 4 * block] = 0
        for first in range(0, -(-groups // 4), slices):
            for part in range(parts):
                row = first * all_rows + part * rows
                for j in range(4):
                    g, count = 4 * first + j, min((groups - j + 3) // 4 - first, slices)
                    line, s = soon + (g * parts + part) * fetched, j * block + part * rows * width
                    word = start * (size // 4) + (first * size + 4 * j) * width
                    add_part(
                        values, scales, offsets, row * 4 * size + 16 * j, row * 4 + j,
                        x, x_scales, x_sums, x_offsets, word, start + g * width, count,
                        w, line, sums, s,
                    )  # fmt: skip
        finish(sums)
        for lane in range(max(begin - t, 0) // terms, min(width, end - t) // terms):
            at, to = 4 * block + lane * terms * lines, ((t - begin) // terms + lane) * d + i
            for r in range(all_rows):
                value = sums[at + r]
                out[to + r] = value if terms == 1 else value + sums[at + lines + r]

    return tile


@cache
def many(kind, isa=ISA, wide=WIDE):
    """The product for many tokens: fills columns of out (tokens, d) for some panels of ROWS rows.

    (w, n, d, inputs, start, tokens, terms, out, first, last, scratch): w (d, bytes of a row) uint8
    in blocks of the number format `kind`; the panels are first ... last - 1, and the last one of
    the matrix may overlap the one before. inputs: x (in words of four int8), x_scales, x_sums and
    x_offsets, quantized by block_rows.quantize and packed by int8_tiles.lay in tiles of `wide`, or
    of NARROW, rows. `terms` rows for each token; those of tokens start ... start + tokens - 1 are
    used. If start is not 0, `wide` must be NARROW. scratch: (SUMS + panel_words(n, group),)
    float32. All arrays are flat.
    """
    form, rows, words = KINDS[kind], ROWS, SUMS
    wide_tile, narrow_tile = _tile(kind, isa, wide), _tile(kind, isa, NARROW)
    unpack_row = unpacker(form, instructions(isa))
    group, values, nbytes = form.group, form.values, form.nbytes

    @inner
    def multiply(w, n, d, inputs, start, tokens, terms, out, first, last, scratch):
        width, row_bytes = padded(n), n // values * nbytes
        begin, end = start * terms, (start + tokens) * terms
        sums, after = scratch[:words], words + rows * (width // 4)
        scales = scratch[after:]
        panel = scratch[words:after], scales, scales[rows * (width // group) :]
        narrow = padded_tokens(end) // wide * wide  # the narrow tiles begin here
        for number in range(first, last):
            i = min(number * rows, d - rows)
            for r in range(rows):
                unpack_row(w, (i + r) * row_bytes, n // values, panel[0], panel[1], panel[2], r)
            soon = min((number + 1) * rows, d - rows) * row_bytes
            for t in range(begin // wide * wide, narrow, wide):
                wide_tile(panel, n, inputs, t, begin, end, terms, w, soon, sums, i, d, out)
            for t in range(narrow, padded_tokens(end), NARROW):
                narrow_tile(panel, n, inputs, t, begin, end, terms, w, soon, sums, i, d, out)

    return multiply
