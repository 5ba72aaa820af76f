"""The whole network for one token at a time, in one call.

transformer.py goes through the blocks step by step. With one token the steps are so short that the
calls, and waking the threads for each matrix, would take as long as the arithmetic. So here are the
same steps, in the same order, compiled together, for a team of threads; and matrices that read the
same input, together. In a small network the way through Python takes as long again: the call may go
on by itself, with the likeliest tokens.
"""

import numpy as np
from numba import float32, int64, prange, types

from llama2np.kernels.addresses import (
    ATTN_NORM,
    CLASSIFIER,
    EMBEDDING,
    FFN_NORM,
    FINAL_NORM,
    W_DOWN,
    W_GATE,
    W_UP,
    WK,
    WO,
    WQ,
    WV,
    float32_at,
    int8_at,
    norm_at,
)
from llama2np.kernels.attention import call_attend, rope, rope_angles
from llama2np.kernels.calls import APART, called
from llama2np.kernels.int8 import dequantize_rows
from llama2np.kernels.jit import exact, inner
from llama2np.kernels.multiply import (
    FLOAT32_ROOM,
    INT8_ROOM,
    call_multiply_float32,
    call_multiply_int8,
    float32_room,
    int8_room,
)
from llama2np.kernels.steps import add, likeliest, rmsnorm, swiglu
from llama2np.kernels.team import begin, done, end, finish, leads, new_board, shares, take


@inner
def _float32_rows(table, tokens, out):
    # In one line it would compile thrice as long, for the text of an error of shapes.
    for t in range(tokens.size):
        for i in range(out.shape[1]):
            out[t, i] = table[0][tokens[t], i]


@inner
def _int8_rows(table, tokens, out):
    dequantize_rows(table[0], table[1], tokens, out)


@inner
def _attend(team, step, q, keys, values, pos, scores, mixed):
    """Attention of one token. Returns as `multiply` does."""
    heads = q.shape[1] // values.shape[2]
    if not shares(team, 2 * q.size * (pos + 1)):
        if leads(team):
            call_attend(0, heads, 0, 1, q, keys, values, pos + 1, scores, mixed)
        return step
    if not begin(team, step):
        return 0
    size = -(-heads // team[2])  # heads that are taken together are faster than one by one
    parts = -(-heads // size)
    part = take(team, step, parts)
    while part < parts:
        last = min(part * size + size, heads)
        call_attend(part * size, last, 0, 1, q, keys, values, pos + 1, scores, mixed)
        done(team)
        part = take(team, step, parts)
    end(team, parts)
    return step + 1


def _one_token(matrix_at, rows, room_of, room_kind, multiply):
    """The kernel `one_token` below, for one kind of matrix."""

    @exact
    def program(board, member, members, where, scratch, room, wide_room):
        """What each member does. room, wide_room: for an input of dim, and of hidden_dim values.

        Who is to go home goes on to the end, past all steps.
        """
        tokens, pos, frequencies, eps, ends, layers, keys, values, scores, logits = where
        x, h, q, k, v, mixed, gate, up, cos, sin = scratch
        dim, kv_dim, hidden_dim = x.shape[1], k.shape[1], gate.shape[1]
        vocab_size, team, step = logits.shape[1], (board, member, members), 1
        for t in range(tokens.size):
            here = pos + t
            if leads(team):
                if t:
                    tokens[t] = likeliest(logits[t - 1])
                rows(matrix_at(ends[EMBEDDING], vocab_size, dim), tokens[t : t + 1], x)
                rope_angles(frequencies, here, cos, sin)
            for i in range(layers.shape[0]):
                places = layers[i]
                if leads(team):
                    rmsnorm(x, norm_at(places[ATTN_NORM], dim), eps, h)
                wq = matrix_at(places[WQ], dim, dim)
                wk = matrix_at(places[WK], kv_dim, dim)
                wv = matrix_at(places[WV], kv_dim, dim)
                step = multiply(team, step, 3, wq, wk, wv, h, room, q, k, v)
                if leads(team):
                    rope(q, k, v, cos, sin, here, keys[i], values[i])
                step = _attend(team, step, q, keys[i], values[i], here, scores, mixed)
                wo = matrix_at(places[WO], dim, dim)
                step = multiply(team, step, 1, wo, wo, wo, mixed, room, h, h, h)
                if leads(team):
                    add(x, h)
                    rmsnorm(x, norm_at(places[FFN_NORM], dim), eps, h)
                w_gate = matrix_at(places[W_GATE], hidden_dim, dim)
                w_up = matrix_at(places[W_UP], hidden_dim, dim)
                step = multiply(team, step, 2, w_gate, w_up, w_up, h, room, gate, up, up)
                if leads(team):
                    swiglu(gate, up)
                w = matrix_at(places[W_DOWN], dim, hidden_dim)
                step = multiply(team, step, 1, w, w, w, gate, wide_room, h, h, h)
                if leads(team):
                    add(x, h)
            if logits.shape[0]:
                if leads(team):
                    rmsnorm(x, norm_at(ends[FINAL_NORM], dim), eps, h)
                w = matrix_at(ends[CLASSIFIER], vocab_size, dim)
                out = logits[t : t + 1]
                step = multiply(team, step, 1, w, w, w, h, room, out, out, out)
        finish(team)

    call_program = called(program, int64[::1], int64, int64, _WHERE, _SCRATCH, *(room_kind,) * 2)

    @exact(parallel=True)
    def one_token(
        tokens, pos, frequencies, eps, ends, layers, scratch, keys, values, scores, logits, members
    ):
        """Read the first of `tokens` (T,) at `pos`; the others become the likeliest after it.

        ends, layers: Weights' addresses; scratch: a Scratch's arrays, for one token, whose x
        becomes the residual stream behind the last layer; keys, values, scores: a State's, which
        get those of pos and on; logits: (T, vocab_size), or (0, vocab_size) if not wanted, of one
        token; members: the threads that share it.
        """
        board, group = new_board(), layers[0, WQ, 2]
        room, wide_room = room_of(scratch[1], group), room_of(scratch[6], group)
        where = tokens, pos, frequencies, eps, ends, layers, keys, values, scores, logits
        if members == 1:  # without a region: in a forked process there is none
            call_program(board, 0, 1, where, scratch, room, wide_room)
        else:
            for i in prange(members):
                call_program(board, np.int64(i), members, where, scratch, room, wide_room)

    return one_token


_SCRATCH = types.UniTuple(float32[:, ::1], 10)
_INPUT = (int64[::1], int64, float32[::1], float32, int64[:, ::1], int64[:, :, ::1])
_CACHE = (float32[:, :, :, :, ::1], float32[:, :, :, ::1], float32[:, ::1], float32[:, ::1])
_WHERE = types.Tuple((*_INPUT, *_CACHE))

one_token_float32 = _one_token(
    float32_at, _float32_rows, float32_room, FLOAT32_ROOM, call_multiply_float32
)
one_token_int8 = _one_token(int8_at, _int8_rows, int8_room, INT8_ROOM, call_multiply_int8)
APART[one_token_float32] = APART[one_token_int8] = (*_INPUT, _SCRATCH, *_CACHE, int64)
