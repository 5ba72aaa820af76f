"""Rotary positions, the cache of keys and values, and causal attention over it.

A head's values stand in the cache as they come, a row for each position: (capacity, head_dim). Its
keys stand in blocks of BLOCK positions, (capacity / BLOCK, head_dim, BLOCK), so that the scores of
a block can advance side by side, each of them summed in run.c's order.
"""

import math

import numpy as np
from numba import prange

from llama2np.kernels.calls import called, float32, int64
from llama2np.kernels.jit import exact, inner
from llama2np.kernels.lanes import weighted_sum
from llama2np.kernels.steps import exps

BLOCK = 64  # the cache's capacity is a multiple of it


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
    keys: (n_kv_heads, capacity / BLOCK, head_dim, BLOCK), values: (n_kv_heads, capacity, head_dim).
    A pair that turns by one angle is two neighbours, as Meta lays them out (Su et al. 2021).
    """
    n_kv_heads, _, head_dim = values.shape
    for t in range(q.shape[0]):
        block, lane = divmod(pos + t, BLOCK)
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
                keys[head, block, 2 * i, lane] = a * cos[t, i] - b * sin[t, i]
                keys[head, block, 2 * i + 1, lane] = a * sin[t, i] + b * cos[t, i]
            for i in range(head_dim):
                values[head, pos + t, i] = v[t, head * head_dim + i]


@inner
def _divide_by_sums(rows, first, end, n):
    """Make the first n of rows first ... end - 1 sum to 1, each sum in run.c's order.

    Four sums advance together: one would wait for each of its additions.
    """
    fours = first + (end - first) // 4 * 4
    for row in range(first, fours, 4):
        a, b, c, d = rows[row], rows[row + 1], rows[row + 2], rows[row + 3]
        totals = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for i in range(n):
            totals = totals[0] + a[i], totals[1] + b[i], totals[2] + c[i], totals[3] + d[i]
        for k in range(4):
            own, total = rows[row + k], totals[k]
            for i in range(n):
                own[i] /= total
    for row in range(fours, end):
        own, total = rows[row], np.float32(0)
        for i in range(n):
            total += own[i]
        for i in range(n):
            own[i] /= total


@inner
def attend(first, end, t, q, keys, values, n, scores, out):
    """Softmax-weighted mean of the first n values, for heads first ... end - 1 of token t."""
    n_kv_heads, capacity, head_dim = values.shape
    shared = scores.shape[0] // n_kv_heads  # query heads to a key/value head
    token, root = t * q.shape[1], np.sqrt(np.float32(head_dim))
    none, width = np.int64(0), np.int64(BLOCK)  # typed: of a literal, numba compiles anew
    q, out, keys, values = q.reshape(-1), out.reshape(-1), keys.reshape(-1), values.reshape(-1)
    for head in range(first, end):
        mine, start = token + head * head_dim, head // shared * capacity * head_dim
        for at in range(0, n, BLOCK):
            block = start + at * head_dim
            weighted_sum(q, mine, head_dim, keys, block, width, scores[head], at, width)
        exps(scores[head], n, root)
    _divide_by_sums(scores, first, end, n)
    for head in range(first, end):
        mine, start = token + head * head_dim, head // shared * capacity * head_dim
        weighted_sum(scores[head], none, n, values, start, head_dim, out, mine, head_dim)


_MATRIX, _KEYS, _VALUES = float32[:, ::1], float32[:, :, :, ::1], float32[:, :, ::1]
_attend = called(attend, int64, int64, int64, _MATRIX, _KEYS, _VALUES, int64, _MATRIX, _MATRIX)


@exact
def attention(q, keys, values, pos, scores, out):
    """Causal attention of T tokens at pos ... pos + T - 1 over the cache (Vaswani et al. 2017).

    q, out: (T, n_heads * head_dim), keys: (n_kv_heads, capacity / BLOCK, head_dim, BLOCK),
    values: (n_kv_heads, capacity, head_dim), scores: (n_heads, capacity), scratch.
    """
    for t in range(q.shape[0]):
        _attend(0, scores.shape[0], t, q, keys, values, pos + t + 1, scores, out)


@exact(parallel=True)
def attention_threaded(q, keys, values, pos, scores, out):
    """`attention` with the heads shared among threads."""
    for i in prange(scores.shape[0]):
        head = np.int64(i)
        for t in range(q.shape[0]):
            _attend(head, head + 1, t, q, keys, values, pos + t + 1, scores, out)


_KINDS = (_MATRIX, _KEYS, _VALUES, int64, _MATRIX, _MATRIX)
call_attention = called(attention, *_KINDS)
call_attention_threaded = called(attention_threaded, *_KINDS)
