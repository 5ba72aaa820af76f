"""A benchmark of read bandwidth, as STREAM's: the upper bound of generation speed."""

import numpy as np

from llama2np.kernels.runtime.jit import kernel
from llama2np.kernels.runtime.memory import vector
from llama2np.kernels.runtime.op import op


@kernel
def _sum(row):
    total = np.float32(0)
    for k in range(row.shape[0]):  # LLVM vectorizes a loop over indices, but not one over values
        total += row[k]
    return total


@op("x out")
def row_sums(s, run, first, last, scratch):
    """out[i] = the sum of row i of x, (rows, n) at an address. A unit is a row."""
    out = vector(s["out"], last)
    for i in range(first, last):
        out[i] = _sum(vector(s["x"] + 4 * s["n"] * i, s["n"]))
