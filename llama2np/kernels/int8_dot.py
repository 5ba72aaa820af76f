"""The innermost step of int8 inference: products of groups of int8, four at a time.

LLVM reaches the CPU's wide instructions from a plain loop only by luck, so they are asked for by
name; four at a time, to share the work of adding up lanes. All flavours give the same bits. Which
one is used is settled here, once, from the CPU's features; LLAMA2NP_INT8=portable (or vnni, avx2,
sdot) overrides that.
"""

import os

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from llama2np.kernels.jit import exact

_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


def _vpdpbusd(builder, total, a, b):
    """AVX-512 VNNI: unsigned times signed bytes, by fours. A signed a is made unsigned: a + 128."""
    a = builder.xor(a, ir.Constant(a.type, [-128] * a.type.count))
    a, b = builder.bitcast(a, total.type), builder.bitcast(b, total.type)
    bits = 32 * total.type.count
    return _call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", total.type, total, a, b)


def _pmaddwd(builder, total, a, b):
    """AVX2: bytes widened to int16, their products summed by twos."""
    a, b = (builder.sext(v, ir.VectorType(_I16, 16)) for v in (a, b))
    return builder.add(total, _call(builder, "llvm.x86.avx2.pmadd.wd", total.type, a, b))


def _sdot(builder, total, a, b):
    """Arm's dot product: signed bytes, by fours. Untried: no such machine was at hand."""
    return _call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, a, b)


# flavour: (CPU feature, instruction, the bytes it takes of 32 and of 64, its int32 lanes for them,
# what it adds to each a); the best first
_WIDE = {
    "vnni": ("avx512vnni", _vpdpbusd, {32: 32, 64: 64}, {32: 8, 64: 16}, 128),
    "avx2": ("avx2", _pmaddwd, {32: 16, 64: 16}, {32: 8, 64: 8}, 0),
    "sdot": ("dotprod", _sdot, {32: 16, 64: 16}, {32: 4, 64: 4}, 0),
}


def flavours():
    """The flavours that this CPU, as numba compiles for it, can run; the best first."""
    if config.DISABLE_JIT:
        return ["portable"]
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return [name for name, (need, *_) in _WIDE.items() if "+" + need in features] + ["portable"]


def products4(flavour, size):
    """A function that multiplies four pairs of groups of `size` values, 32 or 64.

    (a, i, i_step, b, j, j_step, a_scales, s, s_step, b_scales, b_sums, r) -> four float32. The k-th
    is the sum of a * b over the groups that begin at i + k * i_step and j + k * j_step, times
    a_scales[s + k * s_step], times b_scales[r + k]; b_sums[r + k] is the sum of the group of b.
    All arrays are flat: a, b int8, b_sums int32, the scales float32.
    """
    return _portable(size) if flavour == "portable" else _wide(flavour, size)


@exact(forceinline=True)
def dot(a, i, b, j, size):
    """The sum of a[i + k] * b[j + k] over k < size. a, b: flat int8 arrays."""
    total = np.int32(0)
    # Indices without a sign need no test for being negative: the loop becomes vectors.
    for k in range(np.uint64(size)):
        total = np.int32(total + np.int32(a[np.uint64(i) + k]) * np.int32(b[np.uint64(j) + k]))
    return total


def _portable(size):
    @exact(forceinline=True)
    def products4(a, i, i_step, b, j, j_step, a_scales, s, s_step, b_scales, b_sums, r):
        p0 = np.float32(dot(a, i, b, j, size))
        p1 = np.float32(dot(a, i + i_step, b, j + j_step, size))
        p2 = np.float32(dot(a, i + 2 * i_step, b, j + 2 * j_step, size))
        p3 = np.float32(dot(a, i + 3 * i_step, b, j + 3 * j_step, size))
        return (
            p0 * a_scales[s] * b_scales[r],
            p1 * a_scales[s + s_step] * b_scales[r + 1],
            p2 * a_scales[s + 2 * s_step] * b_scales[r + 2],
            p3 * a_scales[s + 3 * s_step] * b_scales[r + 3],
        )

    return products4


