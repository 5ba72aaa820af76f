"""Linear ops: matrices times rows of activations.

Up to MOST matrices with the same input are computed in one step, and their units are numbered
consecutively. Float matrices use the input directly. int8 matrices use the input quantized to int8
by the step before (`quantize`, or `quantize_tiles` for many rows), and so do matrices in GGUF's
blocks (`quantize_for_blocks`, or `quantize_block_tiles`).
"""

from functools import cache

from llama2np.kernels.matmul import block_plain, block_rows, block_tiles, float32, int8_tiles
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.matmul.int8 import call_int8_rows
from llama2np.kernels.matmul.int8 import quantize as quantize_rows
from llama2np.kernels.matmul.tile import FLOAT32
from llama2np.kernels.runtime.jit import PLAIN, inner
from llama2np.kernels.runtime.memory import bytes_, floats, int8s, int16s, int32s, vector
from llama2np.kernels.runtime.op import MOST, SCRATCH, op, place, row_count, rows_of

# The fields of a step: the number of matrices, their addresses, scales, rows, and outputs.
_MATRICES = f"count w:{MOST} scales:{MOST} d:{MOST} out:{MOST}"


def _linear(name, fields, multiply, block=1):
    """An op that calls multiply(s, run, m, first, last, out, scratch) for units of the m-th matrix.

    A unit is `block` rows of a matrix; the last unit may overlap the one before.
    """

    def linear(s, run, first, last, scratch):
        rows = row_count(s["picked"], run)
        for m in range(s["count"]):
            d = s["d"][m]
            units = -(-d // block)
            if first < min(last, units):
                end, out = min(last, units), place(run, s["out"][m])
                multiply(s, run, m, first, end, vector(out, rows * d), scratch)
            first, last = max(first - units, 0), last - units

    linear.__name__ = name
    return op(f"{fields} {_MATRICES}")(linear)


# --- float32, bfloat16, float16 -------------------------------------------------------------------


@cache
def float_few(kind):
    """The op for a small batch of rows; a unit is a row of the matrix."""
    product, read = (float32.plain if PLAIN else float32.few)(kind), reader(kind)

    @inner
    def multiply(s, run, m, first, last, out, scratch):
        n, d, rows = s["n"], s["d"][m], row_count(s["picked"], run)
        x = vector(place(run, s["x"]), rows * n)
        product(read(s["w"][m], d * n), n, d, x, rows, out, first, last)

    return _linear(f"linear_few_{kind}", "x", multiply)


@cache
def float_many(kind):
    """The op for many rows; a unit is a tile of float32.ROWS rows of the matrix."""
    product, read = float32.many(kind), reader(kind)

    @inner
    def multiply(s, run, m, first, last, out, scratch):
        n, d, rows = s["n"], s["d"][m], row_count(s["picked"], run)
        x, sums = vector(place(run, s["x"]), rows * n), vector(scratch, float32.SUMS)
        product(read(s["w"][m], d * n), n, d, x, rows, out, first, last, sums)

    return _linear(f"linear_many_{kind}", "x", multiply, float32.ROWS)


def reader(kind):
    """A function (address, count) that returns the values of a matrix as a flat array."""
    if kind == FLOAT32:
        return vector
    return inner(lambda address, count: int16s(address, 1, count)[0], forceinline=True)


# --- int8 -----------------------------------------------------------------------------------------


@inner
def _quantize_rows(run, x, n, groups, q, q_scales, q_sums, first, last):
    """Quantize rows of x to q, q_scales and the sums of their groups, q_sums. All are offsets."""
    count, at = last - first, 4 * groups * first
    values = int8s(place(run, q) + n * first, count, n)
    scales = floats(place(run, q_scales) + at, count, groups)
    sums = int32s(place(run, q_sums) + at, count, groups)
    quantize_rows(rows_of(run, x, n, first, last), values, scales, sums)


@op("x group q q_scales q_sums")
def quantize(s, run, first, last, scratch):
    """q, q_scales, q_sums = x quantized to int8 by groups. A unit is a row."""
    n, q, scales, sums = s["n"], s["q"], s["q_scales"], s["q_sums"]
    _quantize_rows(run, s["x"], n, n // s["group"], q, scales, sums, first, last)


@op("x group q q_scales q_sums tiles tiles_scales tiles_sums")
def quantize_tiles(s, run, first, last, scratch):
    """The same, packed into tiles. A unit is int8_tiles.NARROW rows."""
    rows, groups, narrow = row_count(s["picked"], run), s["n"] // s["group"], int8_tiles.NARROW
    n, q, scales, sums = s["n"], s["q"], s["q_scales"], s["q_sums"]
    start, stop = first * narrow, min(last * narrow, rows)
    _quantize_rows(run, s["x"], n, groups, q, scales, sums, start, stop)
    for q, tiles, width in (
        (s["q"], s["tiles"], s["n"] // 4),
        (s["q_scales"], s["tiles_scales"], groups),
        (s["q_sums"], s["tiles_sums"], groups),
    ):
        x = int32s(place(run, q), 1, rows * width)[0]
        out = int32s(place(run, tiles), 1, int8_tiles.padded(rows) * width)[0]
        int8_tiles.lay(x, rows, width, int8_tiles.WIDE, first, last, out)


@inner
def _int8_few(s, run, m, first, last, out, scratch):
    n, group, d, rows = s["n"], s["group"], s["d"][m], row_count(s["picked"], run)
    groups = n // group
    x, x_scales = (
        int8s(place(run, s["q"]), 1, rows * n)[0],
        vector(place(run, s["q_scales"]), rows * groups),
    )
    x_sums = int32s(place(run, s["q_sums"]), 1, rows * groups)[0]
    w, scales = int8s(s["w"][m], 1, d * n)[0], vector(s["scales"][m], d * groups)
    call_int8_rows(w, scales, n, group, d, x, x_scales, x_sums, rows, out, first, last)


int8_few = _linear("linear_few_int8", "group q q_scales q_sums", _int8_few)


def _int8_many():
    product = int8_tiles.many()
    if product is None:
        return None

    @inner
    def multiply(s, run, m, first, last, out, scratch):
        n, size, d, rows = s["n"], s["group"], s["d"][m], row_count(s["picked"], run)
        groups, end = n // size, int8_tiles.padded(rows)
        x = int32s(place(run, s["tiles"]), 1, end * (n // 4))[0]
        x_scales = vector(place(run, s["tiles_scales"]), end * groups)
        x_sums = int32s(place(run, s["tiles_sums"]), 1, end * groups)[0]
        w, scales = int8s(s["w"][m], 1, d * n)[0], vector(s["scales"][m], d * groups)
        sums = vector(scratch, int8_tiles.SUMS)
        product(w, scales, n, size, d, x, x_scales, x_sums, rows, out, first, last, sums)

    fields = "group tiles tiles_scales tiles_sums"
    return _linear("linear_many_int8", fields, multiply, int8_tiles.ROWS)


int8_many = _int8_many()


# --- GGUF's blocks --------------------------------------------------------------------------------

# Fields: the values that share a scale in the matrix; the rows of the quantized input for each row
# of x (see _quantize_terms); and where the quantized input is.
BLOCK_INPUT = "group terms q q_scales q_sums q_offsets"
BLOCK_TILES = "tiles tiles_scales tiles_sums tiles_offsets"
_quantize_for_blocks = block_plain.quantize if PLAIN else block_rows.quantize


@inner
def _quantize_terms(run, x, n, terms, group, width, q, scales, sums, offsets, t, scratch):
    """Quantize row t of x, padded to `width` values, to `terms` rows of q.

    The first is x, rounded; the second is what the first lacks, so that the sum of both has about
    15 bits. x, q, scales, sums, offsets: where they are in the arena.
    """
    groups, rest = width // group, vector(scratch, n)
    values = rows_of(run, x, n, t, t + 1)[0]
    for row in range(t * terms, (t + 1) * terms):
        at = 4 * groups * row
        _quantize_for_blocks(
            rest if row > t * terms else values,
            rest,
            group,
            int8s(place(run, q) + width * row, 1, width)[0],
            vector(place(run, scales) + at, groups),
            int32s(place(run, sums) + at, 1, groups)[0],
            vector(place(run, offsets) + at, groups),
        )


@op(f"x parts {BLOCK_INPUT}")
def quantize_for_blocks(s, run, first, last, scratch):
    """q, q_scales, q_sums, q_offsets = x as block_rows.few reads it. A unit is a row.

    parts: the rows of n values in a row of x; experts have several.
    """
    x, n, terms, group = s["x"], s["n"], s["terms"], s["group"]
    q, scales, sums, offsets = s["q"], s["q_scales"], s["q_sums"], s["q_offsets"]
    width = block_rows.padded(n)
    for t in range(first * s["parts"], last * s["parts"]):
        _quantize_terms(run, x, n, terms, group, width, q, scales, sums, offsets, t, scratch)


@op(f"x parts wide {BLOCK_INPUT} {BLOCK_TILES}")
def quantize_block_tiles(s, run, first, last, scratch):
    """The same, and packed into tiles for block_tiles.many. A unit is int8_tiles.NARROW rows of x.

    wide: the tokens of a wide tile.
    """
    x, n, terms, group, parts = s["x"], s["n"], s["terms"], s["group"], s["parts"]
    q, scales, sums, offsets = s["q"], s["q_scales"], s["q_sums"], s["q_offsets"]
    rows, width, narrow = row_count(s["picked"], run), block_rows.padded(n), int8_tiles.NARROW
    for t in range(first * narrow * parts, min(last * narrow, rows) * parts):
        _quantize_terms(run, x, n, terms, group, width, q, scales, sums, offsets, t, scratch)
    count, groups = rows * parts * terms, width // group
    end = int8_tiles.padded(count)
    for q, tiles, each in (
        (s["q"], s["tiles"], width // 4),
        (s["q_scales"], s["tiles_scales"], groups),
        (s["q_sums"], s["tiles_sums"], groups),
        (s["q_offsets"], s["tiles_offsets"], groups),
    ):
        x = int32s(place(run, q), 1, count * each)[0]
        out = int32s(place(run, tiles), 1, end * each)[0]
        stop = min(last * parts * terms, end // narrow)
        int8_tiles.lay(x, count, each, s["wide"], first * parts * terms, stop, out)


@inner
def block_tiles_at(s, run, count):
    """The tiles of `count` rows of the quantized input: as block_tiles.many reads them."""
    width = block_rows.padded(s["n"])
    end, groups = int8_tiles.padded(count), width // s["group"]
    return (
        int32s(place(run, s["tiles"]), 1, end * (width // 4))[0],
        vector(place(run, s["tiles_scales"]), end * groups),
        int32s(place(run, s["tiles_sums"]), 1, end * groups)[0],
        vector(place(run, s["tiles_offsets"]), end * groups),
    )


def block_product(kind):
    """The product for a small batch: see block_rows.few."""
    return (block_plain if PLAIN else block_rows).few(kind)


@cache
def blocks_few(kind):
    """The op for a small batch of rows; a unit is a row of the matrix."""
    product = block_product(kind)
    values, nbytes = KINDS[kind].values, KINDS[kind].nbytes

    @inner
    def multiply(s, run, m, first, last, out, scratch):
        n, d, terms, rows = s["n"], s["d"][m], s["terms"], row_count(s["picked"], run)
        width, count = block_rows.padded(n), rows * terms
        groups = width // s["group"]
        w = bytes_(s["w"][m], d * (n // values) * nbytes)
        q = int8s(place(run, s["q"]), 1, count * width)[0]
        scales = vector(place(run, s["q_scales"]), count * groups)
        sums = int32s(place(run, s["q_sums"]), 1, count * groups)[0]
        offsets = vector(place(run, s["q_offsets"]), count * groups)
        spare = vector(scratch, 2 * block_rows.ROWS)
        product(w, n, d, q, scales, sums, offsets, rows, terms, out, first, last, spare)

    return _linear(f"linear_few_{kind}", BLOCK_INPUT, multiply)


@cache
def blocks_many(kind):
    """The op for many rows; a unit is a panel of block_tiles.ROWS rows of the matrix."""
    product, values, nbytes = block_tiles.many(kind), KINDS[kind].values, KINDS[kind].nbytes

    @inner
    def multiply(s, run, m, first, last, out, scratch):
        n, d, terms, rows = s["n"], s["d"][m], s["terms"], row_count(s["picked"], run)
        w, inputs = (
            bytes_(s["w"][m], d * (n // values) * nbytes),
            block_tiles_at(s, run, rows * terms),
        )
        spare = vector(scratch, SCRATCH // 4)
        product(w, n, d, inputs, 0, rows, terms, out, first, last, spare)

    return _linear(f"linear_many_{kind}", f"group terms {BLOCK_TILES}", multiply, block_tiles.ROWS)
