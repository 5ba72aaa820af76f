"""The float32 loops of the forward pass.

Arrays are C-contiguous float32, activations have a row for each token: (T, ...). `out` comes last;
without `out` a kernel works in place. Nothing here allocates, checks or knows a model. Where two
kernels share a loop, the serial and the threaded one differ in `range` or `prange` alone
(numba's disk cache cannot tell one body compiled with two sets of flags, numba #6845).
"""

import math

import numpy as np
from numba import prange

from llama2np.kernels.jit import exact, kernel

_LOG2_E = np.float32(1.44269504)
_LN2_HIGH = np.float32(0.693359375)  # few bits, so that n * _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_ROUND = np.float32(1.5 * 2**23)  # adding it leaves the nearest integer in the low bits
_ROUND_BITS = np.int32(0x4B400000)


@exact
def exp(x):
    """Return e**x in float32, within 2 units in the last place for |x| <= 87; flat beyond.

    Unlike a call into libm it can be vectorised. Cody-Waite reduction x = n ln 2 + r, then the
    polynomial of Cephes' expf for e**r.
    """
    if x < np.float32(-87):
        x = np.float32(-87)
    if x > np.float32(87):
        x = np.float32(87)
    shifted = np.float32(x * _LOG2_E + _ROUND)
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    power = np.int32((shifted.view(np.int32) - _ROUND_BITS + 127) << 23)  # the bits of 2**n
    return p * power.view(np.float32)


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


@kernel
def add(x, h):
    """x += h. x, h: (T, dim)."""
    for t in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[t, i] += h[t, i]


@kernel
def rmsnorm(x, weight, eps, out):
    """out = weight * x / sqrt(mean(x**2) + eps), a row at a time. x, out: (T, dim), weight: (dim,)."""
    for t in range(x.shape[0]):
        mean = dot(x[t], x[t]) / np.float32(x.shape[1])
        scale = np.float32(1) / np.sqrt(mean + eps)
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


@kernel
def _rotate(row, cos, sin, out):
    """Turn each pair (row[2i], row[2i+1]) by its angle. row, out: (head_dim,), cos, sin: (pairs,)."""
    for i in range(cos.shape[0]):
        a, b = row[2 * i], row[2 * i + 1]
        out[2 * i] = a * cos[i] - b * sin[i]
        out[2 * i + 1] = a * sin[i] + b * cos[i]


@kernel
def rope(q, k, v, cos, sin, pos, keys, values):
    """Rotate q in place; put the rotated k, and v, into the cache at pos ... pos + T - 1.

    q: (T, n_heads * head_dim), k, v: (T, n_kv_heads * head_dim), cos, sin: (T, head_dim / 2),
    keys, values: (n_kv_heads, capacity, head_dim). Pairs are neighbours, as Meta lays them out.
    """
    n_kv_heads, _, head_dim = keys.shape
    for t in range(q.shape[0]):
        for head in range(q.shape[1] // head_dim):
            row = q[t, head * head_dim : (head + 1) * head_dim]
            _rotate(row, cos[t], sin[t], row)
        for head in range(n_kv_heads):
            at = slice(head * head_dim, (head + 1) * head_dim)
            _rotate(k[t, at], cos[t], sin[t], keys[head, pos + t])
            values[head, pos + t] = v[t, at]


@kernel
def _attend(q, keys, values, scores, out):
    """Softmax-weighted mean of values, for one head of one token.

    q, out: (head_dim,), keys, values: (n, head_dim): the positions it may see, scores: (n,).
    """
    scale = np.float32(1) / np.sqrt(np.float32(q.shape[0]))
    top = np.float32(-np.inf)
    for t in range(keys.shape[0]):
        scores[t] = dot(q, keys[t]) * scale
        top = max(top, scores[t])
    total = np.float32(0)
    for t in range(keys.shape[0]):
        scores[t] = exp(scores[t] - top)
        total += scores[t]
    out[:] = np.float32(0)
    for t in range(keys.shape[0]):
        share = scores[t] / total
        for i in range(out.shape[0]):
            out[i] += share * values[t, i]


@kernel
def _attend_head(head, q, keys, values, pos, scores, out):
    n_kv_heads, _, head_dim = keys.shape
    kv = head // (scores.shape[0] // n_kv_heads)
    at = slice(head * head_dim, (head + 1) * head_dim)
    for t in range(q.shape[0]):
        n = pos + t + 1
        _attend(q[t, at], keys[kv, :n], values[kv, :n], scores[head, :n], out[t, at])


@kernel
def attention(q, keys, values, pos, scores, out):
    """Causal attention of T tokens at pos ... pos + T - 1 over the cache (Vaswani et al. 2017).

    q, out: (T, n_heads * head_dim), keys, values: (n_kv_heads, capacity, head_dim),
    scores: (n_heads, capacity), scratch.
    """
    for head in range(scores.shape[0]):
        _attend_head(head, q, keys, values, pos, scores, out)


@kernel(parallel=True)
def attention_threaded(q, keys, values, pos, scores, out):
    """`attention` with the heads shared among threads."""
    for head in prange(scores.shape[0]):
        _attend_head(np.int64(head), q, keys, values, pos, scores, out)


@kernel
def swiglu(gate, up):
    """gate = silu(gate) * up (Shazeer 2020). gate, up: (T, hidden_dim)."""
    for t in range(gate.shape[0]):
        for i in range(gate.shape[1]):
            gate[t, i] *= up[t, i] / (np.float32(1) + exp(-gate[t, i]))


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
