"""LLVM's vectors by name, for the innermost loops that its own vectoriser does not find.

Helpers for the bodies of numba intrinsics: `builder` is llvmlite's, `base` a pointer to numbers,
`index` and `step` are LLVM integers. A vector may stand at any address.
"""

from llvmlite import ir
from numba.core import cgutils

# Bytes of a matrix that are asked for ahead of their use, so that memory works while the CPU does.
AHEAD = 2048

I8, I16, I32, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


def data_of(context, builder, signature, arguments, *places):
    """The pointers to the values of the arrays at these places among the arguments."""
    return [
        context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in places
    ]


def same(vector, value):
    """A constant vector of this type with `value` in every lane."""
    return ir.Constant(vector, [value] * vector.count)


def spread(builder, value, vector):
    """A vector of this type with the number `value` in every lane."""
    lone = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(lone, lone, same(ir.VectorType(I32, vector.count), 0))


def load(builder, base, index, vector):
    """A vector of this type from base[index] and its neighbours."""
    return builder.load(_address(builder, base, index, vector), align=1)


def load_first(builder, base, index, vector, count):
    """The same for its first `count` lanes, with zeros in the others. Nothing behind is read."""
    numbers = ir.VectorType(I32, vector.count)
    lane = ir.Constant(numbers, list(range(vector.count)))
    count = builder.trunc(count, I32) if count.type != I32 else count
    mask = builder.icmp_signed("<", lane, spread(builder, count, numbers))
    address, name = (
        _address(builder, base, index, vector),
        f"llvm.masked.load.v{vector.count}f32.p0",
    )
    return call(builder, name, vector, address, ir.Constant(I32, 1), mask, same(vector, 0.0))


def store(builder, value, base, index):
    """Put a vector into base[index] and its neighbours."""
    builder.store(value, _address(builder, base, index, value.type), align=1)


def prefetch(builder, base, index):
    """Ask for the 64 bytes about base[index], which may be behind the end of the array."""
    address = builder.bitcast(builder.gep(base, [index]), I8.as_pointer())
    read, soon, data = ir.Constant(I32, 0), ir.Constant(I32, 3), ir.Constant(I32, 1)
    call(builder, "llvm.prefetch.p0", ir.VoidType(), address, read, soon, data)


def _address(builder, base, index, vector):
    return builder.bitcast(builder.gep(base, [index]), vector.as_pointer())


def stepped(builder, index, step, count):
    """index + step * count. count is a Python integer; step may be one too."""
    step = ir.Constant(index.type, step) if isinstance(step, int) else step
    return builder.add(index, builder.mul(step, ir.Constant(index.type, count)))


def call(builder, name, result, *arguments):
    """Call an LLVM function, mostly an instruction of one CPU, by its name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def cells(builder, zero, *shape):
    """Accumulators that LLVM keeps in registers: {index: pointer}, each holding `zero`."""
    rows, columns = shape
    held = {}
    for index in ((r, v) for r in range(rows) for v in range(columns)):
        held[index] = cgutils.alloca_once(builder, zero.type)
        builder.store(zero, held[index])
    return held
