"""Ops on positions: rotary embeddings (Su et al. 2021). A unit is a row.

There are two layouts of the pairs that are rotated by one angle: adjacent values (2i, 2i + 1), as
in Meta's code, and halves (i, i + rotary_dim / 2), as in Hugging Face's.
"""

import math

import numpy as np

from llama2np.kernels.runtime.jit import inner
from llama2np.kernels.runtime.memory import vector
from llama2np.kernels.runtime.op import op, rows_of, span_at


@op("cos sin frequencies")
def angles(s, run, first, last, scratch):
    """cos, sin of position * frequency. n: the number of pairs; frequencies: (n,)."""
    frequencies = vector(s["frequencies"], s["n"])
    for k in range(run["n_spans"]):
        start, stop, pos, _ = span_at(run, k, first, last)
        if start < stop:
            cos = rows_of(run, s["cos"], s["n"], start, stop)
            sin = rows_of(run, s["sin"], s["n"], start, stop)
            for t in range(stop - start):
                for i in range(s["n"]):
                    angle = np.float32(pos + start + t) * frequencies[i]
                    cos[t, i] = math.cos(angle)
                    sin[t, i] = math.sin(angle)


@op("q k cos sin q_out k_out q_width k_width head_dim rotary_dim halves")
def rope(s, run, first, last, scratch):
    """q_out, k_out = q, k with the first rotary_dim values of each head rotated."""
    pairs = s["rotary_dim"] // 2
    cos = rows_of(run, s["cos"], pairs, first, last)
    sin = rows_of(run, s["sin"], pairs, first, last)
    q = rows_of(run, s["q"], s["q_width"], first, last)
    q_out = rows_of(run, s["q_out"], s["q_width"], first, last)
    k = rows_of(run, s["k"], s["k_width"], first, last)
    k_out = rows_of(run, s["k_out"], s["k_width"], first, last)
    _rotate(q, cos, sin, s["head_dim"], s["halves"], q_out)
    _rotate(k, cos, sin, s["head_dim"], s["halves"], k_out)


@inner
def _rotate(x, cos, sin, head_dim, halves, out):
    """Rotate x into out, (T, heads * head_dim), which may be the same array.

    cos, sin: (T, rotary_dim / 2).
    """
    pairs = cos.shape[1]
    apart, step = (pairs, 1) if halves else (1, 2)
    for t in range(x.shape[0]):
        for head in range(0, x.shape[1], head_dim):
            for i in range(pairs):
                at = head + step * i
                a, b = x[t, at], x[t, at + apart]
                out[t, at] = a * cos[t, i] - b * sin[t, i]
                out[t, at + apart] = a * sin[t, i] + b * cos[t, i]
            for i in range(head + 2 * pairs, head + head_dim):
                out[t, i] = x[t, i]
