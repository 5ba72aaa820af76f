"""All that is compiled: plain loops over NumPy arrays. The only room that knows numba.

`aligned_zeros` makes arrays as the loops like them.

So many threads as `members` says share the work of kernels that take that, and all of them always
that of the last five below.
"""

from llama2np.kernels import attention as _attention
from llama2np.kernels import dots as _dots
from llama2np.kernels import forks as _forks  # noqa: F401  (it prepares this process for forks)
from llama2np.kernels import int8_tiles as _int8_tiles
from llama2np.kernels import multiply as _multiply
from llama2np.kernels import one_token as _one_token
from llama2np.kernels import tiles as _tiles
from llama2np.kernels.addresses import ENDS, PLACES
from llama2np.kernels.aligned import aligned_zeros
from llama2np.kernels.attention import BLOCK, TOGETHER, attention, rope, rope_angles
from llama2np.kernels.dots import FEW
from llama2np.kernels.helper import expect
from llama2np.kernels.int8 import dequantize_rows, quantize
from llama2np.kernels.int8_tiles import INT8_FEW, INT8_ROWS
from llama2np.kernels.jit import CACHE_FOLDER, counts, on_first_compile
from llama2np.kernels.sampling import sample
from llama2np.kernels.steps import add, rmsnorm, softmax, swiglu
from llama2np.kernels.threads import guarded, may_use_threads, members, set_threads, threads
from llama2np.kernels.tiles import LANES, ROWS

__all__ = [
    "BLOCK",
    "CACHE_FOLDER",
    "ENDS",
    "FEW",
    "INT8_FEW",
    "INT8_ROWS",
    "LANES",
    "PLACES",
    "ROWS",
    "TOGETHER",
    "add",
    "aligned_zeros",
    "attention",
    "attention_threaded",
    "counts",
    "dequantize_rows",
    "expect",
    "matmul",
    "matmul_few",
    "matmul_int8",
    "matmul_int8_tiles",
    "matmul_tiles",
    "may_use_threads",
    "members",
    "on_first_compile",
    "one_token_float32",
    "one_token_int8",
    "quantize",
    "rmsnorm",
    "rope",
    "rope_angles",
    "sample",
    "set_threads",
    "softmax",
    "swiglu",
    "threads",
    "to_tiles",
]

matmul = guarded(_multiply.matmul)
matmul_int8 = guarded(_multiply.matmul_int8)
one_token_float32 = guarded(_one_token.one_token_float32)
one_token_int8 = guarded(_one_token.one_token_int8)

attention_threaded = guarded(_attention.attention_threaded)
to_tiles = guarded(_tiles.to_tiles)
# These are None where kernels are plain loops; the last one also without int8 instructions.
matmul_few = guarded(_dots.matmul_few)
matmul_tiles = guarded(_tiles.matmul_tiles)
matmul_int8_tiles = guarded(_int8_tiles.matmul_int8_tiles)