def _wide(flavour, size):
    _, instruction, widths, lanes, bias = _WIDE[flavour]
    width, vector = widths[size], ir.VectorType(_I32, lanes[size])

    def sums_of(builder, a, i, i_step, b, j, j_step):
        sums = []
        for _ in range(4):
            total = ir.Constant(vector, [0] * vector.count)
            for offset in range(0, size, width):
                at = ir.Constant(i.type, offset)
                values = (
                    _load(builder, a, builder.add(i, at), _I8, width),
                    _load(builder, b, builder.add(j, at), _I8, width),
                )
                total = instruction(builder, total, *values)
            sums.append(total)
            i, j = builder.add(i, i_step), builder.add(j, j_step)
        return _add_lanes(builder, sums)

    def generate(context, builder, signature, arguments):
        a, b, a_scales, b_scales, b_sums = (
            context.make_array(signature.args[k])(context, builder, arguments[k]).data
            for k in (0, 3, 6, 9, 10)
        )
        _, i, i_step, _, j, j_step, _, s, s_step, _, _, r = arguments
        sums = sums_of(builder, a, i, i_step, b, j, j_step)
        if bias:
            excess = _load(builder, b_sums, r, _I32, 4)
            sums = builder.sub(sums, builder.mul(excess, ir.Constant(excess.type, [bias] * 4)))
        floats = builder.sitofp(sums, ir.VectorType(_F32, 4))
        floats = builder.fmul(floats, _load4(builder, a_scales, s, s_step))
        floats = builder.fmul(floats, _load(builder, b_scales, r, _F32, 4))
        numbers = [builder.extract_element(floats, ir.Constant(_I32, k)) for k in range(4)]
        return context.make_tuple(builder, signature.return_type, numbers)

    @intrinsic
    def products4(_context, a, i, i_step, b, j, j_step, a_scales, s, s_step, b_scales, b_sums, r):
        at = types.intp
        result = types.UniTuple(types.float32, 4)
        kinds = (a, at, at, b, at, at, a_scales, at, at, b_scales, b_sums, at)
        return result(*kinds), generate

    return products4


def _load(builder, base, index, kind, count):
    """`count` neighbours of an array, from `index` on, as a vector."""
    address = builder.gep(base, [index])
    address = builder.bitcast(address, ir.VectorType(kind, count).as_pointer())
    return builder.load(address, align=1 if kind == _I8 else 4)


def _load4(builder, base, index, step):
    """Four float32, `step` apart, as a vector."""
    vector = ir.Constant(ir.VectorType(_F32, 4), ir.Undefined)
    for k in range(4):
        number = builder.load(builder.gep(base, [index]))
        vector = builder.insert_element(vector, number, ir.Constant(_I32, k))
        index = builder.add(index, step)
    return vector


def _add_lanes(builder, sums):
    """Four vectors to one of four: lane k is the sum of the lanes of sums[k]."""

    def pick(a, b, lanes):
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))

    def pairs(a, b):
        """Sums of neighbours, within each four lanes: two of a, then two of b."""
        count = a.type.count
        fours = range(0, count, 4)
        even = [four + lane for four in fours for lane in (0, 2, count, count + 2)]
        odd = [lane + 1 for lane in even]
        return builder.add(pick(a, b, even), pick(a, b, odd))

    total = pairs(pairs(sums[0], sums[1]), pairs(sums[2], sums[3]))
    while (half := total.type.count // 2) >= 4:
        low, high = list(range(half)), list(range(half, 2 * half))
        total = builder.add(pick(total, total, low), pick(total, total, high))
    return total


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _chosen():
    wanted, possible = os.environ.get("LLAMA2NP_INT8"), flavours()
    if wanted and wanted not in possible:
        raise ValueError(f"LLAMA2NP_INT8={wanted}: this machine has {', '.join(possible)}")
    return wanted or possible[0]


FLAVOUR = _chosen()
