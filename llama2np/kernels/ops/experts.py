"""Ops of a mixture of experts: each row is multiplied by the matrices of the experts chosen for it.

The rows of an expert are put next to each other, so that its matrices are read once for all of them
(and not at all for an expert without rows):

    rows 0 1 2, two experts each      grouped by expert, "places" 0 ... 5
      0: experts 2, 0                   expert 0: row 0, row 1
      1: experts 0, 1         ->        expert 1: row 1, row 2
      2: experts 2, 1                   expert 2: row 0, row 2
"""

from functools import cache

import numpy as np

from llama2np.kernels.matmul import block_rows, block_tiles, float32, int8_tiles
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.matmul.int8 import call_int8_rows
from llama2np.kernels.ops.exp import exps
from llama2np.kernels.ops.linear import (
    BLOCK_INPUT,
    BLOCK_TILES,
    block_product,
    block_tiles_at,
    reader,
)
from llama2np.kernels.runtime.jit import PLAIN, inner
from llama2np.kernels.runtime.memory import bytes_, floats, int8s, int32s, int64s, vector
from llama2np.kernels.runtime.op import SCRATCH, op, place, rows_of

ROWS = block_tiles.ROWS  # rows of a matrix in one unit of a product; a multiple of float32.ROWS
_MATRICES = "w:2 scales:2 out:2"


@op("router shares chosen used probabilities")
def choose(s, run, first, last, scratch):
    """The `used` experts with the largest router logits (rows, n), and their shares, of each row.

    Of equal logits, the first is chosen. The logits are overwritten: by their exponentials, then
    by -1 for those that are chosen.
    """
    n, used = s["n"], s["used"]
    logits = rows_of(run, s["router"], n, first, last)
    shares = rows_of(run, s["shares"], used, first, last)
    chosen = int32s(place(run, s["chosen"]) + 4 * used * first, last - first, used)
    for t in range(last - first):
        exps(logits[t], n, np.float32(1))
        total, part = np.float32(0), np.float32(0)
        for e in range(n):
            total += logits[t, e]
        for k in range(used):
            best = np.int64(-1)
            for e in range(n):
                taken = logits[t, e] < 0  # false for nan
                if not taken and (best < 0 or logits[t, e] > logits[t, best]):
                    best = e
            chosen[t, k], shares[t, k] = best, logits[t, best]
            part += logits[t, best]
            logits[t, best] = -1
        for k in range(used):
            shares[t, k] /= total if s["probabilities"] else part


@op("chosen places starts active used n_experts")
def sort(s, run, first, last, scratch):
    """Sort the chosen experts: the place of each among all, and where each expert's places start.

    starts: (n_experts + 1,); active: the number of experts that have rows, then these experts.
    """
    used, n_experts, rows = s["used"], s["n_experts"], run["rows"]
    chosen = int32s(place(run, s["chosen"]), 1, rows * used)[0]
    places = int32s(place(run, s["places"]), 1, rows * used)[0]
    starts = int32s(place(run, s["starts"]), 1, n_experts + 1)[0]
    active = int32s(place(run, s["active"]), 1, rows * (used + 1))[0]
    for e in range(n_experts + 1):
        starts[e] = 0
    for k in range(rows * used):
        starts[chosen[k] + 1] += 1
    count = 0
    for e in range(n_experts):
        if starts[e + 1]:
            count += 1
            active[count] = e
        starts[e + 1] += starts[e]
    active[0] = count
    for k in range(rows * used):  # a start moves on to the next place of its expert ...
        places[k] = starts[chosen[k]]
        starts[chosen[k]] += 1
    for e in range(n_experts, 0, -1):  # ... until it is that of the next expert
        starts[e] = starts[e - 1]
    starts[0] = 0


@op("x places out used")
def gather(s, run, first, last, scratch):
    """Copy each row of x (rows, n) to its places in out (rows * used, n). A unit is a row."""
    n, used = s["n"], s["used"]
    x = rows_of(run, s["x"], n, first, last)
    places = int32s(place(run, s["places"]) + 4 * used * first, last - first, used)
    out = floats(place(run, s["out"]), run["rows"] * used, n)
    for t in range(last - first):
        for k in range(used):
            row = places[t, k]
            for i in range(n):
                out[row, i] = x[t, i]


@op("y shares places out used")
def combine(s, run, first, last, scratch):
    """out (rows, n) = the sum of the rows of y at the places of a row, times their shares."""
    n, used = s["n"], s["used"]
    y = floats(place(run, s["y"]), run["rows"] * used, n)
    shares = rows_of(run, s["shares"], used, first, last)
    places = int32s(place(run, s["places"]) + 4 * used * first, last - first, used)
    out = rows_of(run, s["out"], n, first, last)
    for t in range(last - first):
        for i in range(n):
            out[t, i] = shares[t, 0] * y[places[t, 0], i]
        for k in range(1, used):
            for i in range(n):
                out[t, i] += shares[t, k] * y[places[t, k], i]


