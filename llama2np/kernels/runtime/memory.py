"""Arrays at a given address, for the kernels."""

import ctypes

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.runtime.jit import inner

if numba.config.DISABLE_JIT:

    def pointer(address):
        """The address as the pointer that `carray` requires."""
        return ctypes.c_void_p(int(address))

    def copy(target, source, count):
        """Copy `count` bytes from one address to another."""
        ctypes.memmove(int(target), int(source), int(count))

else:

    @intrinsic
    def pointer(_context, address):
        """The address as the pointer that `carray` requires."""

        def generate(_context, builder, _signature, arguments):
            return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

        return types.voidptr(address), generate

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
    return carray(pointer(address), (count,), np.int64)


@inner
def vector(address, count):
    """(count,) float32."""
    return carray(pointer(address), (count,), np.float32)


@inner
def floats(address, rows, n):
    """(rows, n) float32."""
    return carray(pointer(address), (rows, n), np.float32)


@inner
def bytes_(address, count):
    """(count,) uint8."""
    return carray(pointer(address), (count,), np.uint8)


@inner
def int8s(address, rows, n):
    """(rows, n) int8."""
    return carray(pointer(address), (rows, n), np.int8)


@inner
def int32s(address, rows, n):
    """(rows, n) int32."""
    return carray(pointer(address), (rows, n), np.int32)


@inner
def int16s(address, rows, n):
    """(rows, n) int16: the bits of float16 or bfloat16."""
    return carray(pointer(address), (rows, n), np.int16)
