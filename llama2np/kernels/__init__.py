"""All compiled code. Only this folder imports numba.

| part | contents |
|---|---|
| engine.py, interpreter.py | a program as tables of numbers, and the loop over a table |
| lower.py, products.py, entries.py | from steps to a table; the choice of matrix products |
| ops/ | the computation of each step |
| matmul/ | matrix products |
| runtime/ | support: compilation, its cache, threads, memory |
"""

from llama2np.kernels.engine import CompiledEngine, row_sums
from llama2np.kernels.ops.sampling import sample, softmax
from llama2np.kernels.runtime import forks as _forks  # noqa: F401  (it prepares for forks)
from llama2np.kernels.runtime.jit import CACHE_FOLDER, counts, on_first_compile, target
from llama2np.kernels.runtime.pool import max_threads, set_threads, threads

__all__ = [
    "CACHE_FOLDER",
    "CompiledEngine",
    "counts",
    "max_threads",
    "on_first_compile",
    "row_sums",
    "sample",
    "set_threads",
    "softmax",
    "target",
    "threads",
]