@cache
def product(kind, tiles=False):
    """The op: the rows of each expert times its matrices. A unit is ROWS rows of a matrix.

    tiles: whether matrices in GGUF's blocks are multiplied in tiles, if their expert has many rows.
    """
    is_block = kind in KINDS
    multiply = _int8 if kind == "int8" else _blocks(kind, tiles) if is_block else _float(kind)

    def experts(s, run, first, last, scratch):
        active = int32s(place(run, s["active"]), 1, run["rows"] * (s["used"] + 1))[0]
        blocks = -(-s["d"] // ROWS)
        for m in range(s["count"]):
            for a in range(1, active[0] + 1):
                if first < min(last, blocks):
                    begin, end = first * ROWS, min(min(last, blocks) * ROWS, s["d"])
                    multiply(s, run, m, active[a], begin, end, scratch)
                first, last = max(first - blocks, 0), last - blocks

    experts.__name__ = f"experts_{kind}" + "_tiles" * tiles
    fields = BLOCK_INPUT if is_block else "group q q_scales q_sums" if kind == "int8" else "x"
    fields += f" {BLOCK_TILES}" * tiles
    return op(f"{fields} used d count starts active {_MATRICES}")(experts)


@inner
def _span(run, starts, e):
    """The first place of expert e, and the number of its places."""
    starts = int32s(place(run, starts), 1, e + 2)[0]
    return np.int64(starts[e]), np.int64(starts[e + 1] - starts[e])


def _float(kind):
    few, many = (float32.plain if PLAIN else float32.few)(kind), float32.many(kind)
    read, rows = reader(kind), float32.ROWS

    @inner
    def multiply(s, run, m, e, first, last, scratch):
        n, d = s["n"], s["d"]
        start, count = _span(run, s["starts"], e)
        w = read(int64s(s["w"][m], e + 1)[e], d * n)
        x = vector(place(run, s["x"]) + 4 * n * start, count * n)
        out = vector(place(run, s["out"][m]) + 4 * d * start, count * d)
        if PLAIN or count <= float32.FEW or d < rows:
            few(w, n, d, x, count, out, first, last)
        else:
            sums = vector(scratch, float32.SUMS)
            many(w, n, d, x, count, out, first // rows, -(-last // rows), sums)

    return multiply


@inner
def _int8(s, run, m, e, first, last, scratch):
    n, d, group, groups = s["n"], s["d"], s["group"], s["n"] // s["group"]
    start, count = _span(run, s["starts"], e)
    w = int8s(int64s(s["w"][m], e + 1)[e], 1, d * n)[0]
    scales = vector(int64s(s["scales"][m], e + 1)[e], d * groups)
    x = int8s(place(run, s["q"]) + n * start, 1, count * n)[0]
    x_scales = vector(place(run, s["q_scales"]) + 4 * groups * start, count * groups)
    x_sums = int32s(place(run, s["q_sums"]) + 4 * groups * start, 1, count * groups)[0]
    out = vector(place(run, s["out"][m]) + 4 * d * start, count * d)
    call_int8_rows(w, scales, n, group, d, x, x_scales, x_sums, count, out, first, last)


def _blocks(kind, tiles):
    product, values, nbytes = block_product(kind), KINDS[kind].values, KINDS[kind].nbytes
    many = block_tiles.many(kind, wide=int8_tiles.NARROW) if tiles else None

    @inner
    def few(s, run, m, e, first, last, scratch):
        n, d, terms, width = s["n"], s["d"], s["terms"], block_rows.padded(s["n"])
        groups = width // s["group"]
        start, count = _span(run, s["starts"], e)
        first_row, rows = start * terms, count * terms
        w = bytes_(int64s(s["w"][m], e + 1)[e], d * (n // values) * nbytes)
        q, at = (
            int8s(place(run, s["q"]) + width * first_row, 1, rows * width)[0],
            4 * groups * first_row,
        )
        scales = vector(place(run, s["q_scales"]) + at, rows * groups)
        sums = int32s(place(run, s["q_sums"]) + at, 1, rows * groups)[0]
        offsets = vector(place(run, s["q_offsets"]) + at, rows * groups)
        out = vector(place(run, s["out"][m]) + 4 * d * start, count * d)
        spare = vector(scratch, 2 * block_rows.ROWS)
        product(w, n, d, q, scales, sums, offsets, count, terms, out, first, last, spare)

    @inner
    def multiply(s, run, m, e, first, last, scratch):
        n, d, terms = s["n"], s["d"], s["terms"]
        start, count = _span(run, s["starts"], e)
        if count <= block_rows.FEW:
            few(s, run, m, e, first, last, scratch)
        else:
            w = bytes_(int64s(s["w"][m], e + 1)[e], d * (n // values) * nbytes)
            inputs = block_tiles_at(s, run, run["rows"] * s["used"] * terms)
            out = vector(place(run, s["out"][m]) + 4 * d * start, count * d)
            spare, end = vector(scratch, SCRATCH // 4), -(-last // ROWS)
            many(w, n, d, inputs, start, count, terms, out, first // ROWS, end, spare)

    return multiply if tiles else few
