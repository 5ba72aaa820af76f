"""e**x and the maximum of many values, in forms that LLVM vectorizes."""

import numpy as np

from llama2np.kernels.runtime.jit import inner

_ROUND = 1.5 * 2**52  # added to a float64, it leaves the nearest integer in the low bits
_ROUND_BITS = 0x4338000000000000


# Multiply-adds may be fused: float64 is precise enough.
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


@inner
def _sortable(bits):
    """The bits of a float32 as an int32 with the same order, and back; nan is an extreme value."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@inner
def _largest(x, n):
    """The largest of the first n values of x (capacity,), in the form of `_sortable`."""
    top = np.int32(-(2**31))
    for i in range(n):  # LLVM may vectorize a maximum of integers, but not of floats
        value = np.float32(x[i])
        top = np.int32(max(top, _sortable(value.view(np.int32))))
    return top


@inner
def argmax(x):
    """The first index of the maximum of x (n,). It is any index if x has nan, or 0 and -0."""
    top = _largest(x, x.shape[0])
    for i in range(x.shape[0]):
        value = np.float32(x[i])
        if _sortable(value.view(np.int32)) == top:
            return i
    return 0


@inner
def exps(x, n, temperature):
    """x = e**(y - max(y)) with y = x / temperature, for the first n values of x (capacity,)."""
    for i in range(n):
        x[i] /= temperature
    largest = np.int32(_sortable(_largest(x, n)))
    for i in range(n):
        x[i] = exp(x[i] - largest.view(np.float32))
