"""The KV cache and causal attention over it (Vaswani et al. 2017).

The cache of a sequence consists of chunks of some hundred positions. A chunk has the float32 keys
and values of all layers: (n_layers, 2, n_kv_heads, chunk * head_dim). The values of a head are
(chunk, head_dim), with a row for each position. Its keys are in blocks of BLOCK positions,
(chunk / BLOCK, head_dim, BLOCK), so that the scores of a block are computed in parallel lanes, each
summed in run.c's order.

A row at position p attends to the positions low ... high - 1: high is p + 1, or in an encoder the
length of the sequence; low is 0, or p + 1 - window in a layer with a sliding window.
"""

import math
from functools import cache

import numpy as np
from numba import float32, int64

from llama2np.kernels.ops.exp import exps
from llama2np.kernels.ops.weighted_sum import weighted_sum
from llama2np.kernels.runtime.jit import inner, separate
from llama2np.kernels.runtime.link import linked
from llama2np.kernels.runtime.memory import floats, int64s, vector
from llama2np.kernels.runtime.op import op, place, rows_of, span_at

BLOCK = 64  # positions; a chunk is a multiple of it; model/state.py has the same number
_LINE = 16  # float32 in a cache line
TOGETHER = 8  # rows of a prompt for which a block of keys is loaded into the CPU's cache once

_CACHE = "layer n_kv_heads head_dim chunk"  # chunk: positions in a chunk


@inner
def _head(chunk, s, part, head):
    """A head's keys (part 0) or values (1) in the chunk at this address, flat."""
    size = s["chunk"] * s["head_dim"]
    at = ((2 * s["layer"] + part) * s["n_kv_heads"] + head) * size
    return vector(chunk + 4 * at, size)


@op(f"k v {_CACHE}")
def append(s, run, first, last, scratch):
    """Append k and v, (rows, n_kv_heads * head_dim), to the cache. A unit is a row."""
    head_dim, size = s["head_dim"], s["chunk"]
    width = s["n_kv_heads"] * head_dim
    for j in range(run["n_spans"]):
        start, stop, pos, chunks = span_at(run, j, first, last)
        for t in range(start, stop):
            k, v = rows_of(run, s["k"], width, t, t + 1), rows_of(run, s["v"], width, t, t + 1)
            number, row = (pos + t) // size, (pos + t) % size
            chunk = int64s(chunks, number + 1)[number]
            block, lane = row // BLOCK * head_dim * BLOCK, row % BLOCK
            for head in range(s["n_kv_heads"]):
                keys, values = _head(chunk, s, 0, head), _head(chunk, s, 1, head)
                for i in range(head_dim):
                    keys[block + i * BLOCK + lane] = k[0, head * head_dim + i]
                    values[row * head_dim + i] = v[0, head * head_dim + i]


