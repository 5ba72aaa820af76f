"""Matrices times one token, or a few of int8, by a team of threads, for both kinds of matrix.

Here a matrix is a tuple of arrays, (w,) or (q, scales), and so is an input that is ready for it,
(x,) or (x_q, x_scales, x_sums), with a row for each token; of float32 there is one. Up to three
matrices that read the same input go through in one step.
"""

import numpy as np
from numba import float32, int8, int32, int64, prange, types

from llama2np.kernels.calls import called
from llama2np.kernels.dots import all_dots
from llama2np.kernels.int8 import call_int8_rows, quantize
from llama2np.kernels.jit import exact, inner
from llama2np.kernels.team import TEAM, begin, done, end, leads, new_board, shares, take

_LARGE = 2**18  # multiply-adds from which on short parts are worth taking


@inner
def float32_room(x, group):
    """What an input needs to be made ready: nothing, of float32. x: (1, n)."""
    return (x,)


@inner
def int8_room(x, group):
    """The same for int8: arrays for x, (T, n), in groups of `group`."""
    shape = x.shape[0], x.shape[1] // group
    return np.empty(x.shape, np.int8), np.empty(shape, np.float32), np.empty(shape, np.int32)


@inner
def _float32_ready(x, room, team):
    return (x,)


@inner
def _int8_ready(x, room, team):
    """The leader rounds x (T, n) to int8."""
    if leads(team):
        quantize(x, room[0], room[1], room[2])
    return room


@inner
def _float32_rows(w, first, last, x, out):
    all_dots(w[0], first, last, x[0], out)


@inner
def _int8_rows(w, first, last, x, out):
    call_int8_rows(w[0], w[1], first, last, x[0], x[1], x[2], out)


def _multiply(ready, rows_of):
    """The kernel below for one kind of matrix, from what is done with an input, and with rows."""

    @inner(forceinline=True)
    def some(first, last, count, a, b, c, x, out_a, out_b, out_c):
        """Rows of the matrices taken as one below the other."""
        d = a[0].shape[0]
        if first < d:
            rows_of(a, first, min(last, d), x, out_a)
        first, last, d = max(first - d, 0), last - d, b[0].shape[0]
        if count > 1 and first < min(last, d):
            rows_of(b, first, min(last, d), x, out_b)
        first, last = max(first - d, 0), last - d
        if count > 2 and first < last:
            rows_of(c, first, last, x, out_c)

    @exact
    def multiply(team, step, count, a, b, c, x, room, out_a, out_b, out_c):
        """Each out (T, d) = x (T, n) times its matrix (d, n), for the first `count` of them.

        As a member of a team: returns the step after this one, or 0 to go home.
        """
        rows = a[0].shape[0]
        if count > 1:
            rows += b[0].shape[0]
        if count > 2:
            rows += c[0].shape[0]
        made = ready(x, room, team)
        shared = shares(team, rows * x.size)
        if shared and not begin(team, step):
            return 0
        # A long part for each member, because memory is read faster in one go. Of a large matrix
        # some rows are left, in short parts: who is faster takes more of them.
        longs = team[2] if shared else 1
        left = rows // 4 if shared and rows * x.size >= _LARGE else 0
        long = -(-(rows - left) // longs)
        short = -(-rows // (8 * longs))
        parts = longs + max(-((longs * long - rows) // short), 0)
        part = take(team, step, parts) if shared else team[1]  # the leader's is the only one
        while part < parts:
            first = min(part, longs) * long + max(part - longs, 0) * short
            last = min(first + (long if part < longs else short), rows)
            some(first, last, count, a, b, c, made, out_a, out_b, out_c)
            if not shared:
                return step
            done(team)
            part = take(team, step, parts)
        if shared:
            end(team, parts)
            step += 1
        return step

    return multiply


multiply_float32 = _multiply(_float32_ready, _float32_rows)
multiply_int8 = _multiply(_int8_ready, _int8_rows)

_FLOATS, _INT8S = float32[:, ::1], int8[:, ::1]
FLOAT32_ROOM = types.BaseTuple.from_types([_FLOATS])
INT8_ROOM = types.BaseTuple.from_types([_INT8S, _FLOATS, int32[:, ::1]])


def _called(multiply, room, *arrays):
    """multiply, for others to call. arrays: the types of those that make up a matrix."""
    matrix = types.BaseTuple.from_types(arrays)
    outs = _FLOATS, _FLOATS, _FLOATS
    kinds = (TEAM, int64, int64, matrix, matrix, matrix, _FLOATS, room, *outs)
    return called(multiply, *kinds, returns=int64)


call_multiply_float32 = _called(multiply_float32, FLOAT32_ROOM, _FLOATS)
call_multiply_int8 = _called(multiply_int8, INT8_ROOM, _INT8S, _FLOATS)


@exact(parallel=True)
def matmul(w, x, out, members):
    """out = x @ w.T for one token, by so many threads. w: (d, n), x: (1, n), out: (1, d)."""
    board, a = new_board(), (w,)
    if members == 1:  # without a region: in a forked process there is none
        call_multiply_float32((board, 0, 1), 1, 1, a, a, a, x, a, out, out, out)
    else:
        for i in prange(members):
            team = board, np.int64(i), members
            call_multiply_float32(team, 1, 1, a, a, a, x, a, out, out, out)


@exact(parallel=True)
def matmul_int8(q, scales, x, out, members):
    """out = quantized(x) @ (q * scales).T for a few tokens. x: (T, n), out: (T, d) float32.

    q: (d, n) int8, scales: (d, n / group). Each token gets the bits that it would have alone.
    """
    board, a, room = new_board(), (q, scales), int8_room(x, q.shape[1] // scales.shape[1])
    if members == 1:
        call_multiply_int8((board, 0, 1), 1, 1, a, a, a, x, room, out, out, out)
    else:
        for i in prange(members):
            team = board, np.int64(i), members
            call_multiply_int8(team, 1, 1, a, a, a, x, room, out, out, out)
