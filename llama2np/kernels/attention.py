"""Rotary positions, the cache of keys and values, and causal attention over it.

A head's values stand in the cache as they come, a row for each position: (capacity, head_dim). Its
keys stand in blocks of BLOCK positions, (capacity / BLOCK, head_dim, BLOCK), so that the scores of
a block can advance side by side, each of them summed in run.c's order.
"""

import math

import numpy as np
from numba import float32, int64, prange

from llama2np.kernels.calls import called
from llama2np.kernels.jit import exact, inner
from llama2np.kernels.lanes import weighted_sum
from llama2np.kernels.steps import exps

BLOCK = 64  # the cache's capacity is a multiple of it
TOGETHER = 8  # tokens of a prompt that share the way of a block of keys into the CPU's cache


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
def _divide_by_sums(rows, first, step, count, n, more):
    """Make each of `count` rows sum to 1, its sum in run.c's order: `first`, first + step, ...

    The first n values of the first row, n + more of the next, ... Four sums advance together: one
    would wait for each of its additions.
    """
    fours = count // 4 * 4
    for k in range(0, fours, 4):
        row, least = first + k * step, n + k * more
        a, b, c, d = rows[row], rows[row + step], rows[row + 2 * step], rows[row + 3 * step]
        totals = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for i in range(least):
            totals = totals[0] + a[i], totals[1] + b[i], totals[2] + c[i], totals[3] + d[i]
        for j in range(4):
            _divide_by_sum(rows[row + j * step], totals[j], least, least + j * more)
    for k in range(fours, count):
        _divide_by_sum(rows[first + k * step], np.float32(0), np.int64(0), n + k * more)


@inner
def _divide_by_sum(row, total, summed, n):
    """The same for one row, whose first `summed` values are in `total`."""
    for i in range(summed, n):
        total += row[i]
    for i in range(n):
        row[i] /= total


@inner
def _attend(first, end, t, count, q, keys, values, n, scores, out):
    """Softmax-weighted means of the values, for heads first ... end - 1 of tokens t and on.

    Of `count` tokens, at most TOGETHER. The first has n values to see, each after it one more.
    """
    n_kv_heads, capacity, head_dim = values.shape
    n_heads, root = q.shape[1] // head_dim, np.sqrt(np.float32(head_dim))
    shared = n_heads // n_kv_heads  # query heads to a key/value head
    # Typed: of a literal, numba compiles anew.
    none, one, width, rows = np.int64(0), np.int64(1), np.int64(BLOCK), np.int64(TOGETHER)
    anew = none > 0  # a False with a type
    part = n if count == 1 else width  # of the values that all tokens gather before the next
    dim, q, out = q.shape[1], q.reshape(-1), out.reshape(-1)
    keys, values = keys.reshape(-1), values.reshape(-1)
    for head in range(first, end):
        start = head // shared * capacity * head_dim
        for at in range(0, n + count - 1, BLOCK):
            block = start + at * head_dim
            for i in range(count):
                mine, row = (t + i) * dim + head * head_dim, scores[head * rows + i]
                weighted_sum(q, mine, head_dim, keys, block, width, row, at, width, anew)
        for i in range(count):
            exps(scores[head * rows + i], n + i, root)
        if count > 1:
            _divide_by_sums(scores, head * rows, one, count, n, one)
    if count == 1:
        _divide_by_sums(scores, first * rows, rows, end - first, n, none)
    for head in range(first, end):
        start = head // shared * capacity * head_dim
        for at in range(0, n + count - 1, part):
            block = start + at * head_dim
            for i in range(count):
                mine, row = (t + i) * dim + head * head_dim, scores[head * rows + i]
                some = min(n + i - at, part)  # 0 or less: this token does not see so far
                weighted_sum(row, at, some, values, block, head_dim, out, mine, head_dim, at > 0)


_MATRIX, _KEYS, _VALUES = float32[:, ::1], float32[:, :, :, ::1], float32[:, :, ::1]
_RANGES = (int64, int64, int64, int64)
call_attend = called(_attend, *_RANGES, _MATRIX, _KEYS, _VALUES, int64, _MATRIX, _MATRIX)


@exact
def attention(q, keys, values, pos, scores, out):
    """Causal attention of T tokens at pos ... pos + T - 1 over the cache (Vaswani et al. 2017).

    q, out: (T, n_heads * head_dim), keys: (n_kv_heads, capacity / BLOCK, head_dim, BLOCK),
    values: (n_kv_heads, capacity, head_dim), scores: (n_heads * TOGETHER, capacity), scratch.
    """
    heads = q.shape[1] // values.shape[2]
    for t in range(0, q.shape[0], TOGETHER):
        count = min(TOGETHER, q.shape[0] - t)
        call_attend(0, heads, t, count, q, keys, values, pos + t + 1, scores, out)


@exact(parallel=True)
def attention_threaded(q, keys, values, pos, scores, out):
    """`attention` with the heads shared among threads."""
    for i in prange(q.shape[1] // values.shape[2]):
        head = np.int64(i)
        for t in range(0, q.shape[0], TOGETHER):
            count = min(TOGETHER, q.shape[0] - t)
            call_attend(head, head + 1, t, count, q, keys, values, pos + t + 1, scores, out)