@inner
def _divide_by_sums(rows, first, step, count, n, more):
    """Divide each of `count` rows by its sum, added in run.c's order: `first`, first + step, ...

    The first row has n values, and each further row `more` more. Four sums are computed together,
    because a single one waits for the latency of each addition.
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
def _to_weights(row, n, divisor, softcap):
    """row[:n] = softmax(row / divisor); with softcap = c, of c tanh(row / divisor / c)."""
    if softcap > 0:
        for i in range(n):
            row[i] = softcap * np.float32(math.tanh(row[i] / divisor / softcap))
        divisor = np.float32(1)
    exps(row, n, divisor)
    _divide_by_sum(row, np.float32(0), np.int64(0), n)


@inner
def _flat(run, offset, width, first, count):
    """Rows first ... first + count - 1 of a buffer of this width, one after the other."""
    return vector(place(run, offset) + 4 * width * first, count * width)


@inner
def _dual_scores(q, before, far, at, head_dim, keys, here, row, block, own, stride):
    """The scores of a block of keys with dual chunk attention: three queries, each for its keys.

    q is for the keys from position `own` on, `before` for the `stride` keys before them, and `far`
    for all others.
    """
    width = np.int64(BLOCK)
    no = width < 0  # a False with a type
    a = min(max(own - stride, block), block + width)
    b = min(max(own, block), block + width)
    weighted_sum(far, at, head_dim, keys, here, width, row, block, a - block, no)
    weighted_sum(before, at, head_dim, keys, here + a - block, width, row, a, b - a, no)
    weighted_sum(q, at, head_dim, keys, here + b - block, width, row, b, block + width - b, no)


@inner(forceinline=True)
def _add_values(row, low, n, block, stop, values, origin, out, at, head_dim):
    """Add the weighted values of the positions block ... stop - 1 to out, for one row.

    The row attends to the positions low ... n - 1, and its sums begin at `low`. values: those of a
    chunk that begins at position `origin`.
    """
    start = max(block, low)
    count = min(n, stop) - start  # 0 or less if the row does not attend to the block
    if count > 0 or start == low:
        here = (start - origin) * head_dim
        weighted_sum(row, start, count, values, here, head_dim, out, at, head_dim, start > low)


def _attention(chunked):
    """The kernel that computes it; `chunked`: for dual chunk attention, with three queries."""

    def attend(
        first, end, count, high, more, window, stride, q, before, far, out, chunks, at, kv_stride,
        chunk, n_heads, n_kv_heads, head_dim, divisor, softcap, scores,
    ):  # fmt: skip
        """Softmax-weighted means of the values, for heads first ... end - 1 and `count` rows.

        q, out: (count * n_heads * head_dim,), count <= TOGETHER. Row i attends to the positions
        below high + i * more, and to `window` of them at most. stride: of dual chunk attention;
        then `before` and `far` are the queries for keys of the chunk before and of all others.
        chunks: the addresses of the cache's chunks; in each, the keys of the layer begin at offset
        `at` in float32 values, the values at `at` + kv_stride. scores: (n_heads * TOGETHER,
        capacity), scratch.
        """
        dim = n_heads * head_dim
        shared = n_heads // n_kv_heads  # query heads per kv head
        # Typed, since numba compiles a function again for a literal.
        none, one, width, rows = np.int64(0), np.int64(1), np.int64(BLOCK), np.int64(TOGETHER)
        no, line = none > 0, np.int64(_LINE)  # a False with a type
        size, last = chunk * head_dim, high + (count - 1) * more
        begin = max(high - window, none) // BLOCK * BLOCK  # of the first block that is attended to
        plain = last <= window and softcap <= 0 and more == 1

        for head in range(first, end):
            # The scores: the products of the queries and the keys.
            for c in range(begin // chunk, chunks.shape[0]):
                keys = vector(chunks[c] + 4 * (at + head // shared * size), size)
                for block in range(max(c * chunk, begin), min(last, (c + 1) * chunk), BLOCK):
                    here = (block - c * chunk) * head_dim
                    # of a block that is not full, only the cache lines that have keys
                    lanes = min(-(-(last - block) // line) * line, width)
                    for i in range(count):
                        mine, row = i * dim + head * head_dim, scores[head * rows + i]
                        if chunked:
                            own = (high + i * more - 1) // stride * stride
                            _dual_scores(
                                q, before, far, mine, head_dim, keys, here, row, block, own, stride
                            )  # fmt: skip
                        else:
                            weighted_sum(
                                q, mine, head_dim, keys, here, width, row, block, lanes, no
                            )
            # Their softmax: the weights of the values.
            for i in range(count):
                n = high + i * more
                row = scores[head * rows + i]
                if plain:
                    exps(row, n, divisor)
                else:
                    low = max(n - window, none)
                    _to_weights(row[low:], n - low, divisor, softcap)
            if plain and count > 1:
                _divide_by_sums(scores, head * rows, one, count, high, one)
        if plain and count == 1:
            _divide_by_sums(scores, first * rows, rows, end - first, high, none)

        part = chunk if count == 1 else width  # positions that all rows add before the next ones
        for head in range(first, end):
            for c in range(begin // chunk, chunks.shape[0]):
                values = vector(chunks[c] + 4 * (at + kv_stride + head // shared * size), size)
                for block in range(max(c * chunk, begin), min(last, (c + 1) * chunk), part):
                    stop = min(block + part, (c + 1) * chunk)
                    for i in range(count):
                        mine, row = i * dim + head * head_dim, scores[head * rows + i]
                        n = high + i * more
                        low = max(n - window, none)
                        _add_values(
                            row, low, n, block, stop, values, c * chunk, out, mine, head_dim
                        )

    attend.__qualname__ = attend.__name__ = "_attend_chunked" if chunked else "_attend"
    return separate(attend)


_FLAT = float32[::1]
_KINDS = (
    *(*(int64,) * 7, _FLAT, _FLAT, _FLAT, _FLAT, int64[::1]),
    *(*(int64,) * 6, float32, float32, float32[:, ::1]),
)
_FIELDS = f"q out n_heads causal window stride divisor:f4 softcap:f4 {_CACHE}"


@cache
def attend(chunked):
    """The op: out = attention of q, (rows, n_heads * head_dim), over the cache. A unit is a head.

    chunked: for dual chunk attention.
    """
    call = linked(_attention(chunked), *_KINDS)

    def attend(s, run, first, last, scratch):
        n_heads, n_kv_heads = s["n_heads"], s["n_kv_heads"]
        head_dim, chunk, causal = s["head_dim"], s["chunk"], s["causal"]
        width, kv_stride = n_heads * head_dim, n_kv_heads * chunk * head_dim
        at, window = 2 * s["layer"] * kv_stride, s["window"]
        scores = floats(run["scores"], n_heads * TOGETHER, run["capacity"])
        for j in range(run["n_spans"]):
            start, stop, pos, addresses = span_at(run, j, 0, run["rows"])
            # One row is faster with all heads in one call. With many rows, one head at a time keeps
            # its keys in the CPU's cache.
            together = last - first if stop - start == 1 else 1
            for head in range(first, last, together):
                for t in range(start, stop, TOGETHER):
                    count = min(TOGETHER, stop - t)
                    high = pos + t + 1 if causal else pos + stop
                    q = _flat(run, s["q"], width, t, count)
                    before = far = q
                    if chunked:
                        before = _flat(run, s["q_before"], width, t, count)
                        far = _flat(run, s["q_far"], width, t, count)
                    out = _flat(run, s["out"], width, t, count)
                    chunks = int64s(addresses, (high + (count - 1) * causal - 1) // chunk + 1)
                    call(
                        head, head + together, count, high, causal, window, s["stride"], q, before,
                        far, out, chunks, at, kv_stride, chunk, n_heads, n_kv_heads, head_dim,
                        s["divisor"], s["softcap"], scores,
                    )  # fmt: skip

    attend.__name__ = "attend_chunked" if chunked else "attend"
    return op(f"q_before q_far {_FIELDS}" if chunked else _FIELDS)(attend)
