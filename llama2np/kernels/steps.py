"""The steps between the matrices: what works on activations, value by value.

Arrays are C-contiguous float32, with a row for each token: (T, ...). `out` comes last; without
`out` a kernel works in place. Nothing here allocates, checks or knows a model.

All of it adds in run.c's order, so that int8 models, where the last bit of an activation can decide
how it is rounded, give runq.c's numbers.
"""

import numpy as np

from llama2np.kernels.exp import exp
from llama2np.kernels.jit import exact, inner


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


@inner
def _sortable(bits):
    """The bits of a float32 as an int32 that sorts as the float does, and back; nan is extreme."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@inner
def _largest(x, n):
    """The largest of the first n of x (capacity,), sortable."""
    top = np.int32(-(2**31))
    for i in range(n):  # of integers: LLVM makes vectors of it, as it may not of floats
        value = np.float32(x[i])
        top = np.int32(max(top, _sortable(value.view(np.int32))))
    return top


@inner
def likeliest(logits):
    """The first of the largest of logits (n,); any of them where there are nans or two zeros."""
    top = _largest(logits, logits.shape[0])
    for i in range(logits.shape[0]):
        value = np.float32(logits[i])
        if _sortable(value.view(np.int32)) == top:
            return i
    return 0


@inner
def exps(x, n, temperature):
    """x = e**(x / temperature - the largest of these), for the first n of x (capacity,)."""
    for i in range(n):
        x[i] /= temperature
    largest = np.int32(_sortable(_largest(x, n)))
    for i in range(n):
        x[i] = exp(x[i] - largest.view(np.float32))


@exact
def softmax(logits, temperature, out):
    """out = softmax(logits / temperature), in run.c's order of additions. logits, out: (n,)."""
    for i in range(logits.shape[0]):
        out[i] = logits[i]
    exps(out, out.shape[0], temperature)
    total = np.float32(0)
    for i in range(out.shape[0]):
        total += out[i]
    for i in range(out.shape[0]):
        out[i] /= total
