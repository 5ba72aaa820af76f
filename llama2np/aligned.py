"""Arrays whose data begin at a cache line of the CPU."""

import math
from typing import Any

import numpy as np

_LINE = 64  # bytes of a cache line, and of an AVX-512 vector


def aligned_zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """np.zeros(shape, dtype) whose first value is at the beginning of a cache line.

    A vector that crosses the border of two lines costs two reads. NumPy places large arrays 16
    bytes after the beginning of a line; attention took a quarter longer with them.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    aligned: np.ndarray = memory[start : start + size].view(dtype).reshape(shape)
    return aligned
