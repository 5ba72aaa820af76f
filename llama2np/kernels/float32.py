"""The float32 loops of the forward pass, but for attention.

Arrays are C-contiguous float32, activations have a row for each token: (T, ...). `out` comes last;
without `out` a kernel works in place. Nothing here allocates, checks or knows a model. A threaded
kernel is one of its own, because numba's disk cache cannot tell apart one body that is compiled
with two sets of flags (numba #6845).

All but the matrix products add in run.c's order, so that int8 models, where the last bit of an
activation can decide how it is rounded, give runq.c's numbers.
"""

import numpy as np
from numba import prange

from llama2np.kernels.exp import exp
from llama2np.kernels.jit import exact, kernel


@kernel
def dot(a, b):
    """Return the sum of a * b. a, b: (n,)."""
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@kernel
def matmul(w, x, out):
    """out = x @ w.T. w: (d, n), x: (T, n), out: (T, d).

    Rows by fours share the loads of x: that pays for matrices that stay in the cache. Larger ones
    are read faster row by row, as memory has them.
    """
    d, n = w.shape
    for t in range(x.shape[0]):
        for i in range(0, d // 4 * 4, 4):
            a = b = c = e = np.float32(0)
            for k in range(n):
                a += w[i, k] * x[t, k]
                b += w[i + 1, k] * x[t, k]
                c += w[i + 2, k] * x[t, k]
                e += w[i + 3, k] * x[t, k]
            out[t, i], out[t, i + 1], out[t, i + 2], out[t, i + 3] = a, b, c, e
        for i in range(d // 4 * 4, d):
            out[t, i] = dot(w[i], x[t])


@kernel(parallel=True)
def matmul_threaded(w, x, out):
    """out = x @ w.T with the rows of w shared among threads. Shapes as in `matmul`."""
    for i in prange(w.shape[0]):
        for t in range(x.shape[0]):
            out[t, i] = dot(w[i], x[t])


@exact
def add(x, h):
    """x += h. x, h: (T, dim)."""
    for t in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[t, i] += h[t, i]


@exact
def rmsnorm(x, weight, eps, out):
    """out = weight * x / sqrt(mean(x**2) + eps), by rows. x, out: (T, dim), weight: (dim,)."""
    for t in range(x.shape[0]):
        squares = np.float32(0)
        for i in range(x.shape[1]):
            squares += x[t, i] * x[t, i]
        scale = np.float32(1) / np.sqrt(squares / np.float32(x.shape[1]) + eps)
        for i in range(x.shape[1]):
            out[t, i] = weight[i] * (scale * x[t, i])


@exact
def swiglu(gate, up):
    """gate = silu(gate) * up (Shazeer 2020). gate, up: (T, hidden_dim)."""
    for t in range(gate.shape[0]):
        for i in range(gate.shape[1]):
            value = gate[t, i]
            gate[t, i] = value * (np.float32(1) / (np.float32(1) + exp(-value))) * up[t, i]


@exact
def softmax(logits, temperature, out):
    """out = softmax(logits / temperature), in run.c's order of additions. logits, out: (n,)."""
    top = np.float32(-np.inf)
    for i in range(logits.shape[0]):
        out[i] = logits[i] / temperature
        top = max(top, out[i])
    for i in range(logits.shape[0]):
        out[i] = exp(out[i] - top)
    total = np.float32(0)
    for i in range(logits.shape[0]):
        total += out[i]
    for i in range(logits.shape[0]):
        out[i] /= total
