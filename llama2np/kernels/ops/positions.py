"""Ops on positions: rotary embeddings (Su et al. 2021). A unit is a row.

There are two layouts of the pairs that are rotated by one angle: adjacent values (2i, 2i + 1), as
in Meta's code, and halves (i, i + rotary_dim / 2), as in Hugging Face's.
"""

import math

import numpy as np

from llama2np.kernels.runtime.jit import inner
from llama2np.kernels.runtime.memory import vector
from llama2np.kernels.runtime.op import op, rows_of, span_at, turns_at


@op("cos sin frequencies modulus add most magnitude:f4 scaled")
def angles(s, run, first, last, scratch):
    """cos, sin of position * frequency, times the magnitude. n: the number of pairs.

    frequencies: (n,), or 0 if they depend on the length of the sequence. The position is
    min(pos % modulus + add, most): see Block._turns. scaled: whether the magnitude is multiplied by
    the factor of the scores.
    """
    for k in range(run["n_spans"]):
        start, stop, pos, _ = span_at(run, k, first, last)
        if start < stop:
            own, factor = turns_at(run, k)
            at = s["frequencies"] if s["frequencies"] else own
            size = s["magnitude"]
            if s["scaled"]:
                size = np.float32(size * factor)
            frequencies = vector(at, s["n"])
            cos = rows_of(run, s["cos"], s["n"], start, stop)
            sin = rows_of(run, s["sin"], s["n"], start, stop)
            for t in range(stop - start):
                turn = np.float32(min((pos + start + t) % s["modulus"] + s["add"], s["most"]))
                for i in range(s["n"]):
                    angle = turn * frequencies[i]
                    cos[t, i] = size * np.float32(math.cos(angle))
                    sin[t, i] = size * np.float32(math.sin(angle))


@op("q k cos sin q_out k_out q_width k_width head_dim rotary_dim halves")
def rope(s, run, first, last, scratch):
    """q_out, k_out = q, k with the first rotary_dim values of each head rotated.

    With k_width = 0 there is no k.
    """
    pairs = s["rotary_dim"] // 2
    cos = rows_of(run, s["cos"], pairs, first, last)
    sin = rows_of(run, s["sin"], pairs, first, last)
    q = rows_of(run, s["q"], s["q_width"], first, last)
    q_out = rows_of(run, s["q_out"], s["q_width"], first, last)
    _rotate(q, cos, sin, s["head_dim"], s["halves"], q_out)
    if s["k_width"]:
        k = rows_of(run, s["k"], s["k_width"], first, last)
        k_out = rows_of(run, s["k_out"], s["k_width"], first, last)
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
