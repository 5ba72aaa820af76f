"""Blocks of GGUF's number formats in plain loops, whose indices can be checked.

They read the tables of block_kinds.py as vector code does, one value at a time. They run where
vector code cannot: with bounds checks, and without numba's compiler. The results differ from those
of block_rows.py in the last bits, because nothing here is fused.
"""

from functools import cache

import numpy as np

from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.matmul.int8 import quantize as quantize_rows
from llama2np.kernels.runtime.jit import SLICES, inner
from llama2np.kernels.runtime.vectors import half
from llama2np.model import gguf_blocks


@inner
def quantize(x, rest, group, q, scales, sums, offsets):
    """As block_rows.quantize, but q is in the order of x."""
    n, per = x.shape[0], 32 // group
    found, totals = np.zeros((1, n // 32), np.float32), np.zeros((1, n // 32), np.int32)
    values = np.zeros((1, n), np.int8)
    quantize_rows(x.reshape(1, n), values, found, totals)
    q[:] = 0
    q[:n] = values[0]
    for g in range(scales.shape[0]):
        inside = g // per < found.shape[1]
        scales[g] = found[0, g // per] if inside else np.float32(0)
        total = np.int32(0)
        for i in range(g * group, (g + 1) * group):
            total = np.int32(total + np.int32(q[i]))
            if inside:
                rest[i] = x[i] - np.float32(q[i]) * scales[g]
        sums[g], offsets[g] = total, scales[g] * np.float32(total)


@cache
def _reader(parts, signed=False, table=()):
    """A function (w, at, i) that returns the i-th integer of `parts` in the block at w[at]."""
    if not parts:
        return inner(lambda w, at, i: np.int32(1))
    places = np.array([part.bytes for part in parts])
    shifts = np.array([part.shifts for part in parts])
    masks = np.array([(1 << part.count) - 1 for part in parts])
    positions = np.cumsum([0, *(part.count for part in parts)])
    integers = np.array(table or (0,))
    powers = np.array(parts[0].powers or (0,))
    has_table, has_powers, count = bool(table), bool(parts[0].powers), len(parts)

    @inner
    def read(w, at, i):
        number = 0
        if has_powers:
            return np.int32((np.int64(w[at + places[0, i]]) * powers[i] & 255) * 3 >> 8)
        for p in range(count):
            bits = np.int64(w[at + places[p, i]]) >> shifts[p, i] & masks[p]
            number |= bits << positions[p]
        if has_table:
            return np.int32(integers[number])
        return np.int32(number - 256 if signed and number > 127 else number)

    return read


@inner
def _half(w, at):
    """The float16 at w[at]."""
    return half(np.int16(np.uint16(np.uint16(w[at]) | np.uint16(np.uint16(w[at + 1]) << 8))))


@cache
def _readers(kind):
    """Functions (w, at, i): the integer of value i, and (w, at, g): scale and offset of group g."""
    form = KINDS[kind]
    integer = _reader(form.parts, form.signed, form.table)
    of_scale, of_offset = _reader(form.scales, form.scales_signed), _reader(form.offsets)
    bias, scale_bias, at_scale, sign = form.bias, form.scale_bias, form.scale, form.sign
    has_offset, at_offset = form.offset is not None, form.offset or 0

    @inner
    def value(w, at, i):
        return np.int32(integer(w, at, i) - bias)

    @inner
    def scale(w, at, g):
        return _half(w, at + at_scale) * np.float32(of_scale(w, at, g) - scale_bias)

    @inner
    def offset(w, at, g):
        if not has_offset:
            return np.float32(0)
        return _half(w, at + at_offset) * np.float32(of_offset(w, at, g) * sign)

    return value, scale, offset


@cache
def few(kind):
    """As block_rows.few, for q in the order of x and any number of tokens."""
    form, (value, scale, offset) = KINDS[kind], _readers(kind)
    group, values, nbytes = form.group, form.values, form.nbytes

    @inner
    def multiply(w, n, d, q, scales, sums, offsets, tokens, terms, out, first, last, spare):
        groups, width = scales.shape[0] // (tokens * terms), q.shape[0] // (tokens * terms)
        for i in range(first, last):
            for t in range(tokens):
                out[t * d + i] = np.float32(0)
            for g in range(n // group):
                at = (i * n + g * group) // values * nbytes
                inside = g * group % values
                w_scale, w_offset = scale(w, at, inside // group), offset(w, at, inside // group)
                for row in range(tokens * terms):
                    total = np.int32(0)
                    for k in range(group):
                        x = np.int32(q[row * width + g * group + k])
                        total = np.int32(total + value(w, at, inside + k) * x)
                    product = np.float32(total) * w_scale * scales[row * groups + g]
                    product += w_offset * offsets[row * groups + g]
                    out[row // terms * d + i] += product

    def by_slices(w, n, d, q, scales, sums, offsets, tokens, terms, out, first, last, spare):
        x = q.reshape(-1, group) * scales[:, None]
        x = x.reshape(tokens, terms, -1)[..., :n].sum(1)
        rows = gguf_blocks.dequantize(w.reshape(d, -1)[first:last], kind)
        for t in range(tokens):
            out[t * d + first : t * d + last] = (rows * x[t]).sum(-1)

    return by_slices if SLICES else multiply


@cache
def dequantize(kind):
    """As block_panels.dequantize."""
    form, (value, scale, offset) = KINDS[kind], _readers(kind)
    group, values, nbytes = form.group, form.values, form.nbytes
    has_offset = form.offset is not None

    @inner
    def read(w, row, out, scratch):
        n = out.shape[0]
        for i in range(n):
            at, inside = (row * n + i) // values * nbytes, i % values
            out[i] = np.float32(value(w, at, inside)) * scale(w, at, inside // group)
            if has_offset:
                out[i] += offset(w, at, inside // group)

    def by_slices(w, row, out, scratch):
        out[:] = gguf_blocks.dequantize(w.reshape(-1, len(out) // values * nbytes)[row], kind)

    return by_slices if SLICES else read
