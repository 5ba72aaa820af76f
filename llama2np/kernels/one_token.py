"""A block of the network for one token, in one call.

transformer.py goes through a block step by step. With one token the steps are so short that the
calls, and waking the threads for each matrix, would take as long as the arithmetic. So here are the
same steps, in the same order, compiled together; and matrices that read the same input, together.
"""

import numpy as np

from llama2np.kernels.attention import attention, attention_threaded, rope
from llama2np.kernels.jit import exact
from llama2np.kernels.multiply import float32_input, int8_input, multiply_float32, multiply_int8
from llama2np.kernels.steps import add, rmsnorm, swiglu


def _block(ready, multiply):
    """The kernel below, for one kind of matrix: multiply.py says what it takes."""

    @exact
    def block(weights, scratch, keys, values, scores, pos, eps, shared):
        """x becomes what the block makes of it; the cache gets a key and a value at `pos`.

        weights: a Layer's fields, its matrices as tuples; scratch: a Scratch's, for one token.
        Threads share what has `shared` multiply-adds or more.
        """
        # Typed: of a literal, numba compiles multiply for each value.
        one, two, three = np.int64(1), np.int64(2), np.int64(3)
        attn_norm, wq, wk, wv, wo, ffn_norm, w_gate, w_up, w_down = weights
        x, h, q, k, v, mixed, gate, up, cos, sin = scratch
        rmsnorm(x, attn_norm, eps, h)
        multiply(three, wq, wk, wv, ready(h[0], wq), q[0], k[0], v[0], shared)
        rope(q, k, v, cos, sin, pos, keys, values)
        if 2 * q.size * (pos + 1) < shared:
            attention(q, keys, values, pos, scores, mixed)
        else:
            attention_threaded(q, keys, values, pos, scores, mixed)
        multiply(one, wo, wo, wo, ready(mixed[0], wo), h[0], h[0], h[0], shared)
        add(x, h)
        rmsnorm(x, ffn_norm, eps, h)
        multiply(two, w_gate, w_up, w_up, ready(h[0], w_up), gate[0], up[0], up[0], shared)
        swiglu(gate, up)
        multiply(one, w_down, w_down, w_down, ready(gate[0], w_down), h[0], h[0], h[0], shared)
        add(x, h)

    return block


block_float32 = _block(float32_input, multiply_float32)
block_int8 = _block(int8_input, multiply_int8)
