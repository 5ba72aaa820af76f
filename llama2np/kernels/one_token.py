"""The whole network for one token at a time, in one call.

transformer.py goes through the blocks step by step. With one token the steps are so short that the
calls, and waking the threads for each matrix, would take as long as the arithmetic. So here are the
same steps, in the same order, compiled together; and matrices that read the same input, together.
In a small network the way through Python takes as long again: the call may go on by itself, with
the likeliest tokens.
"""

from numba import float32, int64, types

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
from llama2np.kernels.attention import call_attention, call_attention_threaded, rope, rope_angles
from llama2np.kernels.calls import APART
from llama2np.kernels.int8 import dequantize_rows
from llama2np.kernels.jit import exact, inner
from llama2np.kernels.multiply import (
    call_multiply_float32,
    call_multiply_int8,
)
from llama2np.kernels.steps import add, likeliest, rmsnorm, swiglu


@inner
def _float32_rows(table, tokens, out):
    # In one line it would compile thrice as long, for the text of an error of shapes.
    for t in range(tokens.size):
        for i in range(out.shape[1]):
            out[t, i] = table[0][tokens[t], i]


@inner
def _int8_rows(table, tokens, out):
    dequantize_rows(table[0], table[1], tokens, out)


def _one_token(matrix_at, rows, multiply):
    """The kernel below, for one kind of matrix."""

    @exact
    def one_token(
        tokens, pos, frequencies, eps, ends, layers, scratch, keys, values, scores, logits, shared
    ):
        """Read the first of `tokens` (T,) at `pos`; the others become the likeliest after it.

        ends, layers: Weights' addresses; scratch: a Scratch's arrays, for one token, whose x
        becomes the residual stream behind the last layer; keys, values, scores: a State's, which
        get those of pos and on; logits: (T, vocab_size), or (0, vocab_size) if not wanted, of one
        token. Threads share what has `shared` multiply-adds or more.
        """
        x, h, q, k, v, mixed, gate, up, cos, sin = scratch
        dim, kv_dim, hidden_dim = x.shape[1], k.shape[1], gate.shape[1]
        vocab_size = logits.shape[1]
        for t in range(tokens.size):
            if t:
                tokens[t] = likeliest(logits[t - 1])
            here = pos + t
            rows(matrix_at(ends[EMBEDDING], vocab_size, dim), tokens[t : t + 1], x)
            rope_angles(frequencies, here, cos, sin)
            for i in range(layers.shape[0]):
                places = layers[i]
                rmsnorm(x, norm_at(places[ATTN_NORM], dim), eps, h)
                wq = matrix_at(places[WQ], dim, dim)
                wk = matrix_at(places[WK], kv_dim, dim)
                wv = matrix_at(places[WV], kv_dim, dim)
                multiply(3, wq, wk, wv, h, q, k, v, shared)
                rope(q, k, v, cos, sin, here, keys[i], values[i])
                if 2 * q.size * (here + 1) < shared:
                    call_attention(q, keys[i], values[i], here, scores, mixed)
                else:
                    call_attention_threaded(q, keys[i], values[i], here, scores, mixed)
                wo = matrix_at(places[WO], dim, dim)
                multiply(1, wo, wo, wo, mixed, h, h, h, shared)
                add(x, h)
                rmsnorm(x, norm_at(places[FFN_NORM], dim), eps, h)
                w_gate = matrix_at(places[W_GATE], hidden_dim, dim)
                w_up = matrix_at(places[W_UP], hidden_dim, dim)
                multiply(2, w_gate, w_up, w_up, h, gate, up, up, shared)
                swiglu(gate, up)
                w = matrix_at(places[W_DOWN], dim, hidden_dim)
                multiply(1, w, w, w, gate, h, h, h, shared)
                add(x, h)
            if logits.shape[0]:
                rmsnorm(x, norm_at(ends[FINAL_NORM], dim), eps, h)
                w = matrix_at(ends[CLASSIFIER], vocab_size, dim)
                out = logits[t : t + 1]
                multiply(1, w, w, w, h, out, out, out, shared)

    return one_token


one_token_float32 = _one_token(float32_at, _float32_rows, call_multiply_float32)
one_token_int8 = _one_token(int8_at, _int8_rows, call_multiply_int8)

_MATRIX, _KEYS, _VALUES = float32[:, ::1], float32[:, :, :, :, ::1], float32[:, :, :, ::1]
_KINDS = (int64[::1], int64, float32[::1], float32, int64[:, ::1], int64[:, :, ::1])
_KINDS += (types.UniTuple(_MATRIX, 10), _KEYS, _VALUES, _MATRIX, _MATRIX, int64)
APART[one_token_float32] = APART[one_token_int8] = _KINDS
