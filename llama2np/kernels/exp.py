"""e**x that LLVM can make vectors of."""

import numpy as np

from llama2np.kernels.jit import inner

_ROUND = 1.5 * 2**52  # adding it to a float64 leaves the nearest integer in the low bits
_ROUND_BITS = 0x4338000000000000


# Multiply-adds may be fused: float64 has bits to spare.
@inner(fastmath={"contract"})
def exp(x):
    """Return e**x of a float32, rounded from float64. A call into libm would not be vectorised.

    x = n ln 2 + r with |r| <= ln 2 / 2, then Taylor's polynomial for e**r: relative error 1e-11.
    """
    if x < np.float32(-110):  # 0 in float32
        x = np.float32(-110)
    if x > np.float32(90):  # inf in float32
        x = np.float32(90)
    y = np.float64(x)
    shifted = np.float64(y * 1.4426950408889634 + _ROUND)
    r = y - (shifted - _ROUND) * 0.6931471805599453
    r2 = r * r
    r4 = r2 * r2
    low = (1 + r) + r2 * (1 / 2 + r * (1 / 6))
    high = (1 / 24 + r * (1 / 120)) + r2 * (1 / 720 + r * (1 / 5040))
    p = low + r4 * (high + r4 * (1 / 40320 + r * (1 / 362880)))
    power = np.int64((shifted.view(np.int64) - _ROUND_BITS + 1023) << 52)  # the bits of 2**n
    return np.float32(p * power.view(np.float64))
