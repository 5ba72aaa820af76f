"""Arrays at a given address, for the kernels."""

import ctypes

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import np_cfarray

from llama2np.kernels.runtime.jit import inner

if numba.config.DISABLE_JIT:

    def array_at(address, shape, dtype):
        """An array of this shape, a tuple, and this dtype, a constant."""
        return carray(ctypes.c_void_p(int(address)), shape, dtype)

    def copy(target, source, count):
        """Copy `count` bytes from one address to another."""
        ctypes.memmove(int(target), int(source), int(count))

else:

    @intrinsic
    def array_at(_context, address, shape, dtype):
        """An array of this shape, a tuple, and this dtype, a constant.

        As numba's carray, which would be compiled once more for each dtype.
        """

        def generate(context, builder, signature, arguments):
            made = types.voidptr, *signature.args[1:]
            address = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
            signature = signature.return_type(*made)
            return np_cfarray(context, builder, signature, [address, *arguments[1:]])

        return types.Array(dtype.dtype, len(shape), "C")(address, shape, dtype), generate

    @intrinsic
    def copy(_context, target, source, count):
        """Copy `count` bytes from one address to another."""

        def generate(context, builder, _signature, arguments):
            *addresses, size = arguments
            ends = [builder.inttoptr(each, ir.IntType(8).as_pointer()) for each in addresses]
            cgutils.raw_memmove(builder, *ends, size, 1)
            return context.get_dummy_value()

        return types.void(target, source, count), generate


# The address must be aligned, and the memory must exist as long as the array is used.


@inner
def int64s(address, count):
    """(count,) int64."""
    return array_at(address, (count,), np.int64)


@inner
def vector(address, count):
    """(count,) float32."""
    return array_at(address, (count,), np.float32)


@inner
def floats(address, rows, n):
    """(rows, n) float32."""
    return array_at(address, (rows, n), np.float32)


@inner
def bytes_(address, count):
    """(count,) uint8."""
    return array_at(address, (count,), np.uint8)


@inner
def int8s(address, rows, n):
    """(rows, n) int8."""
    return array_at(address, (rows, n), np.int8)


@inner
def int32s(address, rows, n):
    """(rows, n) int32."""
    return array_at(address, (rows, n), np.int32)


@inner
def int16s(address, rows, n):
    """(rows, n) int16: the bits of float16 or bfloat16."""
    return array_at(address, (rows, n), np.int16)
