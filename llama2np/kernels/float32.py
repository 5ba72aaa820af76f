"""The float32 loops of the forward pass.

Arrays are C-contiguous float32, activations have a row for each token: (T, ...). `out` comes last;
without `out` a kernel works in place. Nothing here allocates, checks or knows a model. Where two
kernels share a loop, the serial and the threaded one differ in `range` or `prange` alone
(numba's disk cache cannot tell one body compiled with two sets of flags, numba #6845).

All but the matrix products add in run.c's order, so that int8 models, where the last bit of an
activation can decide how it is rounded, give runq.c's numbers.
"""

import math

import numpy as np
from numba import prange

from llama2np.kernels.jit import exact, kernel

_ROUND = 1.5 * 2**52  # adding it to a float64 leaves the nearest integer in the low bits
_ROUND_BITS = 0x4338000000000000


@exact
def exp(x):
    """Return e**x of a float32, rounded from float64. A call into libm would not be vectorised.

    x = n ln 2 + r with |r| <= ln 2 / 2, then Taylor's polynomial for e**r: relative error 1e-11.
    """
    y = np.float64(x)
    if y < -110.0:  # 0 in float32
        y = -110.0
    if y > 90.0:  # inf in float32
        y = 90.0
    shifted = np.float64(y * 1.4426950408889634 + _ROUND)
    r = y - (shifted - _ROUND) * 0.6931471805599453
    p = r / 362880 + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 1 / 2
    p = p * r + 1
    p = p * r + 1
    power = np.int64((shifted.view(np.int64) - _ROUND_BITS + 1023) << 52)  # the bits of 2**n
    return np.float32(p * power.view(np.float64))


@kernel
def dot(a, b):
    """Return the sum of a * b. a, b: (n,)."""
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@kernel
def matmul(w, x, out):
    """out = x @ w.T. w: (d, n), x: (T, n), out: (T, d)."""
    for i in range(w.shape[0]):
        for t in range(x.shape[0]):
            out[t, i] = dot(w[i], x[t])


@kernel(parallel=True)
def matmul_threaded(w, x, out):
    """`matmul` with the rows of w shared among threads."""
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
def rope_angles(frequencies, pos, cos, sin):
    """Fill cos and sin of position * frequency. frequencies: (pairs,), cos, sin: (T, pairs).

    Row t is for position pos + t.
    """
    for t in range(cos.shape[0]):
        for i in range(cos.shape[1]):
            angle = np.float32(pos + t) * frequencies[i]
            cos[t, i] = math.cos(angle)
            sin[t, i] = math.sin(angle)


@exact
def rope(q, k, v, cos, sin, pos, keys, values):
    """Rotate q in place; put the rotated k, and v, into the cache at pos ... pos + T - 1.

    q: (T, n_heads * head_dim), k, v: (T, n_kv_heads * head_dim), cos, sin: (T, head_dim / 2),
    keys: (n_kv_heads, head_dim, capacity), values: (n_kv_heads, capacity, head_dim). A pair that
    turns by one angle is two neighbours, as Meta lays them out (Su et al. 2021).
    """
    n_kv_heads, head_dim, _ = keys.shape
    for t in range(q.shape[0]):
        for head in range(q.shape[1] // head_dim):
            for i in range(head_dim // 2):
                at = head * head_dim + 2 * i
                a, b = q[t, at], q[t, at + 1]
                q[t, at] = a * cos[t, i] - b * sin[t, i]
                q[t, at + 1] = a * sin[t, i] + b * cos[t, i]
        for head in range(n_kv_heads):
            for i in range(head_dim // 2):
                at = head * head_dim + 2 * i
                a, b = k[t, at], k[t, at + 1]
                keys[head, 2 * i, pos + t] = a * cos[t, i] - b * sin[t, i]
                keys[head, 2 * i + 1, pos + t] = a * sin[t, i] + b * cos[t, i]
            for i in range(head_dim):
                values[head, pos + t, i] = v[t, head * head_dim + i]


@exact
def _attend(q, keys, values, scores, out):
    """Softmax-weighted mean of values, for one head of one token.

    q, out: (head_dim,), keys: (head_dim, capacity), values: (capacity, head_dim), scores: (n,) for
    the n positions it may see. Keys lie so that all positions advance together: vectors, and yet
    each sum in order.
    """
    n, head_dim = scores.shape[0], q.shape[0]
    scores[:] = np.float32(0)
    for i in range(head_dim):
        for t in range(n):
            scores[t] += q[i] * keys[i, t]
    root, top = np.sqrt(np.float32(head_dim)), np.float32(-np.inf)
    for t in range(n):
        scores[t] /= root
        top = max(top, scores[t])
    for t in range(n):
        scores[t] = exp(scores[t] - top)
    total = np.float32(0)
    for t in range(n):
        total += scores[t]
    out[:] = np.float32(0)
    for t in range(n):
        share = scores[t] / total
        for i in range(head_dim):
            out[i] += share * values[t, i]


@exact
def _attend_head(head, q, keys, values, pos, scores, out):
    n_kv_heads, head_dim, _ = keys.shape
    kv = head // (scores.shape[0] // n_kv_heads)
    at = slice(head * head_dim, (head + 1) * head_dim)
    for t in range(q.shape[0]):
        _attend(q[t, at], keys[kv], values[kv], scores[head, : pos + t + 1], out[t, at])


@exact
def attention(q, keys, values, pos, scores, out):
    """Causal attention of T tokens at pos ... pos + T - 1 over the cache (Vaswani et al. 2017).

    q, out: (T, n_heads * head_dim), keys: (n_kv_heads, head_dim, capacity),
    values: (n_kv_heads, capacity, head_dim), scores: (n_heads, capacity), scratch.
    """
    for head in range(scores.shape[0]):
        _attend_head(head, q, keys, values, pos, scores, out)


@exact(parallel=True)
def attention_threaded(q, keys, values, pos, scores, out):
    """`attention` with the heads shared among threads."""
    for head in prange(scores.shape[0]):
        _attend_head(np.int64(head), q, keys, values, pos, scores, out)


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
