"""The CPU's instructions for int8 dot products, called by name.

LLVM seldom generates such instructions from a plain loop. Each adds to every int32 lane of a vector
the sum of four products of int8. All instruction sets give the same bits. One is chosen here, once,
from the CPU's features; LLAMA2NP_INT8=portable (or vnni, avxvnni, avx2, sdot) overrides the choice.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir

from llama2np.kernels.runtime.jit import PLAIN, cpu_has
from llama2np.kernels.runtime.vectors import I8, I16, I32, call, pick, same, spread


def _vpdpbusd(builder, total, a, b):
    """AVX-512 VNNI, and AVX-VNNI for half the lanes: unsigned times signed."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * total.type.count}"
    a, b = builder.bitcast(a, total.type), builder.bitcast(b, total.type)
    return call(builder, name, total.type, total, a, b)


def _vpmaddubsw(builder, total, a, b):
    """AVX2: unsigned times signed, so it multiplies |a| by b with a's sign. b must not be -128."""
    int8s, int16s = ir.VectorType(I8, 32), ir.VectorType(I16, 16)
    size = call(builder, "llvm.abs.v32i8", int8s, a, ir.Constant(ir.IntType(1), 0))
    signed = call(builder, "llvm.x86.avx2.psign.b", int8s, b, a)
    twos = call(builder, "llvm.x86.avx2.pmadd.ub.sw", int16s, size, signed)
    fours = call(builder, "llvm.x86.avx2.pmadd.wd", total.type, twos, same(int16s, 1))
    return builder.add(total, fours)


def _small_vpmaddubsw(builder, total, a, b):
    """AVX2 for a of 0 to 63: two products fit into an int16."""
    int16s = ir.VectorType(I16, 16)
    twos = call(builder, "llvm.x86.avx2.pmadd.ub.sw", int16s, a, b)
    fours = call(builder, "llvm.x86.avx2.pmadd.wd", total.type, twos, same(int16s, 1))
    return builder.add(total, fours)


def _sdot(builder, total, a, b):
    """Arm's dot product. Untested: no such machine was available."""
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, a, b)


def _multiply(builder, total, a, b):
    """Any CPU: LLVM chooses the instructions. b must not be -128."""
    wide = ir.VectorType(I16, a.type.count)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    twos = builder.add(*(pick(builder, products, products, range(i, 16, 2)) for i in (0, 1)))
    twos = builder.sext(twos, ir.VectorType(I32, 8))
    fours = builder.add(*(pick(builder, twos, twos, range(i, 8, 2)) for i in (0, 1)))
    return builder.add(total, fours)


def _pshufb(builder, table, indices):
    """SSSE3, AVX2, AVX-512: in each 16 bytes."""
    count = indices.type.count
    name = {16: "ssse3.pshuf.b.128", 32: "avx2.pshuf.b", 64: "avx512.pshuf.b.512"}[count]
    whole = ir.Constant(indices.type, list(table) * (count // 16))
    return call(builder, f"llvm.x86.{name}", indices.type, whole, indices)


def _tbl(builder, table, indices):
    """Arm. Untested, as _sdot."""
    whole = ir.Constant(indices.type, list(table))
    return call(builder, "llvm.aarch64.neon.tbl1.v16i8", indices.type, whole, indices)


def _select(builder, table, indices):
    """Any CPU: each bit of an index, from the lowest on, chooses half of the remaining values."""
    found = [same(indices.type, value) for value in table]
    for bit in (1, 2, 4, 8):
        masked = builder.and_(indices, same(indices.type, bit))
        is_set = builder.icmp_unsigned("!=", masked, same(indices.type, 0))
        pairs = zip(found[1::2], found[::2], strict=True)
        found = [builder.select(is_set, *pair) for pair in pairs]
    return found[0]


_FLIP = 0x80808080 - 2**32  # xored with a word, it adds 128 to each of its four bytes


class Isa(NamedTuple):
    """An instruction (builder, total, a, b) -> total + a * b; each lane adds four products.

    total: a vector of `lanes` int32 (vnni also allows half of them); a, b: vectors of four times as
    many int8. a must be the result of `biased`. So each sum is too large by `bias` * sum(b).
    """

    feature: str  # of the CPU, by LLVM's name
    instruction: Callable
    lanes: int
    bias: int  # 128 if the instruction treats a as unsigned, else 0
    # The same for a of 0 to 63, which need no `biased`, and 16 int8 picked by indices of 0 to 15:
    # (builder, table, indices), for vectors of 4 * lanes. int8 matrices do not use these.
    small: Callable
    lookup: Callable

    def biased(self, builder, words):
        """A vector of words of four int8, with the bias added to each int8."""
        return builder.xor(words, same(words.type, _FLIP if self.bias else 0))

    def spread(self, builder, word, vector):
        """A vector of this type with a word of four int8 in every lane, and the bias added.

        LLVM 22 never terminates if such a vector is xored with a constant. So an empty piece of
        assembly hides that the other vector is a constant. Adding the bias to the word before is
        slower.
        """
        words = spread(builder, word, vector)
        if not self.bias:
            return words
        kind = ir.FunctionType(vector, [vector])
        return builder.xor(words, builder.asm(kind, "", "=v,0", [same(vector, _FLIP)], False))


ISAS = {
    "vnni": Isa("avx512vnni", _vpdpbusd, 16, 128, _vpdpbusd, _pshufb),
    "avxvnni": Isa("avxvnni", _vpdpbusd, 8, 128, _vpdpbusd, _pshufb),
    "avx2": Isa("avx2", _vpmaddubsw, 8, 0, _small_vpmaddubsw, _pshufb),
    "sdot": Isa("dotprod", _sdot, 4, 0, _sdot, _tbl),
}  # the best first
# Without instructions of a certain CPU. int8 matrices use plain loops instead.
PORTABLE = Isa("", _multiply, 4, 0, _multiply, _select)


def usable():
    """The instruction sets of this CPU, as numba compiles for it; the best first."""
    wide = [] if PLAIN else [name for name in ISAS if cpu_has(ISAS[name].feature)]
    return [*wide, "portable"]


def _chosen():
    wanted, possible = os.environ.get("LLAMA2NP_INT8"), usable()
    if wanted and wanted not in possible:
        raise ValueError(f"LLAMA2NP_INT8={wanted}: this machine has {', '.join(possible)}")
    return wanted or possible[0]


ISA = _chosen()
