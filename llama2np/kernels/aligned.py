"""Arrays that begin where a line of the CPU's cache does.

A vector of AVX-512 is as long as a line. Where it lies across two, both are read: with arrays where
NumPy puts large ones, 16 bytes behind the beginning of a line, attention took a quarter longer.
"""

import math
from typing import Any

import numpy as np

_LINE = 64  # bytes


def aligned_zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """np.zeros(shape, dtype), with its first value at the beginning of a line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(dtype).reshape(shape)
