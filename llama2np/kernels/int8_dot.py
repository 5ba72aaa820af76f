"""The innermost loop of int8 inference: 32 or 64 products of int8, summed in int32.

LLVM reaches the CPU's wide instructions from a plain loop only by luck, so they are asked for by
name. All flavours give the same integers. Which one is used is settled here, once, from the CPU's
features; LLAMA2NP_INT8=portable (or vnni, avx2, sdot) overrides that.
"""

import os

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from llama2np.kernels.jit import exact

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


def _vpdpwssd(builder, total, a, b):
    """AVX-512 VNNI: total + products of 32 int16, pairs of neighbours summed."""
    a, b = (builder.bitcast(builder.sext(v, ir.VectorType(_I16, 32)), total.type) for v in (a, b))
    return _call(builder, "llvm.x86.avx512.vpdpwssd.512", total.type, total, a, b)


def _pmaddwd(builder, total, a, b):
    """AVX2: products of 16 int16, pairs of neighbours summed."""
    a, b = (builder.sext(v, ir.VectorType(_I16, 16)) for v in (a, b))
    return builder.add(total, _call(builder, "llvm.x86.avx2.pmadd.wd", total.type, a, b))


def _sdot(builder, total, a, b):
    """Arm's dot product: total + products of 16 int8, fours of neighbours summed. Untried."""
    return _call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, a, b)


# flavour: (CPU feature, instruction, int8 values it takes, int32 sums it gives); the best first
_WIDE = {
    "vnni": ("avx512vnni", _vpdpwssd, 32, 16),
    "avx2": ("avx2", _pmaddwd, 16, 8),
    "sdot": ("dotprod", _sdot, 16, 4),
}


def flavours():
    """The flavours that this CPU, as numba compiles for it, can run; the best first."""
    if config.DISABLE_JIT:
        return ["portable"]
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return [name for name, (need, *_) in _WIDE.items() if "+" + need in features] + ["portable"]


def dots(flavour):
    """Two functions (a, b, start) -> int32: sums of a[i] * b[i] over 32 and over 64 values.

    a, b: (n,) int8; the values begin at index `start`.
    """
    make = _portable_dot if flavour == "portable" else _wide_dot
    return make(flavour, 32), make(flavour, 64)


def _portable_dot(_flavour, size):
    size = np.uint64(size)

    @exact
    def dot(a, b, start):
        total = np.int32(0)
        # An index without a sign needs no test for being negative: the loop becomes vectors.
        for i in range(np.uint64(start), np.uint64(start) + size):
            total = np.int32(total + np.int32(a[i]) * np.int32(b[i]))
        return total

    return dot


def _wide_dot(flavour, size):
    _, instruction, width, lanes = _WIDE[flavour]
    sums = ir.VectorType(_I32, lanes)

    def generate(context, builder, signature, arguments):
        *arrays, start = arguments
        total = ir.Constant(sums, [0] * lanes)
        rows = [
            builder.gep(context.make_array(kind)(context, builder, array).data, [start])
            for kind, array in zip(signature.args, arrays, strict=False)
        ]
        for offset in range(0, size, width):
            at = ir.Constant(start.type, offset)
            pointers = [builder.gep(row, [at]) for row in rows]
            vectors = ir.VectorType(_I8, width).as_pointer()
            values = [builder.load(builder.bitcast(p, vectors), align=1) for p in pointers]
            total = instruction(builder, total, *values)
        return _call(builder, f"llvm.vector.reduce.add.v{lanes}i32", _I32, total)

    @intrinsic
    def dot(_typing_context, a, b, start):
        return types.int32(a, b, types.intp), generate

    return dot


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _chosen():
    wanted = os.environ.get("LLAMA2NP_INT8")
    possible = flavours()
    if wanted and wanted not in possible:
        raise ValueError(f"LLAMA2NP_INT8={wanted}: this machine has {', '.join(possible)}")
    return wanted or possible[0]


FLAVOUR = _chosen()
dot32, dot64 = dots(FLAVOUR)
