"""The CPU's instruction for products of int8, called by its name.

LLVM seldom finds such instructions for a plain loop. Each takes int8 by fours: it adds to every
int32 of a vector the sum of four products. All instruction sets give the same bits. The one that is
used is chosen here, once, from the CPU's features; LLAMA2NP_INT8=portable (or vnni, avx2, sdot)
overrides that.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir

from llama2np.kernels.runtime.jit import PLAIN, cpu_has
from llama2np.kernels.runtime.vectors import I8, I16, call, same


def _vpdpbusd(builder, total, a, b):
    """AVX-512 VNNI: unsigned times signed."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * total.type.count}"
    a, b = builder.bitcast(a, total.type), builder.bitcast(b, total.type)
    return call(builder, name, total.type, total, a, b)


def _vpmaddubsw(builder, total, a, b):
    """AVX2: unsigned times signed, |a| times b with a's sign. No b may be -128."""
    int8s, int16s = ir.VectorType(I8, 32), ir.VectorType(I16, 16)
    size = call(builder, "llvm.abs.v32i8", int8s, a, ir.Constant(ir.IntType(1), 0))
    signed = call(builder, "llvm.x86.avx2.psign.b", int8s, b, a)
    twos = call(builder, "llvm.x86.avx2.pmadd.ub.sw", int16s, size, signed)
    fours = call(builder, "llvm.x86.avx2.pmadd.wd", total.type, twos, same(int16s, 1))
    return builder.add(total, fours)


def _sdot(builder, total, a, b):
    """Arm's dot product. Untested: no such machine was available."""
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, a, b)


class Isa(NamedTuple):
    """An instruction (builder, total, a, b) -> total + a * b, summed by fours.

    total: a vector of `lanes` int32 (vnni takes half as many too), a, b: of four times as many
    int8; a must be made from int8 by `biased`. So each sum is too large by `bias` times that of b.
    """

    feature: str  # of the CPU, in LLVM's words
    instruction: Callable
    lanes: int
    bias: int  # 128 where the instruction wants a without a sign, or 0

    def biased(self, builder, four):
        """A word of four int8, or a vector of such words, with the bias added to each int8.

        Bias a word before it is spread over a vector: LLVM 22 never ends with the other order.
        """
        flip = 0x80808080 - 2**32 if self.bias else 0
        vector = isinstance(four.type, ir.VectorType)
        return builder.xor(four, same(four.type, flip) if vector else ir.Constant(four.type, flip))


ISAS = {
    "vnni": Isa("avx512vnni", _vpdpbusd, 16, 128),
    "avx2": Isa("avx2", _vpmaddubsw, 8, 0),
    "sdot": Isa("dotprod", _sdot, 4, 0),
}  # the best first


def usable():
    """The instruction sets that this CPU, as numba compiles for it, can run; the best first."""
    wide = [] if PLAIN else [name for name in ISAS if cpu_has(ISAS[name].feature)]
    return [*wide, "portable"]


def _chosen():
    wanted, possible = os.environ.get("LLAMA2NP_INT8"), usable()
    if wanted and wanted not in possible:
        raise ValueError(f"LLAMA2NP_INT8={wanted}: this machine has {', '.join(possible)}")
    return wanted or possible[0]


ISA = _chosen()
