"""All that is compiled. Plain loops over NumPy arrays; the only room that knows numba."""

import numba

from llama2np.kernels.attention import (
    BLOCK,
    attention,
    attention_threaded,
    rope,
    rope_angles,
)
from llama2np.kernels.float32 import (
    add,
    matmul,
    matmul_threaded,
    rmsnorm,
    softmax,
    swiglu,
)
from llama2np.kernels.int8 import (
    dequantize_rows,
    matmul_int8,
    matmul_int8_threaded,
    quantize,
)
from llama2np.kernels.int8_tiles import INT8_ROWS, matmul_int8_tiles
from llama2np.kernels.jit import on_first_compile
from llama2np.kernels.tiles import LANES, ROWS, matmul_tiles, to_tiles

__all__ = [
    "BLOCK",
    "INT8_ROWS",
    "LANES",
    "ROWS",
    "add",
    "dequantize_rows",
    "matmul_int8",
    "matmul_int8_threaded",
    "matmul_int8_tiles",
    "quantize",
    "attention",
    "attention_threaded",
    "matmul",
    "matmul_threaded",
    "matmul_tiles",
    "on_first_compile",
    "rmsnorm",
    "rope",
    "rope_angles",
    "set_threads",
    "softmax",
    "swiglu",
    "to_tiles",
]


def set_threads(count: int) -> None:
    """Use `count` threads in the threaded kernels of this process. Raises ValueError."""
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= count <= most:
        raise ValueError(f"threads must be 1 to {most} on this machine, not {count}")
    numba.set_num_threads(count)
