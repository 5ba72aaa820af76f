"""Rows of blocks, unpacked: a panel of bytes, float32 scales, and float32 offsets."""

from functools import cache

import numpy as np
from numba import types
from numba.extending import intrinsic

from llama2np.kernels.matmul import block_unpack as unpack
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.matmul.block_rows import instructions, padded
from llama2np.kernels.matmul.block_unpack import const
from llama2np.kernels.matmul.int8_isa import ISA
from llama2np.kernels.runtime.jit import exact
from llama2np.kernels.runtime.vectors import I8, data_of, pick, store


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
                unpack.scales(builder, kind, isa, places), (scales, offsets), strict=True
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
