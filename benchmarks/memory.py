"""How fast this machine reads memory: the ceiling of generation, which reads every weight."""

from __future__ import annotations

import time
from statistics import median

import numba
import numpy as np


@numba.njit(parallel=True, fastmath=True)
def _sums(rows, out):
    for i in numba.prange(rows.shape[0]):
        total = np.float32(0)
        row = rows[i]
        for j in range(row.shape[0]):
            total += row[j]
        out[i] = total


def read_speed(gigabytes: float = 0.5, repeats: int = 15) -> float:
    """Return bytes per second, the median of `repeats` sums over an array no cache can hold.

    The median, because what it is held against is a mean over many tokens too.
    """
    rows = np.ones((1024, int(gigabytes * 2**30) // 4096), np.float32)
    out, seconds = np.zeros(len(rows), np.float32), []
    _sums(rows[:2], out)
    for _ in range(repeats):
        start = time.perf_counter()
        _sums(rows, out)
        seconds.append(time.perf_counter() - start)
    return rows.nbytes / median(seconds)
