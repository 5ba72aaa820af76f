"""Elementwise ops and norms on rows of activations. A unit is a row.

All sums are in run.c's order, so that int8 models give runq.c's numbers: there the last bit of an
activation can decide how it is rounded. `out` may be the same buffer as `x`.
"""

import math
from functools import cache

import numpy as np

from llama2np.kernels.matmul import block_panels, block_plain
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.matmul.float32 import to_float32
from llama2np.kernels.matmul.int8 import dequantize_row
from llama2np.kernels.matmul.tile import FLOAT32
from llama2np.kernels.ops.exp import argmax, exp
from llama2np.kernels.runtime.jit import PLAIN, inner
from llama2np.kernels.runtime.memory import bytes_, copy, floats, int8s, int16s, int64s, vector
from llama2np.kernels.runtime.op import SCRATCH, op, place, rows_of, span_at

_, POSITIONS, TYPES = range(3)  # these choose the rows of an embedding: model.block.IDS


@inner
def _start_with(run, x, out, n, first, last):
    """Copy rows of `x` to `out`, unless they are the same buffer; return the rows of `out`.

    A loop that reads x and writes out is not vectorized, since LLVM must assume that they overlap.
    The assignment `out[:] = x` would compile numba's error message for two shapes, too: it took a
    third of the time that all kernels took.
    """
    if x != out:
        start, count = 4 * n * first, 4 * n * (last - first)
        copy(place(run, out) + start, place(run, x) + start, count)
    return rows_of(run, out, n, first, last)


@op("x y out")
def add(s, run, first, last, scratch):
    """out = x + y."""
    out = _start_with(run, s["x"], s["out"], s["n"], first, last)
    y = rows_of(run, s["y"], s["n"], first, last)
    for t in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[t, i] += y[t, i]


@op("x out weight eps:f4 groups")
def rmsnorm(s, run, first, last, scratch):
    """out = weight * x / sqrt(mean(x**2) + eps), for each of the groups (heads) of a row."""
    groups, width = s["groups"], s["n"] // s["groups"]
    x = floats(place(run, s["x"]) + 4 * s["n"] * first, (last - first) * groups, width)
    out = floats(place(run, s["out"]) + 4 * s["n"] * first, (last - first) * groups, width)
    weight, n, eps = vector(s["weight"], width), np.float32(width), np.float32(s["eps"])
    for t in range(x.shape[0]):
        squares = np.float32(0)
        for i in range(x.shape[1]):
            squares += x[t, i] * x[t, i]
        scale = np.float32(1) / np.sqrt(squares / n + eps)
        for i in range(x.shape[1]):
            out[t, i] = weight[i] * (scale * x[t, i])


@op("x out weight bias eps:f4")
def layernorm(s, run, first, last, scratch):
    """out = weight * (x - mean(x)) / sqrt(var(x) + eps) + bias (Ba et al. 2016).

    The field bias is 0 if there is none.
    """
    x, out = rows_of(run, s["x"], s["n"], first, last), rows_of(run, s["out"], s["n"], first, last)
    weight, eps = vector(s["weight"], s["n"]), np.float32(s["eps"])
    for t in range(x.shape[0]):
        total = 0.0
        for i in range(x.shape[1]):
            total += np.float64(x[t, i])
        mean = total / x.shape[1]
        squares = 0.0
        for i in range(x.shape[1]):
            squares += (x[t, i] - mean) * (x[t, i] - mean)
        mean, scale = np.float32(mean), np.float32(1 / math.sqrt(squares / x.shape[1] + eps))
        for i in range(x.shape[1]):
            out[t, i] = weight[i] * (scale * (x[t, i] - mean))
    if s["bias"]:
        bias = vector(s["bias"], s["n"])
        for t in range(x.shape[0]):
            for i in range(x.shape[1]):
                out[t, i] += bias[i]


@op("gate up out")
def swiglu(s, run, first, last, scratch):
    """out = silu(gate) * up (Shazeer 2020)."""
    out = _start_with(run, s["gate"], s["out"], s["n"], first, last)
    up = rows_of(run, s["up"], s["n"], first, last)
    for t in range(out.shape[0]):
        for i in range(out.shape[1]):
            value = out[t, i]
            out[t, i] = value * (np.float32(1) / (np.float32(1) + exp(-value))) * up[t, i]


@inner
def _gelu(value, exact):
    """value * P(N(0, 1) <= value) (Hendrycks and Gimpel 2016), with erf if `exact`, else tanh."""
    if exact:
        return value * np.float32(0.5 + 0.5 * math.erf(value * math.sqrt(0.5)))
    cube = np.float32(0.044715) * value * value * value
    y = np.float32(math.sqrt(2 / math.pi)) * (value + cube)
    return value * (np.float32(1) / (np.float32(1) + exp(-(y + y))))  # (1 + tanh(y)) / 2


