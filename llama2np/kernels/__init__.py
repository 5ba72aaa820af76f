"""All that is compiled. Plain loops over NumPy arrays; the only room that knows numba.

Threads share the work of kernels that take `shared`, the number of multiply-adds from which on that
pays, and of those that work in tiles.
"""

import numba

from llama2np.kernels.attention import (
    BLOCK,
    attention,
    attention_threaded,
    rope,
    rope_angles,
)
from llama2np.kernels.int8 import dequantize_rows, quantize
from llama2np.kernels.int8_tiles import INT8_ROWS, matmul_int8_tiles
from llama2np.kernels.jit import on_first_compile
from llama2np.kernels.multiply import matmul, matmul_int8
from llama2np.kernels.one_token import block_float32, block_int8
from llama2np.kernels.steps import add, rmsnorm, softmax, swiglu
from llama2np.kernels.tiles import LANES, ROWS, matmul_tiles, to_tiles

__all__ = [
    "BLOCK",
    "INT8_ROWS",
    "LANES",
    "ROWS",
    "SHARED",
    "add",
    "attention",
    "attention_threaded",
    "block_float32",
    "block_int8",
    "dequantize_rows",
    "matmul",
    "matmul_int8",
    "matmul_int8_tiles",
    "matmul_tiles",
    "on_first_compile",
    "quantize",
    "rmsnorm",
    "rope",
    "rope_angles",
    "set_threads",
    "softmax",
    "swiglu",
    "to_tiles",
]

SHARED = 65536


def set_threads(count: int) -> None:
    """Use `count` threads in the threaded kernels of this process. Raises ValueError."""
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= count <= most:
        raise ValueError(f"threads must be 1 to {most} on this machine, not {count}")
    numba.set_num_threads(count)
