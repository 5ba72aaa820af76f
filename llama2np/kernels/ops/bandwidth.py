"""Reading memory and nothing else: what generation is held against."""

import numpy as np
from numba import prange

from llama2np.kernels.runtime.jit import kernel


@kernel(parallel=True)
def row_sums(rows, out):
    """out[i] = the sum of row i. rows: (n, width), out: (n,) float32; threads share the rows."""
    for i in prange(rows.shape[0]):
        row, total = rows[i], np.float32(0)
        for k in range(row.shape[0]):  # by index: over the values, LLVM makes no vectors of it
            total += row[k]
        out[i] = total
