"""`python -m llama2np.bench.sgemm`: print the flop/s of NumPy's matrix product in float32.

machine.py runs it in a separate process.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np

_SIZE = 1024


def flops(size: int = _SIZE, repeats: int = 15) -> float:
    """Operations per second: the median for products of square matrices of that size."""
    a = np.ones((size, size), np.float32)
    out, seconds = np.empty_like(a), []
    np.matmul(a, a, out=out)  # starts the threads
    for _ in range(repeats):
        start = time.perf_counter()
        np.matmul(a, a, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / median(seconds)


if __name__ == "__main__":
    print(flops())