@op("x out exact")
def gelu(s, run, first, last, scratch):
    """out = gelu(x)."""
    out = _start_with(run, s["x"], s["out"], s["n"], first, last)
    for t in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[t, i] = _gelu(out[t, i], s["exact"])


@op("gate up out exact")
def geglu(s, run, first, last, scratch):
    """out = gelu(gate) * up (Shazeer 2020)."""
    out = _start_with(run, s["gate"], s["out"], s["n"], first, last)
    up = rows_of(run, s["up"], s["n"], first, last)
    for t in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[t, i] = _gelu(out[t, i], s["exact"]) * up[t, i]


@op("x out")
def tanh(s, run, first, last, scratch):
    """out = tanh(x)."""
    out = _start_with(run, s["x"], s["out"], s["n"], first, last)
    for t in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[t, i] = math.tanh(out[t, i])


@op("x out factor:f4")
def scale(s, run, first, last, scratch):
    """out = x * factor."""
    out = _start_with(run, s["x"], s["out"], s["n"], first, last)
    for t in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[t, i] *= s["factor"]


@op("x out softcap:f4")
def softcap(s, run, first, last, scratch):
    """out = c tanh(x / c) for c = softcap."""
    out, cap = _start_with(run, s["x"], s["out"], s["n"], first, last), s["softcap"]
    for t in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[t, i] = cap * np.float32(math.tanh(out[t, i] / cap))


# --- from tokens, and to the rows that get logits -------------------------------------------------


@inner
def _chosen(of, run, t):
    """The row of the table for row t: its token, its position, or its token type."""
    rows = run["rows"]
    if of == POSITIONS and run["positions"]:
        return int64s(run["positions"], rows)[t]
    if of == POSITIONS:
        for k in range(run["n_spans"]):
            start, stop, pos, _ = span_at(run, k, t, t + 1)
            if start < stop:
                return pos + t
    if of == TYPES:
        return int64s(run["types"], rows)[t]
    tokens = int64s(run["tokens"] + 8 * rows * run["lap"], rows)
    if run["lap"]:  # the most probable token after the previous lap
        at = run["logits"] + 4 * ((run["lap"] - 1) * rows + t) * run["choices"]
        tokens[t] = argmax(vector(at, run["choices"]))
    return tokens[t]


def _embed(name, fields, read):
    """An op: out = the chosen rows of a table. read(s, row, row of out, scratch) reads one."""

    def embed(s, run, first, last, scratch):
        out = rows_of(run, s["out"], s["n"], first, last)
        for t in range(last - first):
            read(s, _chosen(s["of"], run, first + t), out[t], scratch)

    embed.__name__ = name
    return op(f"out of {fields}")(embed)


@inner
def _int8_row(s, token, out, scratch):
    n, groups = s["n"], s["n"] // s["group"]
    scales = vector(s["scales"] + 4 * groups * token, groups)
    dequantize_row(int8s(s["table"] + n * token, 1, n)[0], scales, out)


@cache
def embed_float(kind):
    """The op `embed` for a table of float32, bfloat16 or float16."""
    value_of = to_float32(kind)

    @inner
    def read(s, token, out, scratch):
        n = s["n"]
        if kind == FLOAT32:
            row = vector(s["table"] + 4 * n * token, n)
        else:
            row = int16s(s["table"] + 2 * n * token, 1, n)[0]
        for i in range(n):
            out[i] = value_of(row[i])

    return _embed(f"embed_{kind}", "table", read)


embed_int8 = _embed("embed_int8", "table scales group", _int8_row)


@cache
def embed_blocks(kind):
    """The op `embed` for a table in GGUF's blocks of this number format."""
    values, nbytes = KINDS[kind].values, KINDS[kind].nbytes
    dequantize = (block_plain if PLAIN else block_panels).dequantize(kind)

    @inner
    def read(s, token, out, scratch):
        n = s["n"]
        row = bytes_(s["table"] + n // values * nbytes * token, n // values * nbytes)
        dequantize(row, 0, out, vector(scratch, SCRATCH // 4))

    return _embed(f"embed_{kind}", "table", read)


@op("x out bias")
def add_bias(s, run, first, last, scratch):
    """out = x + bias."""
    out, bias = _start_with(run, s["x"], s["out"], s["n"], first, last), vector(s["bias"], s["n"])
    for t in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[t, i] += bias[i]


@op("x out")
def pick(s, run, first, last, scratch):
    """out = the rows of x that get logits."""
    n, picked = s["n"], int64s(run["picked"], run["wanted"])
    x = floats(place(run, s["x"]), run["rows"], n)
    out = floats(place(run, s["out"]), run["wanted"], n)
    for t in range(first, last):
        for i in range(n):
            out[t, i] = x[picked[t], i]
