"""Arrays by their addresses, so that a network of any depth is one argument of a kernel.

numba unpacks each array of a call anew. With nine matrices and norms for each layer that took a
third of the time of a small network.
"""

import ctypes

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from llama2np.kernels.jit import inner

# What stands where in a layer's row of the table, and in the row of what is not in a layer.
PLACES = ("attn_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w_gate", "w_up", "w_down")
ENDS = ("embedding", "final_norm", "classifier")
ATTN_NORM, WQ, WK, WV, WO, FFN_NORM, W_GATE, W_UP, W_DOWN = range(len(PLACES))
EMBEDDING, FINAL_NORM, CLASSIFIER = range(len(ENDS))

if numba.config.DISABLE_JIT:

    def _pointer(address):
        return ctypes.c_void_p(int(address))

else:

    @intrinsic
    def _pointer(_context, address):
        """The address as carray wants it."""

        def generate(_context, builder, _signature, arguments):
            return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

        return types.voidptr(address), generate


@inner
def norm_at(place, n):
    """The norm (n,) float32 of a place in `Weights.addresses`."""
    return carray(_pointer(place[0]), (n,), np.float32)


@inner
def float32_at(place, d, n):
    """The matrix (d, n) of a place in `Weights.addresses`, as multiply.py takes it."""
    return (carray(_pointer(place[0]), (d, n), np.float32),)


@inner
def int8_at(place, d, n):
    """The same for a Q8_0 matrix."""
    q = carray(_pointer(place[0]), (d, n), np.int8)
    return q, carray(_pointer(place[1]), (d, n // place[2]), np.float32)
