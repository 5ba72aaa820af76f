"""LLVM's vector instructions, for inner loops that its own vectorizer does not vectorize.

Helpers for the bodies of numba intrinsics: `builder` is llvmlite's, `base` a pointer to numbers,
`index` and `step` are LLVM integers. A vector may be at any address.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.runtime.jit import inner

AHEAD = 1024  # the prefetch distance in the rows of a matrix, in bytes

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32 = ir.FloatType()


def data_of(context, builder, signature, arguments, *places):
    """The pointers to the values of the arrays at these indices of the arguments."""
    return [
        context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in places
    ]


def const(number):
    """An int64."""
    return ir.Constant(I64, number)


def hidden(builder, number):
    """The same integer, but LLVM does not know that it is constant: an empty piece of assembly."""
    kind = ir.FunctionType(number.type, [number.type])
    return builder.asm(kind, "", "=r,0", [number], False)


def same(vector, value):
    """A constant vector of this type with `value` in every lane."""
    return ir.Constant(vector, [value] * vector.count)


def spread(builder, value, vector):
    """A vector of this type with the number `value` in every lane."""
    lone = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(lone, lone, same(ir.VectorType(I32, vector.count), 0))


def load(builder, base, index, vector):
    """A vector of this type with the values from base[index] on."""
    return builder.load(_address(builder, base, index, vector), align=1)


def load_first(builder, base, index, vector, count):
    """The same for the first `count` lanes; the others are zero, and their memory is not read."""
    numbers = ir.VectorType(I32, vector.count)
    lane = ir.Constant(numbers, list(range(vector.count)))
    count = builder.trunc(count, I32) if count.type != I32 else count
    mask = builder.icmp_signed("<", lane, spread(builder, count, numbers))
    address = _address(builder, base, index, vector)
    kind = "f32" if vector.element == F32 else f"i{vector.element.width}"
    name = f"llvm.masked.load.v{vector.count}{kind}.p0"
    zeros = ir.Constant(vector, None)
    return call(builder, name, vector, address, ir.Constant(I32, 1), mask, zeros)


def store(builder, value, base, index):
    """Store a vector from base[index] on."""
    builder.store(value, _address(builder, base, index, value.type), align=1)


def prefetch(builder, base, index):
    """Prefetch the cache line of base[index], which may be after the end of the array.

    The line gets into the L2 cache. A CPU waits for more lines at once for L2 than for L1, so that
    one thread reads a matrix from memory 10 % faster.
    """
    address = builder.bitcast(builder.gep(base, [index]), I8.as_pointer())
    read, level, data = ir.Constant(I32, 0), ir.Constant(I32, 2), ir.Constant(I32, 1)
    call(builder, "llvm.prefetch.p0", ir.VoidType(), address, read, level, data)


def _address(builder, base, index, vector):
    return builder.bitcast(builder.gep(base, [index]), vector.as_pointer())


def pick(builder, a, b, lanes):
    """The lanes of a and b with these numbers; the lanes of b have the numbers after a's."""
    lanes = list(lanes)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def concat(builder, parts):
    """Vectors as one, in their order. Their number is a power of two."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [pick(builder, a, b, range(2 * a.type.count)) for a, b in pairs]
    return parts[0]


def stepped(builder, index, step, count):
    """index + step * count. count is a Python integer; step may be one too."""
    step = ir.Constant(index.type, step) if isinstance(step, int) else step
    return builder.add(index, builder.mul(step, ir.Constant(index.type, count)))


def call(builder, name, result, *arguments):
    """Call an LLVM function by its name: mostly an instruction of certain CPUs."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def cells(builder, zero, *shape):
    """Accumulators that LLVM keeps in registers: {index: pointer}, each initialized to `zero`."""
    rows, columns = shape
    held = {}
    for index in ((r, v) for r in range(rows) for v in range(columns)):
        held[index] = cgutils.alloca_once(builder, zero.type)
        builder.store(zero, held[index])
    return held


if numba.config.DISABLE_JIT:

    def half(value):
        """The float32 of a float16 whose bits are an int16, or of an array of them."""
        return value.view(np.float16).astype(np.float32)

    def bfloat16(value):
        """The float32 of a bfloat16 whose bits are an int16, or of an array of them."""
        return (value.astype(np.int32) << 16).view(np.float32)

else:

    @intrinsic
    def half(_context, value):
        """The float32 of a float16 whose bits are an int16."""

        def generate(_context, builder, _signature, arguments):
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), F32)

        return types.float32(types.int16), generate

    @inner(forceinline=True)
    def bfloat16(value):
        """The float32 of a bfloat16 whose bits are an int16."""
        bits = np.int32(np.int32(value) << np.int32(16))
        return bits.view(np.float32)
