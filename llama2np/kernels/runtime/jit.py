"""The decorator that every kernel wears."""

from functools import partial

import numba
from numba.core import event
from numba.core.registry import cpu_target

from llama2np.kernels.runtime.cache import Cache
from llama2np.kernels.runtime.cache_folder import cache_folder

__all__ = [
    "CACHE_FOLDER",
    "PLAIN",
    "SLICES",
    "counts",
    "cpu_has",
    "exact",
    "inner",
    "kernel",
    "on_first_compile",
]


CACHE_FOLDER = cache_folder()  # None: every process compiles for itself
# Only loops: what LLVM is asked for by name has neither an interpreter nor checks of indices.
PLAIN = bool(numba.config.DISABLE_JIT or numba.config.BOUNDSCHECK)
# Python itself, where slices save time. They clip, so they are not for checking indices.
SLICES = bool(numba.config.DISABLE_JIT)
_KERNELS = []  # all that _jit made


def _jit(function=None, **options):
    """numba.njit that keeps its code in CACHE_FOLDER."""
    if function is None:
        return partial(_jit, **options)
    made = numba.njit(function, nogil=True, **options)
    if CACHE_FOLDER is not None and not numba.config.DISABLE_JIT:
        made._cache = Cache(function, CACHE_FOLDER)
    _KERNELS.append(made)
    return made


# Sums may be reordered and multiply-adds fused; nan and inf keep their meaning.
kernel = partial(_jit, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})

# Every operation as written: where the order of float32 additions is part of the answer. `False`
# has to be said: without it a function takes over the fastmath of whoever has it compiled first.
exact = partial(_jit, error_model="numpy", fastmath=False)

# The same, for kernels that only kernels call: without what Python and C would call them by, which
# takes a sixth of the time to compile. Python ends with a segmentation fault if it calls one.
inner = partial(exact, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def cpu_has(feature):
    """Whether numba compiles for a CPU with this feature of LLVM's, such as avx2."""
    return f"+{feature}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


class _Once(event.Listener):
    def __init__(self, action):
        self.action = action

    def on_start(self, _event):
        action, self.action = self.action, None
        if action:
            action()

    def on_end(self, _event):
        pass


def on_first_compile(action):
    """Call `action()` once, when numba first has to compile something instead of loading it."""
    event.register("numba:compile", _Once(action))


def counts():
    """How many kernels this process has compiled, and how many it has loaded from the cache.

    A kernel counts once for each combination of its arguments' types.
    """
    stats = [made.stats for made in _KERNELS if hasattr(made, "stats")]  # not if jit is disabled
    compiled = sum(sum(each.cache_misses.values()) for each in stats)
    return compiled, sum(sum(each.cache_hits.values()) for each in stats)
