"""How fast this machine reads memory: the ceiling of generation, which reads every weight."""

from __future__ import annotations

import time

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


def read_speed(gigabytes: float = 0.5, repeats: int = 5) -> float:
    """Return bytes per second, the best of `repeats` sums over an array no cache can hold."""
    rows = np.ones((1024, int(gigabytes * 2**30) // 4096), np.float32)
    out, best = np.zeros(len(rows), np.float32), float("inf")
    _sums(rows[:2], out)
    for _ in range(repeats):
        start = time.perf_counter()
        _sums(rows, out)
        best = min(best, time.perf_counter() - start)
    return rows.nbytes / best
