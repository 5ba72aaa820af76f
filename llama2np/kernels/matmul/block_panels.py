"""Rows of blocks of GGUF's number formats, unpacked: panels, which the tiles for many tokens read.

A panel has some rows of a matrix (ROWS for the tiles): the values as bytes, and float32 scales and
offsets, in three arrays. It consists of slices. A slice has four groups of values of all rows. So
each row of a slice is at a fixed distance from the beginning of the slice. Its values have the
order of `block_unpack.vectors`, so that each vector needs one store. For groups a, b, c, d of 32
values there are two vectors, for groups of 16 only the first. A letter means 4 bytes:

    aaaa bbbb cccc dddd     values 0 ... 15 of the groups
    aaaa bbbb cccc dddd     values 16 ... 31

A slice has (rows, 4 * group) bytes, (rows, 4) scales, and (rows, 4) offsets.
"""

from functools import cache

import numpy as np
from numba import types
from numba.extending import intrinsic

from llama2np.kernels.matmul import block_scales
from llama2np.kernels.matmul import block_unpack as unpack
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.matmul.block_rows import instructions, padded
from llama2np.kernels.matmul.block_unpack import PADDING
from llama2np.kernels.matmul.int8_isa import ISA
from llama2np.kernels.runtime.jit import inner
from llama2np.kernels.runtime.vectors import AHEAD, I8, const, data_of, pick, prefetch, store

ROWS = 12  # of the matrix in a panel for tiles
GROUPS = 4  # in a slice


def panel_words(n, group, rows=ROWS):
    """The float32 of scratch that a panel of rows of n values takes."""
    width = -(-n // PADDING) * PADDING
    return rows * (width // 4 + 2 * (width // group))


def unpacker(kind, isa, rows=ROWS):
    """An intrinsic that unpacks a row of `blocks` blocks, which begins at w[at].

    (w, at, blocks, panel, scales, offsets, r): it becomes row r of a panel of `rows` rows, up to a
    multiple of PADDING values; offsets is used if the format has any. All arrays are flat.
    """
    size = GROUPS * kind.group  # bytes of a row in a slice

    def generate(context, builder, signature, arguments):
        w, panel, scales, offsets = data_of(context, builder, signature, arguments, 0, 3, 4, 5)
        _, at, blocks, _, _, _, r = arguments
        row = builder.gep(builder.bitcast(w, I8.as_pointer()), [at])
        panel = builder.bitcast(panel, I8.as_pointer())
        panel = builder.gep(panel, [builder.mul(r, const(size))])
        sides = [builder.gep(each, [builder.mul(r, const(GROUPS))]) for each in (scales, offsets)]

        def step(places_of, first):
            places = places_of(row)
            for byte in range(0, kind.nbytes * len(places), 64):
                prefetch(builder, places[0], const(AHEAD + byte))
            number = builder.mul(first, const(kind.values // size))
            if kind.values < size:
                number = builder.udiv(first, const(size // kind.values))
            start = builder.mul(number, const(rows * size))
            for s, vectors in enumerate(unpack.vectors(builder, kind, isa, places)):
                for k, vector in enumerate(vectors):
                    place = builder.add(start, const(s * rows * size + 64 * k))
                    store(builder, vector, panel, place)
            found = block_scales.scales(builder, kind, isa, places)
            start = builder.mul(number, const(rows * GROUPS))
            for values, out in zip(found, sides, strict=True):
                for g in range(0, values.type.count if values else 0, GROUPS):
                    four = pick(builder, values, values, range(g, g + GROUPS))
                    store(builder, four, out, builder.add(start, const(g * rows)))

        unpack.walk(builder, kind, blocks, step)
        return context.get_dummy_value()

    @intrinsic
    def unpack_row(_context, w, at, blocks, panel, scales, offsets, r):
        i = types.intp
        return types.void(w, i, i, panel, scales, offsets, i), generate

    return unpack_row


@cache
def dequantize(kind, isa=ISA):
    """A function (w, row, out, scratch) that writes the values of a row of blocks to out (n,).

    w: (rows, bytes of a row) uint8, flat. scratch: (panel_words(n, group, 1),) float32 is enough.
    The values are equal to Blocks.rows, to the last bit.
    """
    form, isa = KINDS[kind], instructions(isa)
    unpack_row, excess = unpacker(form, isa, 1), unpack.excess(form, isa)
    as_int8, has_offsets = form.signed and not excess, form.offset is not None
    group, values, nbytes = form.group, form.values, form.nbytes

    @inner
    def read(w, row, out, scratch):
        n = out.shape[0]
        width, blocks = padded(n), n // values
        panel, scales = scratch[: width // 4].view(np.uint8), scratch[width // 4 :]
        offsets = scales[width // group :]
        unpack_row(w, row * blocks * nbytes, blocks, panel, scales, offsets, 0)
        for i in range(n):
            g, k = i // group, i % group
            byte = panel[g // 4 * 4 * group + k // 16 * 64 + g % 4 * 16 + k % 16]
            number = np.int32(np.int8(byte)) if as_int8 else np.int32(byte)
            value = np.float32(np.int32(number - np.int32(excess))) * scales[g]
            out[i] = value + offsets[g] if has_offsets else value

    return read
